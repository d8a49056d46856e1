//! Brings the record up to what was observed: what is known of the attempt under way, and each end of an attempt, once.

use anneal_api::{
    failure::{Failure, FailureClass},
    progress::Progress,
    resources::{Attempt, CurrentAttempt, MAX_ATTEMPTS, MAX_LOG, StopReason, TrainingRunStatus},
    termination::{RunResult, TerminationMessage, cut},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    super::{
        failure::{Ending, disruption, ending, job_has_ended, said, terminated},
        observe::{AttemptPod, Observed},
    },
    live, retry,
};
use crate::progress::Reading;

/// Longest message of an attempt that the schema takes, in bytes.
pub const MAX_MESSAGE: usize = 2048;
/// Longest name of an image that the schema takes, in bytes.
const MAX_IMAGE: usize = 512;

/// A run that has published its model.
pub struct Published {
    /// What it gave; absent where its image reports nothing.
    pub result: Option<RunResult>,
    /// When.
    pub end: Timestamp,
}

/// The attempt that is due next, or again.
pub fn due(number: i32, now: Timestamp) -> CurrentAttempt {
    CurrentAttempt {
        number,
        due_time: Time(now),
        running_time: None,
        node: None,
        resumed_from_step: None,
        disruption: None,
        stop: None,
    }
}

/// Writes into the status what was observed of every attempt that it does not yet show as ended, in the order of their
/// numbers.
pub fn catch_up(status: &mut TrainingRunStatus, seen: &Observed, now: Timestamp) -> Option<Published> {
    let newest = seen.jobs.last().map(|attempt| attempt.number);
    status.attempt = status.attempt.max(newest);
    let recorded = status.attempts.last().map_or(0, |attempt| attempt.number);
    // Old attempts are trimmed, while their Jobs stay: what is behind the newest record was recorded before.
    let newest = status.attempt.unwrap_or(0).max(status.current_attempt.as_ref().map_or(0, |current| current.number));
    for number in recorded + 1..=newest {
        let known = status.current_attempt.take().filter(|current| current.number == number);
        let created = seen.job(number).and_then(created);
        let mut current = known.unwrap_or_else(|| Box::new(due(number, created.unwrap_or(now))));
        let was_made = status.attempt.is_some_and(|made| number <= made);
        look_at(&mut current, seen, now);
        if status.start_time.is_none() {
            status.start_time = created.map(Time);
        }
        correct_former(status, &current, seen);
        let over = if was_made && !is_to_be_replaced(&current, seen) { ending(seen, &current) } else { None };
        let Some(ending) = over else {
            remember_progress(status, &current, seen);
            status.current_attempt = Some(current);
            break;
        };
        remember_progress(status, &current, seen);
        if let Some(published) = record(status, &current, ending, seen, now) {
            return Some(published);
        }
    }
    None
}

fn created(job: &Job) -> Option<Timestamp> {
    job.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// An attempt whose pod never ran is no attempt that ended: it is started again under its number.
fn is_to_be_replaced(current: &CurrentAttempt, seen: &Observed) -> bool {
    let replaces = current.stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Replace);
    replaces && current.running_time.is_none() && !seen.job(current.number).is_some_and(job_has_ended)
}

/// Keeps what the pods say, for the time when they are gone.
fn look_at(current: &mut CurrentAttempt, seen: &Observed, now: Timestamp) {
    if seen.job(current.number).is_some_and(super::is_held_back) {
        // A queue took the pods back; it gives them again, and they run anew.
        let stop = current.stop.take();
        *current = CurrentAttempt { stop, ..due(current.number, current.due_time.0) };
        return;
    }
    for AttemptPod { pod, .. } in seen.pods(current.number) {
        let node = pod.spec.as_ref().filter(|_| live::is_told(pod, now)).and_then(|spec| spec.node_name.clone());
        current.node = current.node.take().or(node);
        current.running_time = current.running_time.take().or_else(|| running_since(pod));
        let reason = disruption(pod);
        let is_told_more = reason.as_ref().is_some_and(|reason| reason.class != FailureClass::Interrupted);
        if current.disruption.is_none() || is_told_more {
            current.disruption = reason.or_else(|| current.disruption.take());
        }
        match said(pod) {
            Some(TerminationMessage::Failure(failure)) => {
                current.resumed_from_step = failure.resumed_from_step.or(current.resumed_from_step);
            }
            Some(TerminationMessage::Result(result)) => {
                current.resumed_from_step = result.resumed_from_step.or(current.resumed_from_step);
            }
            _ => {}
        }
    }
    if current.stop.is_some() {
        // The operator deletes the pod itself.
        current.disruption = None;
    }
    if let Some(disruption) = &mut current.disruption {
        disruption.message = cut(&disruption.message, MAX_MESSAGE);
    }
    if let (Reading::Said(progress), Some(_)) = (&seen.reading, &current.running_time) {
        current.resumed_from_step = progress.resumed_from_step.or(current.resumed_from_step);
    }
}

