//! Credentials are in the Secret that holds them and where a user wrote them, and nowhere else: no log, status or Event has one, also
//! where a server refuses them.

use std::collections::BTreeMap;

use anneal_api::resources::{DeploymentPhase, ModelDeployment, RunPhase, TrainingRun};
use anneal_tests::{FileServer, Namespace, Outcome, Result, ensure, in_namespace, kubectl, manifest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, phase, rollout, until_succeeded};

/// What the server would let in.
const RIGHT: &str = "Bearer what-nobody-has";
/// Credentials that it does not, by the variable that holds them.
const SECRETS: [(&str, &str); 6] = [
    ("ANNEAL_HTTP_AUTHORIZATION", "Bearer 5ecret-http-token"),
    ("AWS_ACCESS_KEY_ID", "AKIA5ECRETKEYID"),
    ("AWS_SECRET_ACCESS_KEY", "5ecret/access+key"),
    ("MLFLOW_TRACKING_TOKEN", "5ecret-mlflow-token"),
    ("MLFLOW_TRACKING_USERNAME", "5ecret-user"),
    ("MLFLOW_TRACKING_PASSWORD", "5ecret-password"),
];
/// The signature in a URL that a user writes into a specification.
const SIGNATURE: &str = "5ecret-signature";
/// Everything that holds a status or was made of a specification.
const KINDS: &str = "anneal,jobs,pods,deployments,replicasets,controllerrevisions,configmaps,services,persistentvolumeclaims,\
                     horizontalpodautoscalers,poddisruptionbudgets,events.events.k8s.io";

/// The Secret with these variables.
async fn secret(ns: &Namespace, name: &str, variables: &[&str], more: &[(&str, &str)]) -> Result<()> {
    let known = SECRETS.iter().filter(|(variable, _)| variables.contains(variable));
    let data: BTreeMap<&str, &str> = known.chain(more).copied().collect();
    ns.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})).await
}

/// What nobody may read: the credentials, what a header makes of two of them, and the signature.
fn secrets() -> Vec<String> {
    let basic = BASE64_STANDARD.encode("5ecret-user:5ecret-password");
    let words = |(_, value): (&str, &str)| value.rsplit(' ').next().unwrap_or_default().to_owned();
    SECRETS.map(words).into_iter().chain([basic, SIGNATURE.to_owned()]).collect()
}

/// What the pods of the namespace have written so far, and the operator.
async fn logs(ns: &Namespace) -> Result<String> {
    let mut all = String::new();
    for pod in ns.list::<Pod>("").await? {
        for more in [&[][..], &["--previous"]] {
            let name = pod.name_any();
            // A container may not have started, or not twice.
            all += &ns.kubectl(&[&["logs", &name, "--all-containers"], more].concat()).await?.out;
        }
    }
    let operator = &ns.cluster.operator.namespace;
    let chosen = "--selector=app.kubernetes.io/component=operator";
    let said = kubectl(&["--namespace", operator, "logs", chosen, "--tail=-1"], None).await?.ok()?;
    Ok(all + &said.out)
}

/// Fails where one of the secrets is in a text.
fn check(place: &str, text: &str, secrets: &[String]) -> Result<()> {
    for secret in secrets {
        let found = text.find(secret.as_str());
        let around = found
            .map(|at| text[..at].chars().rev().take(200).collect::<Vec<_>>().into_iter().rev().collect::<String>());
        ensure!(found.is_none(), "{place} has {secret:?}, behind {around:?}");
    }
    Ok(())
}

/// Looks through logs, objects and Events.
async fn look(ns: &Namespace) -> Result<()> {
    let secrets = secrets();
    check("a log", &logs(ns).await?, &secrets)?;
    let said = ns.kubectl(&["get", KINDS, "--output=json"]).await?.ok()?;
    let objects: Value = serde_json::from_str(&said.out)?;
    let objects = objects["items"].as_array().cloned().unwrap_or_default();
    ensure!(objects.len() > 10, "there are {} objects only", objects.len());
    for object in objects {
        let place = format!("{} {}", object["kind"], object["metadata"]["name"]);
        check(&format!("the status of {place}"), &object["status"].to_string(), &secrets)?;
        // A signed URL is in what a user wrote, and in what is made of that.
        let (_, credentials) = secrets.split_last().unwrap_or((&secrets[0], &[]));
        let is_told = object["kind"] == "Event";
        check(&place, &object.to_string(), if is_told { &secrets } else { credentials })?;
    }
    Ok(())
}

#[tokio::test]
async fn credentials_are_in_no_log_no_status_and_no_event() -> Outcome {
    in_namespace(async |ns| {
        let server = FileServer::start(b"nothing for you".to_vec(), RIGHT).await?;
        let at = format!("http://{}", server.address);
        secret(ns, "web", &["ANNEAL_HTTP_AUTHORIZATION"], &[]).await?;
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        secret(ns, "bucket", &keys, &[("AWS_ENDPOINT_URL", &at), ("AWS_REGION", "eu-central-1")]).await?;
        secret(ns, "token", &["MLFLOW_TRACKING_TOKEN"], &[]).await?;
        secret(ns, "user", &["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"], &[]).await?;
        ns.apply(&manifest::claim("models")).await?;

        let refused = [
            ("signed", json!({"uri": format!("{at}/photos.tar?X-Amz-Signature={SIGNATURE}"), "credentialsSecretRef": {"name": "web"}})),
            ("bucket", json!({"uri": "s3://photos/cats", "credentialsSecretRef": {"name": "bucket"}})),
        ];
        for (name, dataset) in &refused {
            ns.apply(&manifest::training_run(name, json!({"dataset": dataset, "maxRetries": 0}))).await?;
        }
        for name in ["token", "user"] {
            let mlflow = json!({"uri": at, "experiment": "cats", "credentialsSecretRef": {"name": name}});
            ns.apply(&manifest::training_run(name, json!({"tracking": {"mlflow": mlflow}}))).await?;
        }
        let model = json!({
            "uri": format!("{at}/cats.pth?X-Amz-Signature={SIGNATURE}"), "sha256": "0".repeat(64),
            "credentialsSecretRef": {"name": "web"}
        });
        ns.apply(&manifest::model_deployment("cats", json!({"model": model}))).await?;

        for (name, _) in &refused {
            let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
            let run = ns.watch::<TrainingRun>(name).until("it is over", PATIENCE, over).await?;
            ensure!(phase(&run) == Some(RunPhase::Failed), "the server was to refuse {name}: {:?}", run.status);
        }
        for name in ["token", "user"] {
            until_succeeded(&mut ns.watch(name)).await?;
        }
        // The pod that fetches goes with its candidate; what it said last is in the status.
        let failed = |it: &ModelDeployment| rollout(it) == Some(DeploymentPhase::Failed);
        let cats = ns.watch::<ModelDeployment>("cats").until("the server refused its model", PATIENCE, failed).await?;
        let told = serde_json::to_string(&cats.status)?;
        ensure!(told.contains("cats.pth is refused"), "its status tells nothing of it: {told}");
        let written = logs(ns).await?;
        for words in ["photos.tar", "s3://photos", "401"] {
            ensure!(written.contains(words), "no log tells of {words}: {written}");
        }
        look(ns).await
    })
    .await
}
