//! What surrounds a resource: its pods, the claims that it names, its autoscaler.

use std::collections::BTreeSet;

use anneal_api::{dataset::DatasetUri, resources::ModelDeployment};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::{Finding, Topic, advice};
use crate::{
    age,
    children::Children,
    cluster::{Cluster, Object},
    pods,
    problem::Problem,
    state::Tone,
    target::{Found, Kind},
};

/// Seconds that a claim may wait for its volume before it is told.
const BINDING: i64 = 60;

/// What surrounds the resources of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Events of the namespace.
    pub events: Vec<Event>,
    /// Its claims; `None` where the user may not list them.
    claims: Option<Vec<PersistentVolumeClaim>>,
}

/// Looks at what surrounds the resources of the namespace.
///
/// # Errors
/// [`Problem`] when the cluster does not answer.
pub async fn look(cluster: &Cluster) -> Result<Surroundings, Problem> {
    async fn visible<K: Object>(cluster: &Cluster) -> Result<Option<Vec<K>>, Problem> {
        match cluster.list("").await {
            Ok(found) => Ok(Some(found)),
            Err(problem) if problem.is_forbidden() => Ok(None),
            Err(problem) => Err(problem),
        }
    }
    let events = visible(cluster).await?.unwrap_or_default();
    Ok(Surroundings { events, claims: visible(cluster).await? })
}

impl Surroundings {
    /// What is wrong around a resource.
    pub fn findings(&self, found: &Found, children: &Children, has_metrics: bool, now: Timestamp) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.of_claims(found, children, now).into_iter().collect();
        findings.extend(children.pods.iter().filter_map(|pod| of_pod(found, pod)));
        if let Found::Deployment(deployment) = found {
            findings.extend(of_metrics(found, deployment, has_metrics));
        }
        if !children.hidden.is_empty() {
            let what = format!("you may not list {}, so what they would tell is missing", children.hidden.join(", "));
            findings.push(Finding::note(Topic::Other("Hidden".to_owned()), what, vec![]));
        }
        findings
    }

    fn of_claims(&self, found: &Found, children: &Children, now: Timestamp) -> Option<Finding> {
        let known = self.claims.as_ref()?;
        claims_of(found, children).iter().find_map(|name| {
            let Some(claim) = known.iter().find(|claim| claim.name_any() == *name) else {
                let what = format!("PersistentVolumeClaim {name} does not exist");
                let todo = advice::about(found, "ClaimNotFound", &what);
                return Some(Finding::problem(Topic::Volume, what, todo));
            };
            self.of_claim(found, claim, !children.pods.is_empty(), now)
        })
    }

    fn of_claim(&self, found: &Found, claim: &PersistentVolumeClaim, is_used: bool, now: Timestamp) -> Option<Finding> {
        let (name, phase) = (claim.name_any(), claim.status.as_ref().and_then(|status| status.phase.as_deref()));
        let age = claim.metadata.creation_timestamp.as_ref().map_or(0, |time| now.as_second() - time.0.as_second());
        let event = self.events.iter().rev().find(|event| {
            event.involved_object.kind.as_deref() == Some("PersistentVolumeClaim")
                && event.involved_object.name.as_ref() == Some(&name)
        });
        // A claim that waits for its first pod is well, as long as there is none.
        let waits_for_pod = event.and_then(|event| event.reason.as_deref()) == Some("WaitForFirstConsumer") && !is_used;
        let is_stuck = phase == Some("Lost") || phase == Some("Pending") && age > BINDING && !waits_for_pod;
        let why = event.and_then(|event| event.message.clone()).map(|why| format!(": {why}")).unwrap_or_default();
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        let class = class.map_or_else(
            || "no storage class (is there a default one?)".to_owned(),
            |it| format!("storage class {it}"),
        );
        is_stuck.then(|| {
            let (phase, age) = (phase.unwrap_or_default(), age::of(claim.metadata.creation_timestamp.as_ref(), now));
            let what = format!("PersistentVolumeClaim {name} is {phase} for {age}, with {class}{why}");
            let mut todo = vec!["kubectl get storageclasses".to_owned()];
            todo.extend(advice::about(found, "VolumeMissing", ""));
            // The claim itself knows more than whoever waits for it, so it is told in any case.
            Finding::problem(Topic::Other("Claim".to_owned()), what, todo)
        })
    }
}