fn running_since(pod: &Pod) -> Option<Time> {
    let state = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?;
    let running = state.running.as_ref().and_then(|running| running.started_at.clone());
    running.or_else(|| state.terminated.as_ref().and_then(|terminated| terminated.started_at.clone()))
}

fn remember_progress(status: &mut TrainingRunStatus, current: &CurrentAttempt, seen: &Observed) {
    if current.running_time.is_some() {
        if let Reading::Said(progress) = &seen.reading {
            status.progress = Some(Box::new((**progress).clone().into()));
        }
        let image = seen.pods(current.number).find_map(|pod| {
            let containers = pod.pod.status.as_ref()?.container_statuses.as_ref()?;
            Some(containers.first()?.image_id.clone()).filter(|id| !id.is_empty())
        });
        status.image_id = image.map(|id| cut(&id, MAX_IMAGE)).or(status.image_id.take());
    }
}

/// What the former attempt lost is known for certain once its successor says where it went on from.
fn correct_former(status: &mut TrainingRunStatus, current: &CurrentAttempt, seen: &Observed) {
    if !matches!(seen.reading, Reading::Said(_)) || current.running_time.is_none() {
        return;
    }
    if let Some(former) = status.attempts.last_mut().filter(|former| former.class.is_some())
        && let Some(step) = former.step
    {
        former.steps_lost = Some(step.saturating_sub(current.resumed_from_step.unwrap_or(0)).max(0));
    }
}

/// Puts the end of an attempt into the record, and counts it where it failed.
fn record(
    status: &mut TrainingRunStatus,
    current: &CurrentAttempt,
    ending: Ending,
    seen: &Observed,
    now: Timestamp,
) -> Option<Published> {
    let number = current.number;
    let job = seen.job(number);
    let end = job.and_then(ended_at).or_else(|| seen.pods(number).filter_map(finished_at).max()).unwrap_or(now);
    let start_time = job.and_then(created).map(Time).or_else(|| Some(current.due_time.clone()));
    let mut attempt = Attempt {
        number,
        // A clock that was set back must not give an attempt a negative length.
        end_time: Time(start_time.as_ref().map_or(end, |start| end.max(start.0))),
        start_time,
        class: None,
        exit_code: Some(0),
        node: current.node.clone(),
        resumed_from_step: current.resumed_from_step,
        step: None,
        checkpoint_step: None,
        steps_lost: None,
        message: String::new(),
        log: None,
    };
    let published = match ending {
        Ending::Succeeded(result) => Some(Published { result: result.map(|boxed| *boxed), end: attempt.end_time.0 }),
        Ending::Failed { failure, exit_code } => {
            attempt.exit_code = exit_code;
            attempt.log = seen.log.as_deref().map(|log| tail(log, MAX_LOG));
            explain(&mut attempt, &failure, status.progress.as_ref().map(|progress| &progress.reported));
            if let Some(class) = attempt.class.filter(|class| *class != FailureClass::Suspended) {
                retry::count(&mut status.failures, class);
            }
            None
        }
    };
    push(status, attempt);
    published
}

/// Puts an attempt that could not even begin into the record.
pub fn record_unstarted(status: &mut TrainingRunStatus, current: &CurrentAttempt, failure: &Failure, now: Timestamp) {
    let attempt = Attempt {
        number: current.number,
        start_time: Some(current.due_time.clone()),
        end_time: Time(now.max(current.due_time.0)),
        class: Some(failure.class),
        exit_code: None,
        node: None,
        resumed_from_step: None,
        step: None,
        checkpoint_step: None,
        steps_lost: None,
        message: cut(&failure.message, MAX_MESSAGE),
        log: None,
    };
    retry::count(&mut status.failures, failure.class);
    status.attempt = status.attempt.max(Some(current.number));
    push(status, attempt);
}

fn push(status: &mut TrainingRunStatus, attempt: Attempt) {
    status.attempts.push(attempt);
    let surplus = status.attempts.len().saturating_sub(MAX_ATTEMPTS);
    status.attempts.drain(..surplus);
}

fn explain(attempt: &mut Attempt, failure: &Failure, progress: Option<&Progress>) {
    attempt.class = Some(failure.class);
    // Another image may write what it likes; the schema takes this much.
    attempt.message = cut(&failure.message, MAX_MESSAGE);
    attempt.step = failure.step.max(progress.map(|progress| progress.step));
    attempt.checkpoint_step = failure.checkpoint_step.max(progress.and_then(|progress| progress.checkpoint_step));
    let kept = attempt.checkpoint_step.max(attempt.resumed_from_step).unwrap_or(0);
    attempt.steps_lost = attempt.step.map(|step| step.saturating_sub(kept).max(0));
}

/// When the Job's last condition came; a restart of the operator must not move it.
fn ended_at(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0)
}

fn finished_at(pod: &AttemptPod) -> Option<Timestamp> {
    Some(terminated(&pod.pod)?.finished_at.as_ref()?.0)
}

/// The last `bytes` bytes of a text, from a character's boundary on.
fn tail(text: &str, bytes: usize) -> String {
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
