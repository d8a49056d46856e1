//! The three deadlines of a run. Each is derived from times in the status or of the objects, so that a restart of the
//! operator moves none.

use anneal_api::{
    failure::FailureClass,
    resources::{CurrentAttempt, Stop, StopReason, TrainingRunSpec, TrainingRunStatus},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time};

use super::super::{failure::obstacle, observe::Observed};
use crate::progress::Reading;

/// How often a pod is asked where there are not too many.
const ASK_SECONDS: i64 = 10;

fn after(start: Timestamp, seconds: i64) -> Timestamp {
    start.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// When the run has been active for too long; `None` where it may take as long as it likes, or has not begun.
pub fn active(spec: &TrainingRunSpec, status: &TrainingRunStatus) -> Option<Timestamp> {
    let start = status.resume_time.as_ref().max(status.start_time.as_ref())?;
    Some(after(start.0, spec.active_deadline_seconds?))
}

/// What ends a run that has been active for too long.
pub fn active_message(spec: &TrainingRunSpec) -> String {
    format!(
        "the run was active for longer than spec.activeDeadlineSeconds ({} s); raise it, or train less",
        spec.active_deadline_seconds.unwrap_or_default()
    )
}

/// When an attempt's pod must run. A Job that a queue held back has until then only from when it was let go.
pub fn start(spec: &TrainingRunSpec, current: &CurrentAttempt, job: Option<&Job>) -> Timestamp {
    let let_go = job.and_then(|job| job.status.as_ref()).and_then(|status| status.start_time.as_ref());
    after(let_go.max(Some(&current.due_time)).unwrap_or(&current.due_time).0, spec.start_deadline_seconds)
}

/// When a silent trainer counts as stalled. `None` where no heartbeat is asked for, or nobody has listened yet: an
/// operator that was away must not take its own absence for the trainer's.
pub fn progress(spec: &TrainingRunSpec, current: &CurrentAttempt, seen: &Observed) -> Option<Timestamp> {
    let seconds = spec.progress_deadline_seconds?;
    let started = current.running_time.as_ref()?.0;
    let heartbeat = match &seen.reading {
        Reading::Said(progress) => progress.last_update_time.max(started),
        Reading::Silent => {
            let recorded = seen.run.status.as_ref().and_then(|status| status.progress.as_ref());
            recorded.map_or(started, |progress| progress.reported.last_update_time.max(started))
        }
        Reading::Unknown => return None,
    };
    Some(after(heartbeat, seconds))
}

/// Whether a trainer stood still until `limit`. It must have been asked since: with thousands of runs each one's turn comes
/// seldom, and a deadline shorter than that pause would end trainers that go on.
pub fn has_stalled(limit: Timestamp, seen: &Observed, now: Timestamp) -> bool {
    now >= limit && seen.asked.is_some_and(|asked| asked >= limit)
}

/// When to look whether it has; again and again once the deadline is over, until it was asked.
pub fn look_at_progress(limit: Timestamp, now: Timestamp) -> Timestamp {
    if now < limit { limit } else { after(now, ASK_SECONDS) }
}

/// The end of an attempt that a deadline has caught.
pub fn stop(class: FailureClass, message: String, now: Timestamp) -> Stop {
    Stop { reason: StopReason::Deadline, class, message, time: Time(now) }
}

/// The end of an attempt whose pod did not run in time, with the class of what was in its way.
pub fn not_started(spec: &TrainingRunSpec, current: &CurrentAttempt, seen: &Observed, now: Timestamp) -> Stop {
    let pod = seen.pods(current.number).find(|pod| !pod.gone).map(|pod| &pod.pod);
    let (class, why) = pod.and_then(obstacle).unwrap_or_else(|| {
        let pod = pod.and_then(|pod| pod.metadata.name.clone());
        let look = pod.map_or_else(
            || "its Job has made no pod; see `kubectl describe job`".to_owned(),
            |pod| format!("see `kubectl describe pod {pod}`: a volume may not be mountable"),
        );
        (FailureClass::StartDeadline, look)
    });
    let seconds = spec.start_deadline_seconds;
    stop(class, format!("the pod did not run within spec.startDeadlineSeconds ({seconds} s): {why}"), now)
}

/// The end of an attempt whose trainer stands still.
pub fn stalled(spec: &TrainingRunSpec, now: Timestamp) -> Stop {
    let seconds = spec.progress_deadline_seconds.unwrap_or_default();
    let message = format!(
        "the trainer did not move for spec.progressDeadlineSeconds ({seconds} s); see its log, or raise the deadline"
    );
    stop(FailureClass::Stalled, message, now)
}