/// The claims that a resource names, and those that its pods mount.
fn claims_of(found: &Found, children: &Children) -> BTreeSet<String> {
    let volumes = children.pods.iter().flat_map(|pod| pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()));
    let mounted = volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone()));
    let mut claims: BTreeSet<String> = mounted.collect();
    match found {
        // What a run that is over wrote to may have gone since.
        Found::Run(run) if run.status.as_ref().is_none_or(|status| status.completion_time.is_none()) => {
            // A claim of a template is the operator's to make.
            claims.extend(run.spec.output.claim_name.clone());
            if let Ok(DatasetUri::Pvc { claim, .. }) = run.spec.dataset.uri.parse() {
                claims.insert(claim);
            }
        }
        Found::Deployment(deployment) => claims.extend(deployment.spec.model.claim_name.clone()),
        _ => {}
    }
    claims
}

/// What is in the way of a pod.
fn of_pod(found: &Found, pod: &Pod) -> Option<Finding> {
    let seen = pods::seen(pod);
    let is_over =
        pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")));
    // How an attempt or a test ended is told by the resource itself.
    if is_over || !matches!(seen.state.tone, Tone::Bad | Tone::Waiting) {
        return None;
    }
    let why = if seen.message.is_empty() { String::new() } else { format!(": {}", seen.message) };
    let what = format!("pod {} is {}{why}", pod.name_any(), seen.state.word);
    let reason = match Topic::of(&seen.state.word) {
        Topic::Image => "ImagePull",
        _ if seen.state.word == "CrashLoopBackOff" => "Crashing",
        // As the operator calls it.
        _ if seen.state.word == "CreateContainerConfigError" && found.kind() == Kind::Run => "BadConfig",
        _ if seen.state.word == "CreateContainerConfigError" => "ContainerConfig",
        _ => seen.state.word.as_str(),
    };
    let topic = Topic::told(reason, &seen.message);
    Some(Finding::problem(topic, what, advice::about(found, reason, &seen.message)))
}

/// The autoscaler asks an API that is not served.
fn of_metrics(found: &Found, deployment: &ModelDeployment, has_metrics: bool) -> Option<Finding> {
    let scales = deployment.spec.replicas.is_none();
    (scales && !has_metrics).then(|| {
        let what = "the cluster serves no metrics of pods, so the number of pods does not follow the load";
        Finding::problem(Topic::Metrics, what, advice::about(found, "MetricsNotServed", ""))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures;

    fn run() -> Found {
        Found::Run(Box::new(fixtures::run(&json!({"phase": "Preparing"}))))
    }

    fn claim(phase: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "models", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"storageClassName": "fast"}, "status": {"phase": phase}
        }))
        .expect("a claim")
    }

    fn event(reason: &str, message: &str) -> Event {
        let object = json!({"kind": "PersistentVolumeClaim", "name": "models"});
        let event = json!({"metadata": {}, "involvedObject": object, "reason": reason, "message": message});
        serde_json::from_value(event).expect("an event")
    }

    fn told(surroundings: &Surroundings, children: &Children) -> Vec<String> {
        let all = surroundings.findings(&run(), children, true, fixtures::now());
        all.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_claim_that_does_not_come_is_told_and_one_that_waits_for_its_first_pod_is_not() {
        let around =
            |claims: Vec<PersistentVolumeClaim>, events: Vec<Event>| Surroundings { events, claims: Some(claims) };
        let none = Children::default();
        assert_eq!(told(&around(vec![], vec![]), &none), ["PersistentVolumeClaim models does not exist"]);
        assert_eq!(told(&around(vec![claim("Bound")], vec![]), &none), Vec::<String>::new());
        let waits = event("WaitForFirstConsumer", "waiting for first consumer");
        assert_eq!(told(&around(vec![claim("Pending")], vec![waits]), &none), Vec::<String>::new());
        let fails = event("ProvisioningFailed", "storageclass \"fast\" not found");
        assert_eq!(
            told(&around(vec![claim("Pending")], vec![fails]), &none),
            [
                "PersistentVolumeClaim models is Pending for 10m, with storage class fast: storageclass \"fast\" not found"
            ]
        );
    }

    #[test]
    fn a_pod_that_cannot_start_is_told_and_one_that_has_ended_is_not() {
        let pod = |status: &Value| Children {
            pods: vec![fixtures::pod("cats-1", &json!({}), status)],
            ..Children::default()
        };
        let waiting = json!({"name": "trainer", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}});
        let known = Surroundings { claims: Some(vec![claim("Bound")]), events: vec![] };
        let starts = pod(&json!({"phase": "Pending", "containerStatuses": [waiting]}));
        assert_eq!(told(&known, &starts), ["pod cats-1 is ImagePullBackOff: no such image"]);
        assert_eq!(told(&known, &pod(&json!({"phase": "Failed"}))), Vec::<String>::new());
    }
}
