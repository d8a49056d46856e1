//! What should be true of a run next. Pure and total: every observation has a plan, and every plan says when to look
//! again.
//!
//! The order is that of a run's life: what has ended is recorded, an end that was decided upon is finished, an attempt
//! under way goes on, and otherwise the next one starts.

mod deadline;
mod history;
mod live;
pub mod retention;
pub mod retry;
mod stop;
mod waiting;

use anneal_api::{
    count,
    resources::{CurrentAttempt, MAX_ATTEMPTS, RunPhase, StopReason, TrainingRunStatus, run_reason},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{PersistentVolumeClaim, Service},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use self::history::Published;
use super::{
    observe::Observed,
    status::{self, State},
    validate::{SpecError, ValidRun},
};
use crate::{
    context::{Settings, Transition},
    controller::Wake,
    progress::Target,
};

/// What should be true next.
#[derive(Debug)]
pub struct Plan {
    /// Jobs to delete, before anything is created.
    pub delete: Vec<Job>,
    /// What to create, in this order.
    pub create: Option<Start>,
    /// Whether to delete the run itself; then nothing else is done.
    pub delete_run: bool,
    /// The status to record.
    pub status: TrainingRunStatus,
    /// What to tell the owner.
    pub events: Vec<Transition>,
    /// The pod whose progress is worth reading.
    pub follow: Option<Target>,
    /// When to look again.
    pub wake: Wake,
}

impl Plan {
    /// A plan that changes nothing but the status.
    fn new(status: TrainingRunStatus, wake: Wake) -> Self {
        Self { delete: Vec::new(), create: None, delete_run: false, status, events: Vec::new(), follow: None, wake }
    }
}

/// An attempt to start: what its pods need first, its Job last.
#[derive(Debug)]
pub struct Start {
    /// The claim to write to, where the run has one made.
    pub claim: Option<PersistentVolumeClaim>,
    /// The Service under which several pods find each other.
    pub nodes: Option<Service>,
    /// The Job.
    pub job: Job,
}

/// A run's specification, or what is wrong with it. What has been started goes on and ends as it should also under one
/// that makes no sense; nothing starts.
type Checked<'a> = Result<&'a ValidRun, &'a SpecError>;

/// The plan for a run.
pub fn plan(seen: &Observed, run: Checked, settings: &Settings, now: Timestamp) -> Plan {
    let mut status = former(seen);
    // A run that has ended stays ended, whatever becomes of its Job: it must never train again.
    if is_over(&status) {
        return retention::plan(seen, status, now);
    }
    if let Some(published) = history::catch_up(&mut status, seen, now) {
        return succeeded(seen, status, published, now);
    }
    note_resumption(&mut status, seen, now);
    let mut plan = next(seen, run, settings, status, now);
    plan.delete.extend(outlived(seen, &plan.status));
    match run {
        Ok(_) => plan,
        Err(problem) => refused(seen, plan, problem, now),
    }
}

/// The same plan for a run whose specification makes no sense: unless it is being ended, it says so and waits for a change. One
/// that has not begun and cannot be changed in this is over.
fn refused(seen: &Observed, plan: Plan, problem: &SpecError, now: Timestamp) -> Plan {
    let is_stopping = plan.status.current_attempt.as_ref().is_some_and(|current| current.stop.is_some());
    let phase = plan.status.phase.unwrap_or(RunPhase::Pending);
    if is_stopping || phase.is_terminal() || phase == RunPhase::Suspended {
        return plan;
    }
    let status = TrainingRunStatus { conditions: former(seen).conditions, ..plan.status };
    if problem.is_final() && status.attempts.is_empty() && status.current_attempt.is_none() {
        let message = format!("{problem}. This does not change in a run: delete it, and create it as it is to be");
        let state = State::stalled(RunPhase::Failed, problem.reason(), message);
        return Plan { delete: plan.delete, ..conclude(seen, status, state, now, now) };
    }
    let state = State::stalled(phase, problem.reason(), problem.to_string());
    Plan { delete: plan.delete, follow: plan.follow, ..finish(seen, status, state, plan.wake, now) }
}

fn next(seen: &Observed, run: Checked, settings: &Settings, mut status: TrainingRunStatus, now: Timestamp) -> Plan {
    let Some(current) = status.current_attempt.clone().filter(|current| status.attempt >= Some(current.number)) else {
        return waiting::plan(seen, run, settings, status, now);
    };
    let job = seen.job(current.number);
    match (&current.stop, job) {
        (Some(stop), Some(job)) if stop.reason == StopReason::Replace && !stop::is_outdated(job, seen) => {
            // The new Job is there; only the status that tells of it was lost.
            let current = Box::new(CurrentAttempt { stop: None, ..*current });
            status.current_attempt = Some(current.clone());
            live::plan(seen, run, status, &current, job, now)
        }
        (Some(stop), None) if stop.reason == StopReason::Replace && seen.writers().is_empty() => {
            // Nothing ran: the attempt begins again under its number.
            status.current_attempt = None;
            status.attempt = status.attempts.last().map(|last| last.number);
            waiting::plan(seen, run, settings, status, now)
        }
        (Some(stop), _) => stop::go_on(seen, status, &current, stop, now),
        (None, Some(job)) => live::plan(seen, run, status, &current, job, now),
        (None, None) => {
            let waits = stop::waiting_for(seen, now);
            let text = format!("attempt {}: its Job was deleted before it ended{waits}", current.number);
            let state = State::working(RunPhase::Retrying, run_reason::POD_STOPPING, text);
            finish(seen, status, state, Wake::OnChange, now)
        }
    }
}

fn former(seen: &Observed) -> TrainingRunStatus {
    seen.run.status.clone().unwrap_or_default()
}

/// Whether a run has ended, and the status says so for good.
pub fn is_over(status: &TrainingRunStatus) -> bool {
    status.phase.is_some_and(RunPhase::is_terminal) && status.completion_time.is_some()
}

/// Whether somebody else suspended the Job; the operator never does, and never takes it back.
fn is_held_back(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// The active deadline counts anew from when a run goes on.
fn note_resumption(status: &mut TrainingRunStatus, seen: &Observed, now: Timestamp) {
    let was_idle = matches!(status.phase, Some(RunPhase::Suspending | RunPhase::Suspended));
    let current = status.current_attempt.as_ref();
    let job = current.and_then(|current| seen.job(current.number));
    let is_idle = seen.run.spec.suspend
        || job.is_some_and(is_held_back)
        || current.is_some_and(|current| current.stop.as_ref().is_some_and(|stop| stop.reason == StopReason::Suspend));
    if was_idle && !is_idle {
        status.resume_time = Some(Time(now));
    }
}

/// Jobs of attempts that the status no longer shows: hundreds of evictions must not leave hundreds of them.
fn outlived(seen: &Observed, status: &TrainingRunStatus) -> Vec<Job> {
    let oldest = status.attempts.first().map_or(0, |attempt| attempt.number);
    let is_full = status.attempts.len() == MAX_ATTEMPTS;
    let old = seen.jobs.iter().filter(|attempt| is_full && attempt.number < oldest);
    old.map(|attempt| attempt.job.clone()).filter(|job| job.metadata.deletion_timestamp.is_none()).collect()
}

fn succeeded(seen: &Observed, mut status: TrainingRunStatus, published: Published, now: Timestamp) -> Plan {
    let Published { result, end } = published;
    let message = match &result {
        Some(result) => format!(
            "{} published with accuracy {:.4}, after {} on {} images",
            result.checkpoint,
            result.metrics.accuracy,
            count::of(result.epochs, "epoch"),
            result.dataset.images
        ),
        None => "the Job is complete; its image reported no result".to_owned(),
    };
    let progress = result.as_ref().map(|result| Box::new(status::final_progress(&status, result, end)));
    status.progress = progress.or(status.progress);
    status.result = result;
    conclude(seen, status, State::complete(message), end, now)
}

/// The plan by which a run ends.
fn conclude(seen: &Observed, mut status: TrainingRunStatus, state: State, end: Timestamp, now: Timestamp) -> Plan {
    status.completion_time = Some(Time(end));
    let ttl = seen.run.spec.ttl_seconds_after_finished.map(jiff::SignedDuration::from_secs);
    let due = ttl.map(|ttl| Wake::At(end.checked_add(ttl).unwrap_or(Timestamp::MAX)));
    finish(seen, status, state, due.unwrap_or(Wake::Never), now)
}

fn finish(seen: &Observed, status: TrainingRunStatus, state: State, wake: Wake, now: Timestamp) -> Plan {
    let former = seen.run.status.clone().unwrap_or_default();
    let status = state.write_into(status, seen.run.metadata.generation, now);
    let events = status::transitions(&former, &status);
    Plan { events, ..Plan::new(status, wake) }
}

#[cfg(test)]
mod tests;
