//! Why an attempt ended: the failure class from what the pod, its container and its Job say.

use anneal_api::{
    failure::{Failure, FailureClass},
    termination::{RunResult, TerminationMessage},
};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};

use super::observe::AttemptJob;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The Job is complete. The result is absent where the image reports none.
    Succeeded(Option<Box<RunResult>>),
    /// The Job failed.
    Failed {
        /// Why.
        failure: Failure,
        /// The container's exit code, where it came to one.
        exit_code: Option<i32>,
    },
}

/// How the attempt ended; `None` while it goes on.
pub fn ending(attempt: &AttemptJob) -> Option<Ending> {
    let conditions = attempt.job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is = |kind: &str| {
        conditions.and_then(|all| all.iter().find(|condition| condition.type_ == kind && condition.status == "True"))
    };
    let terminated = attempt.pod.as_ref().and_then(terminated);
    if is("Complete").is_some() {
        return Some(match (&attempt.pod, terminated.and_then(message)) {
            (_, Some(TerminationMessage::Result(result))) => Ending::Succeeded(Some(Box::new(result))),
            (Some(_), _) => Ending::Succeeded(None),
            // The next attempt finds the last checkpoint and publishes again, which costs a minute; a run without its
            // result could never be deployed.
            (None, _) => Ending::Failed {
                failure: Failure::new(
                    FailureClass::NodeLost,
                    "the Job is complete, but its pod is gone, and with it the result",
                ),
                exit_code: None,
            },
        });
    }
    let failed = is("Failed")?;
    let exit_code = terminated.map(|state| state.exit_code);
    let failure = if failed.reason.as_deref() == Some("DeadlineExceeded") {
        Failure::new(
            FailureClass::ActiveDeadline,
            "the attempt took longer than spec.activeDeadlineSeconds; raise it, or train less",
        )
    } else {
        failure(attempt.pod.as_ref(), terminated)
    };
    Some(Ending::Failed { failure, exit_code })
}

fn failure(pod: Option<&Pod>, terminated: Option<&ContainerStateTerminated>) -> Failure {
    let reason = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.reason.as_deref());
    let put_out = match reason {
        Some("Evicted") => Some((FailureClass::Evicted, "evicted")),
        Some("Preempting") => Some((FailureClass::Preempted, "preempted")),
        _ => None,
    };
    if let Some((class, how)) = put_out {
        let why = pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.message.clone());
        let why = why.unwrap_or_else(|| "the kubelet gave no reason".to_owned());
        return Failure::new(class, format!("the pod was {how}: {why}"));
    }
    match terminated {
        Some(state) if state.reason.as_deref() == Some("OOMKilled") => Failure::new(
            FailureClass::OOMKilled,
            "the container was killed at its memory limit; raise podTemplate.resources.limits.memory, \
                      or lower batchSize or inputSize",
        ),
        Some(state) => match message(state) {
            Some(TerminationMessage::Failure(failure)) => failure,
            _ => Failure::new(
                FailureClass::from_exit_code(state.exit_code),
                format!(
                    "the container ended with exit code {}{}; see `kubectl logs {}`",
                    state.exit_code,
                    state
                        .reason
                        .as_deref()
                        .filter(|reason| *reason != "Error")
                        .map(|r| format!(" ({r})"))
                        .unwrap_or_default(),
                    pod.and_then(|pod| pod.metadata.name.as_deref()).unwrap_or("POD")
                ),
            ),
        },
        None => Failure::new(
            FailureClass::NodeLost,
            "the pod is gone without a word: it was deleted, or its node went away",
        ),
    }
}

fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.terminated.as_ref()
}

fn message(state: &ContainerStateTerminated) -> Option<TerminationMessage> {
    TerminationMessage::parse(state.message.as_deref()?).ok()
}

/// Why a pod does not run yet, where something is in its way; the phase is Preparing or Pending all the while.
pub fn obstacle(pod: &Pod) -> Option<(FailureClass, String)> {
    let status = pod.status.as_ref()?;
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|container| container.state.as_ref().and_then(|state| state.waiting.as_ref()));
    if let Some(waiting) = waiting {
        let detail = waiting.message.clone().unwrap_or_default();
        return match waiting.reason.as_deref() {
            Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => Some((
                FailureClass::ImagePull,
                format!("the image cannot be pulled ({detail}); check podTemplate.image and imagePullSecrets"),
            )),
            Some("CreateContainerConfigError" | "CreateContainerError") => {
                Some((FailureClass::BadConfig, format!("the container cannot be created: {detail}")))
            }
            _ => None,
        };
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some((
        FailureClass::Unschedulable,
        format!("no node takes the pod: {}", unscheduled.message.clone().unwrap_or_default()),
    ))
}
