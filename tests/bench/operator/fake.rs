//! In place of Kubernetes' Job controller and its scheduler: a Job has its pod at once, and ends with it. With tens of thousands of
//! runs it is the operator that is to be measured.

use std::collections::HashSet;

use anyhow::{Context, Result};
use futures::{TryStreamExt, future};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};

/// Requests of one kind that are on their way at one time.
const PARALLEL: usize = 16;
/// A node of the control plane.
const NODE: &str = "fake-1";
/// What the operator makes Jobs for.
const JOBS: &str = "app.kubernetes.io/component in (trainer,smoke-test)";

/// Gives every Job its pod and its end, until something fails.
pub async fn jobs(client: Client) -> Result<()> {
    let params = || watcher::Config::default().labels(JOBS);
    // What a watch tells of again has been dealt with.
    let (mut known, mut over) = (HashSet::new(), HashSet::new());
    let jobs = watcher(Api::<Job>::all(client.clone()), params()).default_backoff().applied_objects();
    let begin = jobs
        .try_filter(move |job| future::ready(known.insert(job.uid())))
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(PARALLEL, |job| begin(&client, job));
    let pods = watcher(Api::<Pod>::all(client.clone()), params()).default_backoff().applied_objects();
    let end = pods
        .try_filter(move |pod| future::ready(end_of(pod).is_some() && over.insert(pod.uid())))
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(PARALLEL, |pod| end(&client, pod));
    future::try_join(begin, end).await.context("Jobs cannot be faked any more")?;
    Ok(())
}

/// Makes the pod of a Job.
async fn begin(client: &Client, job: Job) -> Result<()> {
    let (name, namespace) = (job.name_any(), job.namespace().unwrap_or_default());
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
    pod.metadata.name = Some(format!("{name}-pod"));
    pod.metadata.owner_references = job.controller_owner_ref(&()).map(|owner| vec![owner]);
    pod.spec = pod.spec.map(|spec| PodSpec { node_name: Some(NODE.to_owned()), ..spec });
    Api::<Pod>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &pod).await?;
    write(client, &namespace, &name, json!({"startTime": Timestamp::now(), "active": 1})).await
}

/// The conditions of a Job whose pod has ended.
fn end_of(pod: &Pod) -> Option<[&'static str; 2]> {
    match pod.status.as_ref()?.phase.as_deref()? {
        "Succeeded" => Some(["SuccessCriteriaMet", "Complete"]),
        "Failed" => Some(["FailureTarget", "Failed"]),
        _ => None,
    }
}

/// Ends the Job of a pod.
async fn end(client: &Client, pod: Pod) -> Result<()> {
    let (Some(conditions), Some(job)) = (end_of(&pod), pod.owner_references().first()) else { return Ok(()) };
    let now = Timestamp::now();
    let conditions = conditions.map(|kind| {
        json!({"type": kind, "status": "True", "reason": "Fake", "lastProbeTime": now, "lastTransitionTime": now})
    });
    let mut status = json!({"active": 0, "conditions": conditions});
    if conditions[1]["type"] == "Complete" {
        status["succeeded"] = json!(1);
        status["completionTime"] = json!(now);
    } else {
        status["failed"] = json!(1);
    }
    write(client, &pod.namespace().unwrap_or_default(), &job.name, status).await
}

async fn write(client: &Client, namespace: &str, job: &str, status: Value) -> Result<()> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    match api.patch_status(job, &PatchParams::default(), &Patch::Merge(&json!({"status": status}))).await {
        // The operator has deleted it.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
