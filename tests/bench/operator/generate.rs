//! What is created, and how fast.

use std::time::{Duration, Instant};

use anneal_api::resources::{ModelDeployment, TrainingRun};
use anneal_operator::{
    context::{Reach, Settings},
    training_run::{objects, validate::validate},
};
use anneal_tests::{Object, manifest};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim},
};
use kube::{
    Api, Client, CustomResource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Requests that are on their way at one time.
const PARALLEL: usize = 32;
/// The label of a pod that says how kwok is to end it.
const ENDING: &str = "bench/ending";

/// When objects are created.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as the API server takes them.
    Burst,
    /// So many in a second.
    PerSecond(f64),
}

/// How a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It publishes.
    Good,
    /// Its trainer fails for good.
    Fails,
    /// Its specification changes while it trains.
    Changes,
    /// It is suspended while it trains, and goes on.
    Pauses,
}

impl Course {
    /// Of the runs that arrive at a fixed rate one in twenty fails, changes or pauses, each.
    pub fn of(index: usize) -> Self {
        match index % 20 {
            5 => Self::Fails,
            10 => Self::Changes,
            15 => Self::Pauses,
            _ => Self::Good,
        }
    }
}

/// A run.
pub fn run(index: usize, course: Course) -> Result<TrainingRun> {
    let labels = if course == Course::Fails { json!({ENDING: "Diverged"}) } else { json!({}) };
    let spec = json!({"dataset": {"uri": "synthetic://?images=600&size=64"}, "podTemplate": {"labels": labels}});
    Ok(serde_json::from_value(manifest::training_run(&format!("run-{index:05}"), spec))?)
}

/// The Job that the operator makes for a run, without the run.
pub fn job(index: usize) -> Result<Job> {
    let run = run(index, Course::Good)?;
    let settings = Settings {
        trainer_image: "trainer:1".to_owned(),
        server_image: "server:1".to_owned(),
        image_pull_policy: None,
        failure_logs: false,
        reach: Reach::Address,
    };
    let valid = validate(&run)?;
    let mut job = objects::job(&run, &valid, 1, objects::config(&valid)?, &settings);
    job.metadata.owner_references = None;
    Ok(job)
}

/// As much of a JobSet as it takes to create one and to see it end.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize)]
#[kube(
    group = "jobset.x-k8s.io",
    version = "v1alpha2",
    kind = "JobSet",
    namespaced,
    status = "JobSetStatus",
    schema = "disabled"
)]
pub struct JobSetSpec {
    #[serde(flatten)]
    all: serde_json::Map<String, Value>,
}

/// What it says of its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSetStatus {
    /// `Completed` or `Failed`, once it has ended.
    pub terminal_state: Option<String>,
}

/// A JobSet of the Job that the operator makes for a run. Its webhooks are not there: what they would fill in is said here, but for
/// the Service of each JobSet, which a run of one pod has not either.
pub fn jobset(index: usize) -> Result<JobSet> {
    let Job { metadata, spec, .. } = job(index)?;
    let mut job = serde_json::to_value(spec)?;
    job["completionMode"] = json!("Indexed");
    let template = json!({"metadata": {"labels": metadata.labels, "annotations": metadata.annotations}, "spec": job});
    Ok(serde_json::from_value(json!({
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": format!("run-{index:05}")},
        "spec": {
            "successPolicy": {"operator": "All"}, "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
            "network": {"enableDNSHostnames": false, "publishNotReadyAddresses": true},
            "replicatedJobs": [{"name": "job", "replicas": 1, "template": template}]
        }
    }))?)
}

/// A deployment of two pods.
pub fn deployment(index: usize) -> Result<ModelDeployment> {
    let digest = "0123456789abcdef".repeat(4);
    let spec = json!({
        "model": {"claimName": "models", "path": format!("models/{digest}.pth"), "sha256": digest},
        "replicas": 2,
    });
    Ok(serde_json::from_value(manifest::model_deployment(&format!("model-{index:04}"), spec))?)
}

/// A namespace with a claim that is bound to a volume.
pub async fn namespace(client: &Client, name: &str) -> Result<()> {
    let params = PostParams::default();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::<Namespace>::all(client.clone()).create(&params, &namespace).await?;
    let size = json!({"storage": "1Ti"});
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": size, "accessModes": ["ReadWriteMany"], "hostPath": {"path": "/models"}, "storageClassName": "",
            "claimRef": {"namespace": name, "name": "models"}
        }
    }))?;
    Api::<PersistentVolume>::all(client.clone()).create(&params, &volume).await?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteMany"], "resources": {"requests": size}, "storageClassName": "", "volumeName": name
        }
    }))?;
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), name);
    claims.create(&params, &claim).await?;
    let begin = Instant::now();
    while claims.get("models").await?.status.and_then(|status| status.phase).as_deref() != Some("Bound") {
        ensure!(begin.elapsed() < Duration::from_mins(1), "claim models in {name} is not bound within a minute");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Creates objects at a pace.
pub async fn create<K: Object>(client: &Client, namespace: &str, objects: Vec<K>, pace: Pace) -> Result<()> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let begin = tokio::time::Instant::now();
    let due = |index: u32| match pace {
        Pace::Burst => begin,
        Pace::PerSecond(rate) => begin + Duration::from_secs_f64(f64::from(index) / rate),
    };
    stream::iter((0_u32..).zip(objects))
        .map(|(index, object)| {
            let api = &api;
            async move {
                tokio::time::sleep_until(due(index)).await;
                let name = object.name_any();
                api.create(&PostParams::default(), &object).await.with_context(|| format!("{name} was refused"))
            }
        })
        .buffer_unordered(PARALLEL)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
}

/// Changes an object's specification.
pub async fn change<K: Object>(client: &Client, namespace: &str, name: &str, spec: &Value) -> Result<()> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"spec": spec});
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("{name} was refused"))?;
    Ok(())
}
