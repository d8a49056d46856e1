//! What should be true of a schedule next. Pure and total: every observation has a plan, and every plan says when to
//! look again.

use std::time::Duration;

use anneal_api::{
    names::label,
    resources::{ConcurrencyPolicy, CronTrainingRunStatus, MAX_ACTIVE_RUNS, RunPhase, TrainingRun},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    observe::Observed,
    schedule::{Due, MAX_COUNTED},
    status::{self, State},
    validate::{CronError, ValidCron},
};
use crate::{
    context::Transition,
    controller::Wake,
    runs::{self, is_leaving, is_over, phase},
};

/// How soon to try again what somebody else has to make way for.
const BLOCKED: Duration = Duration::from_secs(15);

/// What should be true next.
#[derive(Debug)]
pub struct Plan {
    /// The run to create.
    pub start: Option<TrainingRun>,
    /// Runs to delete: replaced ones, and history.
    pub delete: Vec<TrainingRun>,
    /// The status to record.
    pub status: CronTrainingRunStatus,
    /// What to tell the owner.
    pub events: Vec<Transition>,
    /// Starts that came to nothing since the last plan.
    pub missed: u32,
    /// When to look again.
    pub wake: Wake,
}

/// The plan for a schedule that makes no sense: it says so and waits for a change.
pub fn refuse(seen: &Observed, problem: &CronError, now: Timestamp) -> Plan {
    let mut status = watched(seen);
    status.next_schedule_time = None;
    let state = State::Stalled(problem.reason(), problem.to_string());
    finish(seen, Plan { wake: Wake::OnChange, ..nothing(status) }, state, now)
}

/// The plan for a schedule.
pub fn plan(seen: &Observed, cron: &ValidCron, now: Timestamp) -> Plan {
    let mut plan = nothing(watched(seen));
    plan.delete = history(seen, cron);
    if cron.spec.suspend {
        plan.status.next_schedule_time = None;
        return finish(seen, plan, State::Suspended, now);
    }
    let next = cron.schedule.next(now);
    plan.status.next_schedule_time = next.map(Time);
    plan.wake = next.map_or(Wake::OnChange, Wake::At);
    let state = match cron.schedule.due(considered(seen), now) {
        Some(due) => act(seen, cron, &mut plan, due, now),
        None => scheduled(next),
    };
    finish(seen, plan, state, now)
}

impl Plan {
    /// The same where the run could not be created, for a reason that somebody has to mend: the start stays due.
    #[must_use]
    pub fn blocked(mut self, seen: &Observed, reason: &'static str, message: String, now: Timestamp) -> Self {
        let next = self.status.next_schedule_time.take();
        self.status = CronTrainingRunStatus { next_schedule_time: next, ..watched(seen) };
        self.events.clear();
        // Nothing takes the place of what was to be replaced.
        self.delete.retain(is_over);
        (self.start, self.missed) = (None, 0);
        self.wake = self.wake.or_at(now.checked_add(BLOCKED).unwrap_or(now));
        finish(seen, self, State::Stalled(reason, message), now)
    }
}

fn nothing(status: CronTrainingRunStatus) -> Plan {
    Plan { start: None, delete: Vec::new(), status, events: Vec::new(), missed: 0, wake: Wake::OnChange }
}

/// The recorded status with what the runs say now.
fn watched(seen: &Observed) -> CronTrainingRunStatus {
    let mut status = seen.cron.status.clone().unwrap_or_default();
    let succeeded = seen.runs.iter().filter(|run| phase(run) == Some(RunPhase::Succeeded));
    let ends = succeeded.filter_map(|run| run.status.as_ref()?.completion_time.clone());
    status.last_successful_time = ends.chain(status.last_successful_time.take()).max_by_key(|end| end.0);
    goes_on(&mut status, seen.runs.iter().filter(|run| !is_over(run)).map(ResourceExt::name_any).collect());
    status
}

fn goes_on(status: &mut CronTrainingRunStatus, mut names: Vec<String>) {
    names.sort();
    status.active = Some(i32::try_from(names.len()).unwrap_or(i32::MAX));
    names.drain(..names.len().saturating_sub(MAX_ACTIVE_RUNS));
    status.active_runs = names;
}

/// Up to when every start was either run or missed.
fn considered(seen: &Observed) -> Timestamp {
    let status = seen.cron.status.as_ref();
    let times = [
        seen.cron.metadata.creation_timestamp.as_ref(),
        status.and_then(|status| status.last_schedule_time.as_ref()),
        status.and_then(|status| status.last_missed_time.as_ref()),
    ];
    times.into_iter().flatten().map(|time| time.0).max().unwrap_or(Timestamp::UNIX_EPOCH)
}

