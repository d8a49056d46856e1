//! What should be true of a run next. Pure and total: every observation has a plan, and every plan says when to look
//! again.

use std::time::Duration;

use anneal_api::{
    failure::FailureClass,
    resources::{Attempt, MAX_ATTEMPTS, ProgressStatus, RunPhase, TrainingRunStatus},
    termination::{RunResult, cut},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    claim::Claim,
    failure::{Ending, ending, obstacle},
    nodes, objects,
    observe::{AttemptJob, Observed},
    output,
    status::{self, State},
    validate::{SpecError, ValidRun},
};
use crate::{
    context::{Settings, Transition},
    controller::Wake,
    progress::Target,
};

/// First pause before a retry; it doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest message of an attempt that the schema takes, in bytes.
const MAX_MESSAGE: usize = 2048;
/// Longest pause before a retry.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// What should be true next.
#[derive(Debug)]
pub struct Plan {
    /// What to create, in this order.
    pub create: Option<Start>,
    /// The status to record.
    pub status: TrainingRunStatus,
    /// What to tell the owner.
    pub events: Vec<Transition>,
    /// The pod whose progress is worth reading.
    pub follow: Option<Target>,
    /// When to look again.
    pub wake: Wake,
}

/// An attempt to start: what its pods need first, its Job last.
#[derive(Debug)]
pub struct Start {
    /// The claim to write to, where the run has one made.
    pub claim: Option<PersistentVolumeClaim>,
    /// The Service under which several pods find each other.
    pub nodes: Option<Service>,
    /// The trainer's configuration.
    pub config: ConfigMap,
    /// The Job.
    pub job: Job,
}

/// The plan for a run whose specification makes no sense: it says so and waits for a change.
pub fn refuse(seen: &Observed, problem: &SpecError, now: Timestamp) -> Plan {
    let state = State::waiting(RunPhase::Failed, problem.reason(), problem.to_string());
    finish(seen, former(seen), state, None, Wake::Never, now)
}

/// The plan for a run.
pub fn plan(seen: &Observed, run: &ValidRun, settings: &Settings, now: Timestamp) -> Plan {
    let mut status = former(seen);
    if let Some(phase) = status.phase.filter(|phase| phase.is_terminal()) {
        // A run that has ended stays ended, whatever becomes of its Job: it must never train again.
        if phase == RunPhase::Succeeded || !refused(&status) {
            return keep(seen, status);
        }
    }
    record_attempts(&mut status, &seen.jobs, now);
    let first = || seen.jobs.first().and_then(|attempt| attempt.job.metadata.creation_timestamp.clone());
    status.start_time = status.start_time.or_else(first);
    if let Some(newest) = seen.jobs.last().filter(|newest| status.attempt.is_none_or(|known| newest.number >= known)) {
        status.attempt = Some(newest.number);
        match ending(newest) {
            None => return going_on(seen, status, newest, now),
            Some(Ending::Succeeded(result)) => return succeeded(seen, status, newest, result.map(|boxed| *boxed), now),
            Some(Ending::Failed { .. }) => {}
        }
    }
    match status.attempts.last().cloned() {
        None => start(seen, run, settings, status, 1, now),
        Some(last) => failed(seen, run, settings, status, &last, now),
    }
}

fn former(seen: &Observed) -> TrainingRunStatus {
    seen.run.status.clone().unwrap_or_default()
}

/// Whether the run failed only because its specification was refused; then nothing was ever started.
fn refused(status: &TrainingRunStatus) -> bool {
    status.attempt.is_none() && status.completion_time.is_none()
}

fn keep(seen: &Observed, mut status: TrainingRunStatus) -> Plan {
    status.observed_generation = seen.run.metadata.generation;
    for condition in &mut status.conditions {
        condition.observed_generation = seen.run.metadata.generation;
    }
    Plan { create: None, status, events: Vec::new(), follow: None, wake: Wake::Never }
}

