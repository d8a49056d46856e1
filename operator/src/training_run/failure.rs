//! Why an attempt ended: the failure class from what its pods, their containers, its Job and its record say.

use anneal_api::{
    failure::{Failure, FailureClass},
    resources::{CurrentAttempt, Disruption, StopReason},
    termination::{RunResult, TerminationMessage},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, Pod},
};
use kube::ResourceExt;

use super::observe::{AttemptPod, Observed};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// The model is published. The result is absent where the image reports none.
    Succeeded(Option<Box<RunResult>>),
    /// It ended without a result.
    Failed {
        /// Why.
        failure: Box<Failure>,
        /// The container's exit code, where it came to one.
        exit_code: Option<i32>,
    },
}

/// Whether a condition of the Job is true.
pub fn job_is(job: &Job, kind: &str) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == kind && condition.status == "True"))
}

/// Whether the Job has come to its end.
pub fn job_has_ended(job: &Job) -> bool {
    job_is(job, "Complete") || job_is(job, "Failed")
}

/// How an attempt whose Job was made ended; `None` while it goes on, or while one of its pods may still write.
pub fn ending(seen: &Observed, current: &CurrentAttempt) -> Option<Ending> {
    let pods: Vec<&AttemptPod> = seen.pods(current.number).collect();
    let job = seen.job(current.number);
    let published = pods.iter().find_map(|pod| match said(&pod.pod) {
        Some(TerminationMessage::Result(result)) => Some(Ending::Succeeded(Some(Box::new(result)))),
        _ => None,
    });
    match job {
        Some(job) if job_is(job, "Complete") => Some(match (published, pods.is_empty()) {
            (Some(published), _) => published,
            (None, false) => Ending::Succeeded(None),
            // The next attempt finds the last checkpoint and publishes again, which costs a minute; a run without its
            // result could never be deployed.
            (None, true) => Ending::failed(
                Failure::new(
                    FailureClass::NodeLost,
                    "the Job is complete, but its pod is gone, and with it the result",
                ),
                None,
            ),
        }),
        Some(job) if job_is(job, "Failed") => Some(failed(current, &pods)),
        Some(_) => None,
        None if pods.iter().any(|pod| pod.is_writer()) => None,
        // The pod finished in the time that it had left: its model is published, whatever it was to be stopped for.
        None => Some(published.unwrap_or_else(|| failed(current, &pods))),
    }
}

impl Ending {
    fn failed(failure: Failure, exit_code: Option<i32>) -> Self {
        Self::Failed { failure: Box::new(failure), exit_code }
    }
}

fn failed(current: &CurrentAttempt, pods: &[&AttemptPod]) -> Ending {
    let ended = pods.iter().filter_map(|pod| Some((&pod.pod, terminated(&pod.pod)?)));
    // Of several nodes, the first to fail took the others with it; one that ended well has nothing to tell.
    let speaker = ended.filter(|(_, state)| state.exit_code != 0).min_by_key(|(_, state)| state.finished_at.clone());
    let words = speaker.and_then(|(pod, _)| said(pod));
    let own = match &words {
        Some(TerminationMessage::Failure(failure)) => Some(failure.clone()),
        _ => None,
    };
    let exit_code = speaker.map(|(_, state)| state.exit_code);
    let steps = |mut failure: Failure| {
        if let Some(own) = &own {
            (failure.step, failure.checkpoint_step, failure.resumed_from_step) =
                (own.step, own.checkpoint_step, own.resumed_from_step);
        }
        failure
    };
    // What the process itself found wrong stays the reason, also where it was asked to stop at the same time.
    if let Some(own) = own.clone().filter(|own| own.class.is_permanent()) {
        return Ending::failed(own, exit_code);
    }
    if let Some(stop) = &current.stop {
        let class = if stop.reason == StopReason::Replace { FailureClass::Suspended } else { stop.class };
        return Ending::failed(steps(Failure::new(class, &stop.message)), exit_code);
    }
    let disruption = current.disruption.clone().or_else(|| pods.iter().find_map(|pod| disruption(&pod.pod)));
    let was_killed = own.as_ref().is_none_or(|own| own.class == FailureClass::Interrupted);
    let was_oom = speaker.is_some_and(|(_, state)| state.reason.as_deref() == Some("OOMKilled"));
    if let Some(disruption) = disruption.filter(|_| was_killed && !was_oom) {
        return Ending::failed(steps(Failure::new(disruption.class, disruption.message)), exit_code);
    }
    let failure = match (own, speaker) {
        (_, Some(_)) if was_oom => Failure::new(
            FailureClass::OOMKilled,
            "the container was killed at its memory limit; raise podTemplate.resources.limits.memory, or set \
             microBatchSize, or else lower inputSize or batchSize",
        ),
        (Some(own), _) => own,
        (None, Some((pod, state))) => unexplained(pod, state),
        (None, None) => Failure::new(
            FailureClass::NodeLost,
            "the pod is gone without a word: it was deleted, or its node went away",
        ),
    };
    Ending::failed(failure, exit_code)
}

