//! Steps that several tests take, and the facts that several tests ask about.

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment, RunPhase, TrainingRun},
    termination::RunResult,
};
use anneal_tests::{Context as _, Namespace, Result, Watch, ensure, manifest};
use k8s_openapi::api::core::v1::{Container, Event, Pod, Service};
use kube::ResourceExt as _;
use serde_json::Value;

/// What every object that the operator makes carries.
pub const GENERATED: &str = "app.kubernetes.io/managed-by=anneal-operator";

/// Seconds for what starts pods: three tests share two cores.
pub const PATIENCE: u64 = 180;

/// Trains to the end on a claim `models`, which is created where it is missing.
pub async fn trained(ns: &Namespace, name: &str, spec: Value) -> Result<RunResult> {
    ns.apply(&manifest::claim("models")).await?;
    ns.apply(&manifest::training_run(name, spec)).await?;
    until_succeeded(&mut ns.watch(name)).await
}

/// Waits for a run to succeed, and returns what it gave.
pub async fn until_succeeded(run: &mut Watch<TrainingRun>) -> Result<RunResult> {
    let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
    let run = run.until("the run is over", PATIENCE, over).await?;
    ensure!(phase(&run) == Some(RunPhase::Succeeded), "the run failed: {:?}", run.status);
    run.status.and_then(|status| status.result).context("the run has no result")
}

/// Waits for a deployment to come to rest, and returns it.
pub async fn until_stable(deployment: &mut Watch<ModelDeployment>) -> Result<ModelDeployment> {
    deployment
        .until("it is Stable", PATIENCE, |it| is_observed(it) && rollout(it) == Some(DeploymentPhase::Stable))
        .await
}

/// Waits for an Event of that reason about an object of that kind, and returns it: it follows the status that it tells of.
pub async fn until_told(ns: &Namespace, kind: &str, reason: &str) -> Result<Event> {
    let tells =
        |event: &Event| event.involved_object.kind.as_deref() == Some(kind) && event.reason.as_deref() == Some(reason);
    let sentence = format!("one of them tells a {kind}'s {reason}");
    let events = ns.until_all("", &sentence, 60, |events: &[Event]| events.iter().any(tells)).await?;
    events.into_iter().find(tells).context("it is gone")
}

/// Whether the status is about the newest spec.
pub fn is_observed(deployment: &ModelDeployment) -> bool {
    let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
    observed.is_some() && observed == deployment.metadata.generation
}

/// Where a run stands.
pub fn phase(run: &TrainingRun) -> Option<RunPhase> {
    run.status.as_ref()?.phase
}

/// Where a rollout stands.
pub fn rollout(deployment: &ModelDeployment) -> Option<DeploymentPhase> {
    deployment.status.as_ref()?.phase
}

/// The revision that has the traffic, by the status.
pub fn stable_revision(deployment: &ModelDeployment) -> Option<&str> {
    deployment.status.as_ref()?.stable_revision.as_deref()
}

/// Reason and message of a condition that is true.
pub fn condition(deployment: &ModelDeployment, kind: &str) -> Option<(String, String)> {
    let conditions = &deployment.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some((found.reason.clone(), found.message.clone()))
}

/// The revision that a Service chooses by its selector.
pub async fn chosen_by(ns: &Namespace, service: &str) -> Result<String> {
    let service: Service = ns.get(service).await?;
    let selector = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
    selector.get(label::REVISION).cloned().context("the Service does not choose by revision")
}

/// Names of the pods of a revision, sorted.
pub async fn pods_of(ns: &Namespace, revision: &str) -> Result<Vec<String>> {
    let pods: Vec<Pod> = ns.list(&format!("{}={revision}", label::REVISION)).await?;
    let mut names: Vec<_> = pods.iter().map(kube::ResourceExt::name_any).collect();
    names.sort();
    Ok(names)
}

/// Fails unless every container of the pods has requests and limits of CPU and memory.
pub fn all_have_requests_and_limits(pods: &[Pod]) -> Result<()> {
    for pod in pods {
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            ensure!(has_requests_and_limits(container), "pod {} lacks requests or limits", pod.name_any());
        }
    }
    Ok(())
}

fn has_requests_and_limits(container: &Container) -> bool {
    container.resources.as_ref().is_some_and(|resources| {
        [&resources.requests, &resources.limits].into_iter().all(|amounts| {
            amounts.as_ref().is_some_and(|amounts| ["cpu", "memory"].iter().all(|name| amounts.contains_key(*name)))
        })
    })
}