/// Puts every attempt that ended into the status, once, in the order of their numbers.
fn record_attempts(status: &mut TrainingRunStatus, jobs: &[AttemptJob], now: Timestamp) {
    let recorded = status.attempts.last().map_or(0, |attempt| attempt.number);
    // Old ones are trimmed below, while their Jobs stay: what is behind the newest record was recorded before.
    for attempt in jobs.iter().filter(|attempt| attempt.number > recorded) {
        let Some(end) = ending(attempt) else { continue };
        let (class, exit_code, message) = match end {
            Ending::Succeeded(_) => (None, Some(0), String::new()),
            Ending::Failed { failure, exit_code } => (Some(failure.class), exit_code, failure.message),
        };
        status.attempts.push(Attempt {
            number: attempt.number,
            start_time: attempt.job.metadata.creation_timestamp.clone(),
            end_time: Time(ended_at(attempt).unwrap_or(now)),
            class,
            exit_code,
            node: attempt.pod.as_ref().and_then(|pod| pod.spec.as_ref()).and_then(|spec| spec.node_name.clone()),
            // Another image may write what it likes; the schema takes this much.
            message: cut(&message, MAX_MESSAGE),
        });
    }
    let newest = jobs.last().map_or(0, |attempt| attempt.number);
    let recorded = status.attempts.last().map_or(0, |attempt| attempt.number);
    if let Some(lost) = status.attempt.filter(|known| *known > newest && *known > recorded) {
        status.attempts.push(Attempt {
            number: lost,
            start_time: None,
            end_time: Time(now),
            class: Some(FailureClass::Interrupted),
            exit_code: None,
            node: None,
            message: "its Job was deleted before it ended".to_owned(),
        });
    }
    let surplus = status.attempts.len().saturating_sub(MAX_ATTEMPTS);
    status.attempts.drain(..surplus);
}

/// When the Job's last condition came; a restart of the operator must not move it.
fn ended_at(attempt: &AttemptJob) -> Option<Timestamp> {
    let conditions = attempt.job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0)
}

fn start(
    seen: &Observed,
    run: &ValidRun,
    settings: &Settings,
    status: TrainingRunStatus,
    attempt: i32,
    now: Timestamp,
) -> Plan {
    if !seen.writers.is_empty() {
        let pods = seen.writers.join(", ");
        let text = format!("attempt {attempt} waits until pod {pods} has stopped: only one pod may write at a time");
        let state = State::working(RunPhase::Retrying, "PodStopping", text);
        return finish(seen, status, state, None, Wake::OnChange, now);
    }
    let claims = [("output", Some(&seen.output)), ("dataset", seen.dataset.as_ref())];
    for (role, claim) in claims {
        if let Some(state) = claim.and_then(|claim| waiting_for(role, claim)) {
            return finish(seen, status, state, None, Wake::OnChange, now);
        }
    }
    let config = match objects::config_map(&seen.run, run) {
        Ok(config) => config,
        Err(problem) => {
            let state = State::waiting(RunPhase::Failed, "InvalidConfiguration", problem.to_string());
            return finish(seen, status, state, None, Wake::Never, now);
        }
    };
    let start = Start {
        claim: output::claim(&seen.run).filter(|_| seen.output == Claim::ToCreate),
        nodes: nodes::service(&seen.run, run),
        config,
        job: objects::job(&seen.run, run, attempt, settings),
    };
    let mut status = status;
    status.attempt = Some(attempt);
    status.progress = None;
    let state = State::working(RunPhase::Preparing, "JobCreated", format!("attempt {attempt}: the Job is created"));
    finish(seen, status, state, Some(start), Wake::OnChange, now)
}

fn waiting_for(role: &str, claim: &Claim) -> Option<State> {
    let (reason, message) = claim.obstacle(role)?;
    Some(State::waiting(RunPhase::Pending, reason, message))
}

