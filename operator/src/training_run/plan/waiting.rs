//! Between two attempts, and before the first: what an attempt waits for, and how it begins.

use anneal_api::{
    failure::{Failure, FailureClass},
    resources::{RunPhase, TrainingRunStatus, run_reason},
};
use jiff::{SignedDuration, Timestamp};

use super::{
    super::{
        claim::Claim, failure::job_has_ended, init::Init, nodes, objects, observe::Observed, output, status::State,
        validate::ValidRun,
    },
    Checked, Plan, Start, deadline, finish, history, live,
    retry::{LONGEST_PAUSE, Verdict, verdict},
    stop,
};
use crate::{context::Settings, controller::Wake};

/// How soon to look again whether the run that this one begins with has published its model.
const LOOK: SignedDuration = SignedDuration::from_secs(10);

/// The plan while no attempt is under way.
pub fn plan(seen: &Observed, run: Checked, settings: &Settings, mut status: TrainingRunStatus, now: Timestamp) -> Plan {
    let spec = &seen.run.spec;
    let verdict = status.attempts.last().map(|last| (last.clone(), verdict(spec, &status, last)));
    if let Some((last, Verdict::Fail(rest))) = &verdict {
        let class = last.class.unwrap_or(FailureClass::AppError);
        let message = format!("attempt {}: {}{rest}", last.number, last.message);
        return failed(seen, status, class, message, last.end_time.0, now);
    }
    if spec.suspend {
        status.current_attempt = None;
        let text = "nothing runs; set spec.suspend to false, and the run goes on from its last checkpoint";
        return finish(
            seen,
            status,
            State::waiting(RunPhase::Suspended, run_reason::SUSPENDED, text.to_owned()),
            Wake::OnChange,
            now,
        );
    }
    let limit = deadline::active(spec, &status);
    if limit.is_some_and(|limit| now >= limit) {
        let message = deadline::active_message(spec);
        return failed(seen, status, FailureClass::ActiveDeadline, message, now, now);
    }
    let mut plan = match verdict {
        Some((last, Verdict::Retry(due))) if is_pausing(due, now) => {
            let class = last.class.unwrap_or(FailureClass::AppError).as_str();
            let text =
                format!("attempt {} failed ({class}): {}; the next one starts at {due:.0}", last.number, last.message);
            finish(seen, status, State::working(RunPhase::Retrying, class, text), Wake::At(due), now)
        }
        _ => match run {
            Ok(run) => begin(seen, run, settings, status, now),
            Err(problem) => {
                let state = State::stalled(RunPhase::Pending, problem.reason(), problem.to_string());
                finish(seen, status, state, Wake::OnChange, now)
            }
        },
    };
    if let Some(limit) = limit {
        plan.wake = plan.wake.or_at(limit);
    }
    plan
}

/// Whether the next attempt is not due yet. One that is further away than any pause is only so because the clock was set
/// back; it is due.
fn is_pausing(due: Timestamp, now: Timestamp) -> bool {
    now < due && due.duration_since(now).unsigned_abs() <= LONGEST_PAUSE
}

fn failed(
    seen: &Observed,
    mut status: TrainingRunStatus,
    class: FailureClass,
    message: String,
    end: Timestamp,
    now: Timestamp,
) -> Plan {
    status.current_attempt = None;
    super::conclude(seen, status, State::failed(class, message), end, now)
}

/// Starts the next attempt, once everything that it needs is there.
fn begin(seen: &Observed, run: &ValidRun, settings: &Settings, mut status: TrainingRunStatus, now: Timestamp) -> Plan {
    let number = status.attempts.last().map_or(1, |last| last.number + 1);
    let is_live = |number: i32| seen.job(number).is_some_and(|job| !job_has_ended(job));
    let writers = seen.writers();
    if !writers.is_empty() || seen.jobs.iter().any(|attempt| is_live(attempt.number)) {
        let waits = stop::waiting_for(seen, now);
        let text =
            format!("attempt {number} waits until the one before has stopped: one pod may write at a time{waits}");
        let state = State::working(RunPhase::Retrying, run_reason::POD_STOPPING, text);
        return finish(seen, status, state, Wake::OnChange, now);
    }
    let init = match &seen.init {
        Init::Random => None,
        Init::Pinned(claim) => claim.as_ref(),
        Init::Found(checkpoint) => {
            let text = format!("the run begins with {} on claim {}", checkpoint.path, checkpoint.claim_name);
            status.init_from = Some(checkpoint.clone());
            let state = State::working(RunPhase::Pending, run_reason::INIT_FOUND, text);
            return finish(seen, status, state, Wake::At(now), now);
        }
        // The attempt is not due yet, so that no deadline counts.
        Init::Waiting(reason, message) => {
            let state = State::waiting(RunPhase::Pending, reason, message.clone());
            return finish(seen, status, state, Wake::At(now.checked_add(LOOK).unwrap_or(now)), now);
        }
    };
    let current = status.current_attempt.take().filter(|current| current.number == number && current.stop.is_none());
    let current = current.unwrap_or_else(|| Box::new(history::due(number, now)));
    let limit = deadline::start(&run.spec, &current, None);
    let claims = [("output", Some(&seen.output)), ("dataset", seen.dataset.as_ref()), ("initFrom", init)];
    for (role, claim) in claims {
        let Some((reason, message)) = claim.and_then(|claim| claim.obstacle(role)) else { continue };
        if now >= limit {
            let seconds = run.spec.start_deadline_seconds;
            let text = format!("{message}; it was not there within spec.startDeadlineSeconds ({seconds} s)");
            let failure = Failure::new(FailureClass::VolumeMissing, text);
            history::record_unstarted(&mut status, &current, &failure, now);
            return plan(seen, Ok(run), settings, status, now);
        }
        status.current_attempt = Some(current);
        let state = State::waiting(RunPhase::Pending, reason, message);
        return finish(seen, status, state, Wake::At(limit), now);
    }
    let config = match objects::config(run) {
        Ok(config) => config,
        Err(problem) => {
            let message = problem.to_string();
            let state = State::stalled(RunPhase::Pending, run_reason::INVALID_CONFIGURATION, message);
            return finish(seen, status, state, Wake::OnChange, now);
        }
    };
    status.config_sha256 = Some(objects::config_digest(&config));
    let start = Start {
        claim: output::claim(&seen.run).filter(|_| seen.output == Claim::ToCreate),
        nodes: nodes::service(&seen.run, run),
        job: objects::job(&seen.run, run, number, config, settings),
    };
    status.attempt = Some(number);
    status.current_attempt = Some(current);
    status.progress = None;
    let mut plan = finish(seen, status, live::created(number), Wake::At(limit), now);
    plan.create = Some(start);
    plan
}
