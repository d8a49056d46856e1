//! What a pod tells: whether it is ready, and if not, why.

use anneal_api::{
    failure::FailureClass,
    smoke::SmokeReport,
    termination::{TerminationMessage, cut},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use kube::ResourceExt;

/// A pod that takes or will take requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Its UID: a pod of the same name is another one.
    pub uid: String,
    /// Its address, once it has one.
    pub address: Option<String>,
    /// Where it runs, once that is decided.
    pub node: Option<String>,
    /// Whether it takes requests.
    pub ready: bool,
    /// Digest of the image that runs.
    pub image_id: Option<String>,
    /// Why it does not get ready.
    pub trouble: Option<Trouble>,
    /// When its container ended last.
    pub crashed: Option<Timestamp>,
}

/// Why a pod does not get ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// What happened, and what to do.
    pub message: String,
    /// Whether another pod of the same revision would fail in the same way.
    pub fatal: bool,
}

impl Trouble {
    fn passing(reason: &'static str, message: String) -> Self {
        Self { reason, message, fatal: false }
    }
}

/// What a pod tells; `None` for one that is over or on its way out.
pub fn seen(pod: &Pod) -> Option<PodSeen> {
    let status = pod.status.clone().unwrap_or_default();
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if over || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ready =
        status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let container = status.container_statuses.iter().flatten().next();
    let ended = |state: &Option<ContainerState>| Some(state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    Some(PodSeen {
        name: pod.name_any(),
        crashed: container.and_then(|container| ended(&container.state).or_else(|| ended(&container.last_state))),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        address: status.pod_ip.clone().filter(|address| !address.is_empty()),
        ready,
        image_id: container.map(|container| container.image_id.clone()).filter(|id| !id.is_empty()),
        trouble: if ready {
            None
        } else {
            of_fetch(&status).or_else(|| container.and_then(of_container)).or_else(|| of_scheduling(pod))
        },
    })
}

/// Why a container does not end well that comes before the server.
fn of_fetch(status: &PodStatus) -> Option<Trouble> {
    let done = |container: &ContainerStatus| {
        let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| ended.exit_code == 0)
    };
    status.init_container_statuses.iter().flatten().filter(|container| !done(container)).find_map(of_container)
}

fn of_container(container: &ContainerStatus) -> Option<Trouble> {
    last_words(container).and_then(|words| of_last_words(&words)).or_else(|| of_state(container))
}

/// What the process wrote when it ended last.
fn last_words(container: &ContainerStatus) -> Option<String> {
    let ended = |state: &Option<ContainerState>| state.as_ref()?.terminated.as_ref()?.message.clone();
    ended(&container.state).or_else(|| ended(&container.last_state))
}

fn of_last_words(words: &str) -> Option<Trouble> {
    use FailureClass::{BadConfig, DigestMismatch, LoadFailed, ModelNotFound};
    match TerminationMessage::parse(words) {
        Ok(TerminationMessage::Failure(failure)) => Some(Trouble {
            reason: failure.class.as_str(),
            message: failure.message,
            fatal: matches!(failure.class, ModelNotFound | DigestMismatch | LoadFailed | BadConfig),
        }),
        _ => None,
    }
}

fn of_state(container: &ContainerStatus) -> Option<Trouble> {
    let ended = [&container.state, &container.last_state]
        .into_iter()
        .find_map(|state| state.as_ref()?.terminated.as_ref())
        .map(|ended| (ended.reason.clone().unwrap_or_default(), ended.exit_code));
    if ended.as_ref().is_some_and(|(reason, _)| reason == "OOMKilled") {
        let message = "the container was killed at its memory limit; raise podTemplate.resources.limits.memory";
        return Some(Trouble::passing("OOMKilled", message.to_owned()));
    }
    let waiting = container.state.as_ref().and_then(|state| state.waiting.clone()).unwrap_or_default();
    let detail = waiting.message.unwrap_or_default();
    match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Some(Trouble::passing(
            "ImagePull",
            format!("the image {} cannot be pulled: {detail}; check its name and its pull secret", container.image),
        )),
        "CreateContainerConfigError" | "CreateContainerError" => {
            Some(Trouble::passing("ContainerConfig", format!("the container cannot be created: {detail}")))
        }
        _ => ended.map(|(reason, code)| {
            Trouble::passing(
                "Crashing",
                format!("the container ended with exit code {code} ({reason}); `kubectl logs` of the pod says why"),
            )
        }),
    }
}