fn going_on(seen: &Observed, mut status: TrainingRunStatus, newest: &AttemptJob, now: Timestamp) -> Plan {
    let number = newest.number;
    let Some(pod) = &newest.pod else {
        let state = State::working(RunPhase::Preparing, "JobCreated", format!("attempt {number}: waiting for the pod"));
        return finish(seen, status, state, None, Wake::OnChange, now);
    };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if let Some("Running" | "Succeeded" | "Failed") = phase {
        if let Some(progress) = &seen.progress {
            status.progress = Some(ProgressStatus::from(progress.clone()));
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let state = State::working(RunPhase::Running, "Training", format!("attempt {number} runs on node {node}"));
        let mut plan = finish(seen, status, state, None, Wake::OnChange, now);
        // A pod that has ended answers no more; the Job follows within seconds.
        plan.follow = target(pod).filter(|_| phase == Some("Running"));
        return plan;
    }
    let state = match obstacle(pod) {
        Some((class, message)) => State::waiting(
            RunPhase::Preparing,
            class.as_str(),
            format!(
                "attempt {number}: {message}. After a change of podTemplate, `kubectl delete job {}` starts the next attempt with it",
                newest.job.metadata.name.as_deref().unwrap_or("JOB")
            ),
        ),
        None => State::working(RunPhase::Preparing, "PodStarting", format!("attempt {number}: the pod starts")),
    };
    finish(seen, status, state, None, Wake::OnChange, now)
}

fn target(pod: &Pod) -> Option<Target> {
    Some(Target {
        namespace: pod.metadata.namespace.clone()?,
        pod: pod.metadata.name.clone()?,
        address: pod.status.as_ref()?.pod_ip.clone()?,
    })
}

fn succeeded(
    seen: &Observed,
    mut status: TrainingRunStatus,
    newest: &AttemptJob,
    result: Option<RunResult>,
    now: Timestamp,
) -> Plan {
    let end = ended_at(newest).unwrap_or(now);
    let message = match &result {
        Some(result) => format!(
            "{} published with accuracy {:.4}, after {} epochs on {} images",
            result.checkpoint, result.metrics.accuracy, result.epochs, result.dataset.images
        ),
        None => "the Job is complete; its image reported no result".to_owned(),
    };
    status.progress = result.as_ref().map_or(status.progress, |result| Some(status::final_progress(seen, result, end)));
    status.image_id = newest
        .pod
        .as_ref()
        .and_then(|pod| pod.status.as_ref())
        .and_then(|status| status.container_statuses.as_ref())
        .and_then(|all| all.first())
        .map(|container| container.image_id.clone());
    status.result = result;
    status.completion_time = Some(Time(end));
    finish(seen, status, State::complete(message), None, Wake::Never, now)
}

/// What follows the failure of the newest attempt.
fn failed(
    seen: &Observed,
    run: &ValidRun,
    settings: &Settings,
    mut status: TrainingRunStatus,
    last: &Attempt,
    now: Timestamp,
) -> Plan {
    let (number, end, message) = (last.number, last.end_time.0, &last.message);
    let class = last.class.unwrap_or(FailureClass::AppError);
    if class.is_permanent() || number > run.spec.max_retries {
        let rest = if class.is_permanent() {
            "; the same would happen again, so it is not retried"
        } else if run.spec.max_retries == 0 {
            "; spec.maxRetries is 0"
        } else {
            "; every retry is used up"
        };
        status.completion_time = Some(Time(end));
        let state = State::failed(class, format!("attempt {number}: {message}{rest}"));
        return finish(seen, status, state, None, Wake::Never, now);
    }
    let due = end.checked_add(pause(number)).unwrap_or(end);
    if now < due {
        let text = format!("attempt {number} failed ({}): {message}; the next one starts at {due:.0}", class.as_str());
        let state = State::working(RunPhase::Retrying, class.as_str(), text);
        return finish(seen, status, state, None, Wake::At(due), now);
    }
    start(seen, run, settings, status, number + 1, now)
}

/// The pause after the failure of an attempt: 10 s, doubled with each one, at most 5 min.
pub fn pause(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 10) - 1).unwrap_or(0);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

fn finish(
    seen: &Observed,
    status: TrainingRunStatus,
    state: State,
    create: Option<Start>,
    wake: Wake,
    now: Timestamp,
) -> Plan {
    let former = seen.run.status.clone().unwrap_or_default();
    let status = state.write_into(status, seen.run.metadata.generation, now);
    let events = status::transitions(&former, &status);
    Plan { create, status, events, follow: None, wake }
}

#[cfg(test)]
mod tests;