fn scheduled(next: Option<Timestamp>) -> State {
    State::Scheduled(match next {
        Some(next) => format!("the next run starts at {next}"),
        None => "no further run starts: the schedule has come to its end".to_owned(),
    })
}

/// What follows from a start that is due.
fn act(seen: &Observed, cron: &ValidCron, plan: &mut Plan, due: Due, now: Timestamp) -> State {
    let Due { newest, older } = due;
    let next = plan.status.next_schedule_time.as_ref().map(|next| next.0);
    let latest = cron.starting_deadline.and_then(|deadline| newest.checked_add(deadline).ok());
    if let Some(latest) = latest.filter(|latest| now > *latest) {
        plan.status.last_missed_time = Some(Time(newest));
        plan.missed = older.saturating_add(1);
        let note = format!(
            "{} missed; the newest, of {newest}, had to start by {latest} (spec.startingDeadlineSeconds)",
            starts(plan.missed, "was", "were")
        );
        plan.events.push(Transition::warning("MissedSchedule", note));
        return scheduled(next);
    }
    let name = cron.run_name(newest);
    // One that is there already was made by an operator that ended before it could say so.
    let is_made = seen.runs.iter().any(|run| run.name_any() == name);
    let active: Vec<&TrainingRun> = seen.runs.iter().filter(|run| !is_over(run) && run.name_any() != name).collect();
    if cron.spec.concurrency_policy == ConcurrencyPolicy::Forbid && !active.is_empty() && !is_made {
        plan.wake = latest.map_or(plan.wake, |latest| plan.wake.or_at(after(latest)));
        let names: Vec<String> = active.iter().map(|run| run.name_any()).collect();
        return State::RunActive(format!(
            "the start of {newest} waits for the end of {} (spec.concurrencyPolicy is Forbid)",
            names.join(", ")
        ));
    }
    if older > 0 {
        plan.missed = older;
        let note = format!(
            "{} missed; only the newest, of {newest}, runs",
            starts(older, "earlier start was", "earlier starts were")
        );
        plan.events.push(Transition::warning("MissedSchedule", note));
    }
    if cron.spec.concurrency_policy == ConcurrencyPolicy::Replace {
        for run in active.into_iter().filter(|run| !is_leaving(run)) {
            let note =
                format!("{} is deleted: {name} takes its place (spec.concurrencyPolicy is Replace)", run.name_any());
            plan.events.push(Transition::normal("Replaced", note));
            plan.delete.push(run.clone());
        }
    }
    let deleted: Vec<String> = plan.delete.iter().map(ResourceExt::name_any).collect();
    let going = seen.runs.iter().filter(|run| !is_over(run)).map(ResourceExt::name_any);
    let mut names: Vec<String> = going.filter(|going| !deleted.contains(going)).collect();
    if !is_made {
        let own = [(label::CRON, cron.name.clone())];
        let template = &cron.spec.template;
        plan.start = Some(runs::run(seen.cron.as_ref(), name.clone(), template, &own, template.spec.clone()));
        names.push(name.clone());
    }
    goes_on(&mut plan.status, names);
    plan.status.last_schedule_time = Some(Time(newest));
    plan.events.push(Transition::normal("Started", format!("{name} is the run of {newest}")));
    scheduled(next)
}

fn starts(count: u32, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ if count > MAX_COUNTED => format!("more than {MAX_COUNTED} {many}"),
        _ => format!("{count} {many}"),
    }
}

fn after(time: Timestamp) -> Timestamp {
    time.checked_add(Duration::from_millis(1)).unwrap_or(time)
}

/// Runs that are over and no longer kept: all but the newest ones, and those that a deployment refers to.
fn history(seen: &Observed, cron: &ValidCron) -> Vec<TrainingRun> {
    let limits = [
        (RunPhase::Succeeded, cron.spec.successful_runs_history_limit),
        (RunPhase::Failed, cron.spec.failed_runs_history_limit),
    ];
    let mut old = Vec::new();
    for (ended, limit) in limits {
        let newest_first = seen.runs.iter().rev().filter(|run| phase(run) == Some(ended));
        let beyond = newest_first.skip(usize::try_from(limit).unwrap_or(0));
        old.extend(beyond.filter(|run| !seen.in_use.contains(&run.name_any()) && !is_leaving(run)).cloned());
    }
    old
}

fn finish(seen: &Observed, mut plan: Plan, state: State, now: Timestamp) -> Plan {
    state.write_into(&mut plan.status, seen.cron.metadata.generation, now);
    let former = seen.cron.status.clone().unwrap_or_default();
    plan.events.extend(status::transition(&former, &plan.status));
    plan
}

#[cfg(test)]
mod tests;
