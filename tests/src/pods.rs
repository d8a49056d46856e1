//! Pods that a test runs by itself: the clients in the server's image, the drawing in the trainer's.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::Namespace;

/// Where a pod's `ConfigMap` is mounted.
const FILES: &str = "/files";

impl Namespace {
    /// Runs a pod to its end, and returns what it printed.
    ///
    /// # Errors
    /// When it does not end in time, or not well; then with its log.
    pub async fn run(&self, name: &str, image: &str, args: &[&str], files: Option<&str>) -> Result<String> {
        self.start(name, image, args, files).await?;
        self.output(name).await
    }

    /// Starts a pod that the restricted profile takes. A `ConfigMap` given as `files` is mounted at `/files`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn start(&self, name: &str, image: &str, args: &[&str], files: Option<&str>) -> Result<()> {
        let volumes: Vec<_> = files.iter().map(|map| json!({"name": "files", "configMap": {"name": map}})).collect();
        let mounts: Vec<_> = files.iter().map(|_| json!({"name": "files", "mountPath": FILES})).collect();
        self.start_with(name, image, args, &volumes, &mounts).await
    }

    /// The same with volumes of any kind.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn start_with(
        &self,
        name: &str,
        image: &str,
        args: &[&str],
        volumes: &[Value],
        mounts: &[Value],
    ) -> Result<()> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"anneal.dev/test": "client"}},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"}
                },
                "containers": [{
                    "name": "client",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": args,
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]}
                    },
                    "volumeMounts": mounts
                }],
                "volumes": volumes
            }
        }))?;
        self.api::<Pod>().create(&PostParams::default(), &pod).await?;
        Ok(())
    }

    /// Waits for the end of a pod that [`Self::start`] started, and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn output(&self, name: &str) -> Result<String> {
        let over = |pod: &Pod| matches!(phase(pod), Some("Succeeded" | "Failed"));
        let pod = self.watch::<Pod>(name).until("it is over", 180, over).await?;
        let log = self.kubectl(&["logs", name]).await?.ok()?;
        ensure!(phase(&pod) == Some("Succeeded"), "pod {name} failed:\n{}", log.out);
        Ok(log.out)
    }

    /// A picture of the class, as the trainer draws it for its synthetic datasets: a PNG file, in Base64.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn draw(&self, class: &str) -> Result<String> {
        let args = ["synthesize", "--stdout", "--base64", "--class", class, "--size", "32", "--seed", "7"];
        let image = self.cluster.operator.trainer_image.clone();
        let text = self.run(&format!("draw-{class}"), &image, &args, None).await?;
        Ok(text.trim().to_owned())
    }

    /// What `anneal-server predict` prints about a file of the `ConfigMap`, asked from a pod through the Service of the
    /// deployment by its DNS name.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn predict(&self, pod: &str, deployment: &str, files: &str, file: &str) -> Result<String> {
        let url = format!("http://{deployment}.{}.svc/predict", self.name);
        let file = format!("{FILES}/{file}");
        let image = self.cluster.operator.server_image.clone();
        self.run(pod, &image, &["predict", "--url", &url, &file], Some(files)).await
    }
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}