fn of_scheduling(pod: &Pod) -> Option<Trouble> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let unscheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let message = unscheduled.message.as_deref().unwrap_or("no node was found");
    Some(Trouble::passing("Unschedulable", format!("no node takes the pod: {message}")))
}

/// The report that a smoke test's pod left behind.
pub fn report(pod: &Pod) -> Option<SmokeReport> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let words = statuses.iter().find_map(last_words)?;
    match TerminationMessage::parse(&words) {
        Ok(TerminationMessage::Smoke(report)) => Some(report),
        _ => None,
    }
}

/// Why a smoke test's pod came to no verdict.
pub fn no_report(pod: Option<&Pod>) -> String {
    let Some(pod) = pod else {
        return "its pod is gone".to_owned();
    };
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.iter().flatten().next();
    let trouble = container.and_then(of_container).or_else(|| of_scheduling(pod)).map(|trouble| trouble.message);
    trouble.or(status.message).map_or_else(|| "its pod left no report".to_owned(), |message| cut(&message, 400))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "1"}, "status": status})).expect("a pod")
    }

    fn container(state: &serde_json::Value, last: &serde_json::Value) -> Pod {
        let container = json!({"name": "server", "image": "server:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last});
        pod(&json!({"containerStatuses": [container]}))
    }

    fn trouble(pod: &Pod) -> Trouble {
        seen(pod).expect("a pod").trouble.expect("trouble")
    }

    #[test]
    fn a_server_that_cannot_load_its_model_says_so_itself() {
        let words = TerminationMessage::failure(FailureClass::DigestMismatch, "the digest is wrong").to_json();
        let ended = json!({"terminated": {"exitCode": 68, "message": words.expect("json")}});
        let again = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for pod in [container(&ended, &json!({})), container(&again, &ended)] {
            let trouble = trouble(&pod);
            assert_eq!((trouble.reason, trouble.fatal), ("DigestMismatch", true));
            assert_eq!(trouble.message, "the digest is wrong");
        }
    }

    #[test]
    fn what_may_pass_by_itself_is_not_fatal() {
        let waiting = |reason: &str| container(&json!({"waiting": {"reason": reason}}), &json!({}));
        assert_eq!(trouble(&waiting("ImagePullBackOff")).reason, "ImagePull");
        assert!(!trouble(&waiting("ImagePullBackOff")).fatal);
        let killed = container(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), &json!({}));
        assert_eq!(trouble(&killed).reason, "OOMKilled");
        let conditions = json!([{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]);
        let unscheduled = trouble(&pod(&json!({"conditions": conditions})));
        assert_eq!((unscheduled.reason, unscheduled.fatal), ("Unschedulable", false));
    }

    #[test]
    fn a_pod_that_starts_is_in_no_trouble() {
        let creating = container(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
        assert_eq!(seen(&creating).expect("a pod").trouble, None);
    }

    #[test]
    fn what_keeps_the_model_from_being_fetched_is_told_and_a_fetch_that_is_done_is_no_trouble() {
        let fetch = |state: &serde_json::Value| {
            let container = |name: &str, state: &serde_json::Value| {
                json!({"name": name, "image": "i:1", "imageID": "",
                "ready": false, "restartCount": 0, "state": state, "lastState": {}})
            };
            pod(&json!({
                "initContainerStatuses": [container("fetch", state)],
                "containerStatuses": [container("server", &json!({"waiting": {"reason": "PodInitializing"}}))]
            }))
        };
        let words = TerminationMessage::failure(FailureClass::ModelNotFound, "there is no such file").to_json();
        let failed = trouble(&fetch(&json!({"terminated": {"exitCode": 66, "message": words.expect("json")}})));
        assert_eq!((failed.reason, failed.fatal), ("ModelNotFound", true));
        for fine in [json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), json!({"running": {}})] {
            assert_eq!(seen(&fetch(&fine)).expect("a pod").trouble, None);
        }
    }

    #[test]
    fn an_evicted_pod_is_no_pod() {
        assert_eq!(seen(&pod(&json!({"phase": "Failed", "reason": "Evicted"}))), None);
    }
}
