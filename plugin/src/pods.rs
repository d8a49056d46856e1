//! What a pod tells of itself: one word, and what the kubelet or the scheduler says where something is in its way.

use anneal_api::{count, names::label};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt as _;

use crate::{
    state::{State, Tone},
    tree::Node,
};

/// How a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The word.
    pub state: State,
    /// What the kubelet or the scheduler says.
    pub message: String,
}

/// How a pod is, by its containers in the order in which they run.
pub fn seen(pod: &Pod) -> Seen {
    let say = |tone, word: &str, message: &str| Seen { state: State::new(tone, word), message: message.to_owned() };
    let Some(status) = pod.status.as_ref() else { return say(Tone::Waiting, "Pending", "") };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let reason = status.reason.as_deref();
    if pod.metadata.deletion_timestamp.is_some() && phase != "Succeeded" && phase != "Failed" {
        return say(Tone::Busy, "Terminating", "");
    }
    let containers = status.init_container_statuses.iter().flatten().filter(|container| !has_ended_well(container));
    let containers = containers.chain(status.container_statuses.iter().flatten());
    if let Some(troubled) = containers.clone().find_map(of_container) {
        return troubled;
    }
    let unscheduled = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(unscheduled) = unscheduled.filter(|_| phase == "Pending") {
        return say(Tone::Waiting, "Unschedulable", unscheduled.message.as_deref().unwrap_or_default());
    }
    match phase {
        "Succeeded" => say(Tone::Good, "Completed", ""),
        "Failed" => say(Tone::Bad, reason.unwrap_or("Failed"), status.message.as_deref().unwrap_or_default()),
        "Running" if is_ready(pod) => say(Tone::Good, "Ready", ""),
        "Running" => say(Tone::Busy, "Running", ""),
        _ => say(Tone::Busy, "Starting", ""),
    }
}

fn has_ended_well(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

/// Why a container does not run, or how it ended; `None` while it does as it should.
fn of_container(container: &ContainerStatus) -> Option<Seen> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return None;
        }
        // What made it crash says more than that it waits to be started again.
        let before = container.last_state.as_ref().and_then(ending).filter(|_| reason == "CrashLoopBackOff");
        let message = before.unwrap_or_else(|| waiting.message.clone().unwrap_or_default());
        return Some(Seen { state: State::new(Tone::Bad, reason), message });
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let word = ended.reason.as_deref().unwrap_or("Error");
    Some(Seen { state: State::new(Tone::Bad, word), message: ending(state).unwrap_or_default() })
}

/// How a container ended, with its last words where they are Anneal's.
fn ending(state: &ContainerState) -> Option<String> {
    use anneal_api::termination::TerminationMessage::{self, Failure, Result, Smoke};
    let ended = state.terminated.as_ref()?;
    let words = ended.message.as_deref().and_then(|text| TerminationMessage::parse(text).ok());
    Some(match words {
        Some(Failure(failure)) => format!("{}: {}", failure.class.as_str(), failure.message),
        Some(Smoke(report)) => report.message,
        Some(Result(_)) | None => format!("exit code {}", ended.exit_code),
    })
}

/// Whether the pod takes requests.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_true = conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"));
    is_true && pod.metadata.deletion_timestamp.is_none()
}

/// How often its containers were started again.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|container| container.restart_count).sum()
}

/// The value of a label.
pub fn label_of<'a>(object: &'a impl kube::Resource<DynamicType = ()>, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// The number of the attempt that a pod or Job is of.
pub fn attempt_of(object: &impl kube::Resource<DynamicType = ()>) -> Option<i32> {
    label_of(object, label::ATTEMPT)?.parse().ok()
}

/// A pod in the tree.
pub fn node(pod: &Pod) -> Node {
    let seen = seen(pod);
    let place = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let restarts = Some(restarts(pod)).filter(|restarts| *restarts > 0).map(|restarts| count::of(restarts, "restart"));
    let message = Some(seen.message).filter(|message| !message.is_empty());
    Node {
        name: pod.name_any(),
        kind: "Pod",
        state: seen.state,
        since: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        info: place.into_iter().chain(restarts).chain(message).collect::<Vec<_>>().join(", "),
        children: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::pod;

    fn told(status: &Value) -> (String, Tone, String) {
        let seen = seen(&pod("p", &json!({}), status));
        (seen.state.word, seen.state.tone, seen.message)
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{"name": "server", "image": "i", "imageID": "", "ready": false,
            "restartCount": 2, "state": state, "lastState": last}]})
    }

    #[test]
    fn a_pod_is_told_by_what_is_in_its_way() {
        let pull = container(&json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}), &json!({}));
        assert_eq!(told(&pull), ("ImagePullBackOff".to_owned(), Tone::Bad, "not found".to_owned()));
        let words = r#"{"failure": {"class": "DigestMismatch", "message": "another file"}}"#;
        let crash = container(
            &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}),
            &json!({"terminated": {"exitCode": 68, "message": words}}),
        );
        assert_eq!(told(&crash), ("CrashLoopBackOff".to_owned(), Tone::Bad, "DigestMismatch: another file".to_owned()));
        let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]});
        assert_eq!(told(&unscheduled), ("Unschedulable".to_owned(), Tone::Waiting, "0/1 nodes".to_owned()));
    }

    #[test]
    fn a_pod_that_does_as_it_should_is_told_by_how_far_it_is() {
        let word = |status: &Value| told(status).0;
        assert_eq!(word(&json!({"phase": "Pending"})), "Starting");
        assert_eq!(word(&container(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}))), "Running");
        assert_eq!(word(&json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})), "Ready");
        assert_eq!(word(&json!({"phase": "Succeeded"})), "Completed");
    }
}