fn unexplained(pod: &Pod, state: &ContainerStateTerminated) -> Failure {
    let reason = state.reason.as_deref().filter(|reason| *reason != "Error");
    Failure::new(
        FailureClass::from_exit_code(state.exit_code),
        format!(
            "the container ended with exit code {}{}; see `kubectl logs {}`",
            state.exit_code,
            reason.map(|reason| format!(" ({reason})")).unwrap_or_default(),
            pod.name_any()
        ),
    )
}

/// How the pod's container ended, where it did.
pub fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.terminated.as_ref()
}

/// What the pod left behind, where it is one of our messages.
pub fn said(pod: &Pod) -> Option<TerminationMessage> {
    TerminationMessage::parse(terminated(pod)?.message.as_deref()?).ok()
}

/// Why the cluster takes a pod away, where it does: what its conditions say, or that somebody deletes it.
pub fn disruption(pod: &Pod) -> Option<Disruption> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let target = conditions.and_then(|all| {
        all.iter().find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
    });
    let told = |text: Option<&str>| text.map(|text| format!(": {text}")).unwrap_or_default();
    let new = |class, message| Some(Disruption { class, message });
    if let Some(target) = target {
        let why = told(target.message.as_deref());
        return match target.reason.as_deref() {
            Some("PreemptionByScheduler") => {
                new(FailureClass::Preempted, format!("the pod made room for one of a higher priority{why}"))
            }
            Some("DeletionByTaintManager" | "DeletionByPodGC") => {
                new(FailureClass::NodeLost, format!("the node of the pod went away{why}"))
            }
            _ => new(FailureClass::Evicted, format!("the pod was evicted{why}")),
        };
    }
    let why = told(status.and_then(|status| status.message.as_deref()));
    match status.and_then(|status| status.reason.as_deref()) {
        Some("Evicted") => new(FailureClass::Evicted, format!("the pod was evicted{why}")),
        Some("Preempting") => new(FailureClass::Preempted, format!("the pod was preempted{why}")),
        Some("NodeLost") => new(FailureClass::NodeLost, format!("the node of the pod went away{why}")),
        _ if pod.metadata.deletion_timestamp.is_some() => {
            new(FailureClass::Interrupted, "somebody deleted the pod".to_owned())
        }
        _ => None,
    }
}

/// Why a pod does not run yet, where something is in its way; the phase is Preparing all the while.
pub fn obstacle(pod: &Pod) -> Option<(FailureClass, String)> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).find_map(|waiting| {
        let detail = clause(waiting.message.as_deref());
        match waiting.reason.as_deref()? {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Some((
                FailureClass::ImagePull,
                format!("the image cannot be pulled ({detail}); check podTemplate.image and imagePullSecrets"),
            )),
            "CreateContainerConfigError" | "CreateContainerError" => {
                // A Secret or ConfigMap that is named but not there; the kubelet looks for it again and again.
                let todo = if detail.contains("not found") { "; create it, and the run goes on by itself" } else { "" };
                Some((FailureClass::BadConfig, format!("the container cannot be created: {detail}{todo}")))
            }
            _ => None,
        }
    });
    if waiting.is_some() {
        return waiting;
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let why = clause(unscheduled.message.as_deref());
    let lower = why.to_lowercase();
    Some(if lower.contains("persistentvolumeclaim") || lower.contains("volume node affinity") {
        (FailureClass::VolumeMissing, format!("a volume of the pod cannot be used: {why}"))
    } else {
        (FailureClass::Unschedulable, format!("no node takes the pod: {why}"))
    })
}

/// The words of the kubelet or the scheduler, to go on within a sentence of ours.
fn clause(message: Option<&str>) -> &str {
    message.unwrap_or_default().trim_end_matches(['.', ' '])
}
