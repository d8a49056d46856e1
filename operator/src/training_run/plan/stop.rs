//! An attempt that is ended before its time, because the run is suspended, a deadline has passed, or its template
//! changed. The decision is in the status before anything is deleted, and stays there until the pods are really gone:
//! whatever dies in between, the next pass goes on, and a suspend that was taken back is finished first.

use anneal_api::{
    failure::FailureClass,
    resources::{CurrentAttempt, RunPhase, Stop, StopReason, TrainingRunStatus, run_reason},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{
    super::{objects, observe::Observed, status::State},
    Plan, finish,
};
use crate::controller::Wake;

/// How long a pod may outlive its grace period before its node counts as out of reach.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// How often an end that is under way is looked at, beside what the watches tell.
const LOOK: SignedDuration = SignedDuration::from_secs(15);

/// The end of an attempt because `spec.suspend` became true.
pub fn suspended(now: Timestamp) -> Stop {
    Stop {
        reason: StopReason::Suspend,
        class: FailureClass::Suspended,
        message: "the run was suspended".to_owned(),
        time: Time(now),
    }
}

/// The end of an attempt whose pod does not run yet, because `podTemplate` became another.
pub fn replaced(now: Timestamp) -> Stop {
    Stop {
        reason: StopReason::Replace,
        class: FailureClass::Suspended,
        message: "podTemplate changed before the pod ran".to_owned(),
        time: Time(now),
    }
}

/// Writes down that the attempt is to end. Nothing is deleted yet: first the status must say why.
pub fn begin(
    seen: &Observed,
    mut status: TrainingRunStatus,
    mut current: CurrentAttempt,
    stop: Stop,
    now: Timestamp,
) -> Plan {
    let state = state(seen, &current, &stop, now);
    current.stop = Some(stop);
    status.current_attempt = Some(Box::new(current));
    finish(seen, status, state, Wake::At(now), now)
}

/// Deletes the Job, and waits for its pods.
pub fn go_on(
    seen: &Observed,
    status: TrainingRunStatus,
    current: &CurrentAttempt,
    stop: &Stop,
    now: Timestamp,
) -> Plan {
    let state = state(seen, current, stop, now);
    let wake = Wake::At(now.checked_add(LOOK).unwrap_or(now));
    let mut plan = finish(seen, status, state, wake, now);
    plan.delete.extend(seen.job(current.number).filter(|job| is_staying(job)).cloned());
    plan
}

fn is_staying(job: &Job) -> bool {
    job.metadata.deletion_timestamp.is_none()
}

/// Whether the attempt's Job is the one that was to be replaced, and not the new one of its name.
pub fn is_outdated(job: &Job, seen: &Observed) -> bool {
    let made_from = job.metadata.annotations.as_ref().and_then(|all| all.get(objects::TEMPLATE_DIGEST));
    made_from.is_some_and(|digest| *digest != objects::template_digest(&seen.run.spec.pod_template))
}

fn state(seen: &Observed, current: &CurrentAttempt, stop: &Stop, now: Timestamp) -> State {
    let (number, waits) = (current.number, waiting_for(seen, now));
    match stop.reason {
        StopReason::Suspend => State::working(
            RunPhase::Suspending,
            run_reason::SUSPENDING,
            format!("attempt {number}: the trainer writes a checkpoint and ends{waits}"),
        ),
        StopReason::Replace => State::working(
            RunPhase::Preparing,
            run_reason::POD_TEMPLATE_CHANGED,
            format!("attempt {number}: podTemplate changed, so the pod is started again{waits}"),
        ),
        StopReason::Deadline => {
            let phase = if current.running_time.is_some() { RunPhase::Running } else { RunPhase::Preparing };
            State::working(
                phase,
                stop.class.as_str(),
                format!("attempt {number}: {}; it is ended{waits}", stop.message),
            )
        }
    }
}

/// What to say about pods that have not stopped.
pub fn waiting_for(seen: &Observed, now: Timestamp) -> String {
    match seen.pods.iter().find(|attempt| attempt.is_writer()) {
        Some(attempt) => match out_of_reach(&attempt.pod, now) {
            Some(text) => format!("; {text}"),
            None => format!("; waiting for pod {}", attempt.pod.name_any()),
        },
        None => String::new(),
    }
}

/// When a pod that is being deleted should have stopped.
pub fn gone_by(pod: &Pod) -> Option<Timestamp> {
    // The API server sets it to the end of the grace period.
    pod.metadata.deletion_timestamp.as_ref()?.0.checked_add(PATIENCE).ok()
}

/// What to do about a pod that should have stopped: its node does not answer, and it may still write.
pub fn out_of_reach(pod: &Pod, now: Timestamp) -> Option<String> {
    (now >= gone_by(pod)?).then(|| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("of the pod");
        format!(
            "node {node} does not answer, and pod {} may still write: no other may start. It goes on when the node is \
             back; if the node is off for good, `kubectl delete node {node}`, or taint it \
             node.kubernetes.io/out-of-service=nodeshutdown:NoExecute",
            pod.name_any()
        )
    })
}
