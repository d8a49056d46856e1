//! What should be true of a sweep next. Pure and total: every observation has a plan, and every plan says when to look
//! again.

use std::{collections::BTreeSet, time::Duration};

use anneal_api::{
    names::label,
    resources::{
        Milestone, Objective, ObjectiveMetric, RunPhase, SweepPhase, TrainingRun, TrainingSweepStatus, TrialPhase,
        TrialStatus,
    },
    termination::cut,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    early,
    observe::{Observed, TrialRun},
    status::{self, State, is_finished},
    validate::{SweepError, ValidSweep},
};
use crate::{
    context::Transition,
    controller::{RESYNC, Wake},
    runs::{self, is_leaving, is_over, message_of, phase},
};

/// Longest message of a trial that the schema takes, in bytes.
const MAX_MESSAGE: usize = 512;
/// How soon to try again what somebody else has to make way for.
const BLOCKED: Duration = Duration::from_secs(15);

/// What should be true next.
#[derive(Debug)]
pub struct Plan {
    /// Runs to create, in this order, before the status says that they exist.
    pub start: Vec<TrainingRun>,
    /// The status to record.
    pub status: TrainingSweepStatus,
    /// Runs to delete, once the status says that they were stopped.
    pub stop: Vec<TrainingRun>,
    /// Runs to suspend (true) or to let go on, because the sweep is suspended or no longer is.
    pub suspend: Vec<(TrainingRun, bool)>,
    /// Whether the sweep itself is to be deleted.
    pub expire: bool,
    /// What to tell the owner.
    pub events: Vec<Transition>,
    /// When to look again.
    pub wake: Wake,
}

/// The plan for a sweep whose specification makes no sense: it says so and waits for a change.
pub fn refuse(seen: &Observed, problem: &SweepError, now: Timestamp) -> Plan {
    let status = former(seen);
    if is_finished(&status) {
        return keep(seen, status, now);
    }
    let state = State::of(SweepPhase::Failed, problem.reason(), problem.to_string());
    finish(seen, status, state, Vec::new(), Wake::Never, now)
}

/// The plan for a sweep.
pub fn plan(seen: &Observed, sweep: &ValidSweep, now: Timestamp) -> Plan {
    let mut status = former(seen);
    if is_finished(&status) {
        // A sweep that has ended stays ended, whatever becomes of its runs.
        return keep(seen, status, now);
    }
    record(&mut status.trials, seen, sweep);
    stop_the_worst(&mut status.trials, sweep);
    let failed = status.trials.iter().filter(|trial| trial.phase == TrialPhase::Failed).count();
    let gives_up = i32::try_from(failed).unwrap_or(i32::MAX) > sweep.spec.max_failed_trials;
    let mut start = Vec::new();
    if !gives_up && !sweep.spec.suspend {
        start = match next_runs(seen, sweep, &status.trials) {
            Ok(runs) => runs,
            Err(problem) => {
                let state = State::of(SweepPhase::Failed, "InvalidParameter", problem.to_string());
                return finish(seen, status, state, Vec::new(), Wake::Never, now);
            }
        };
    }
    for (number, run) in &start {
        status.trials.push(pending(sweep, *number, run));
    }
    status.trials.sort_by_key(|trial| trial.number);
    if status.start_time.is_none() && !status.trials.is_empty() {
        status.start_time = Some(Time(now));
    }
    summarise(&mut status, sweep);
    let state = state(&status, sweep, gives_up, going(seen));
    let mut wake = Wake::OnChange;
    if state.phase().is_terminal() {
        status.completion_time = Some(Time(now));
        wake = expiry(seen, &status, now).1;
    }
    let start = start.into_iter().map(|(_, run)| run).collect();
    finish(seen, status, state, start, wake, now)
}

impl Plan {
    /// The same where only the runs in `created` could be created, for a reason that somebody has to mend.
    #[must_use]
    pub fn blocked(
        mut self,
        seen: &Observed,
        sweep: &ValidSweep,
        created: &BTreeSet<String>,
        (reason, message): (&str, String),
        now: Timestamp,
    ) -> Self {
        let lacking: BTreeSet<String> =
            self.start.iter().map(ResourceExt::name_any).filter(|name| !created.contains(name)).collect();
        let mut status = self.status;
        status.trials.retain(|trial| !lacking.contains(&trial.run));
        if status.trials.is_empty() {
            status.start_time = None;
        }
        summarise(&mut status, sweep);
        let phase = if status.trials.is_empty() { SweepPhase::Pending } else { SweepPhase::Running };
        let wake = Wake::At(now.checked_add(BLOCKED).unwrap_or(now));
        self.start.retain(|run| created.contains(&run.name_any()));
        finish(seen, status, State::waiting(phase, reason, message), self.start, wake, now)
    }
}

fn former(seen: &Observed) -> TrainingSweepStatus {
    seen.sweep.status.clone().unwrap_or_default()
}

/// What is left to do when all is over: what was stopped goes, and at last the sweep itself.
fn keep(seen: &Observed, mut status: TrainingSweepStatus, now: Timestamp) -> Plan {
    status.observed_generation = seen.sweep.metadata.generation;
    for condition in &mut status.conditions {
        condition.observed_generation = seen.sweep.metadata.generation;
    }
    let (expire, wake) = expiry(seen, &status, now);
    let stop = stopped(seen, &status.trials);
    Plan { start: Vec::new(), status, stop, suspend: Vec::new(), expire, events: Vec::new(), wake }
}

fn expiry(seen: &Observed, status: &TrainingSweepStatus, now: Timestamp) -> (bool, Wake) {
    let Some(seconds) = seen.sweep.spec.ttl_seconds_after_finished else { return (false, Wake::Never) };
    let end = status.completion_time.as_ref().map_or(now, |end| end.0);
    let due = end.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(end);
    if now < due {
        return (false, Wake::At(due));
    }
    if seen.in_use {
        // Nothing tells a sweep that its user has let go.
        return (false, Wake::At(now.checked_add(RESYNC).unwrap_or(now)));
    }
    (true, Wake::Never)
}

/// Puts what the runs say into the trials. A trial that is over stays as it was recorded.
fn record(trials: &mut Vec<TrialStatus>, seen: &Observed, sweep: &ValidSweep) {
    for TrialRun { number, run } in &seen.runs {
        if !trials.iter().any(|trial| trial.number == *number) {
            // The operator ended between the creation and the record.
            trials.push(pending(sweep, *number, run));
        }
    }
    for trial in trials.iter_mut().filter(|trial| !trial.phase.is_terminal()) {
        if let Some(TrialRun { run, .. }) = seen.runs.iter().find(|it| it.number == trial.number) {
            follow(trial, run, sweep);
        } else {
            deleted(trial);
        }
    }
}

/// A trial whose run somebody deleted is not tried again.
fn deleted(trial: &mut TrialStatus) {
    trial.phase = TrialPhase::Stopped;
    "its TrainingRun was deleted before its end".clone_into(&mut trial.message);
}

fn pending(sweep: &ValidSweep, number: i32, run: &TrainingRun) -> TrialStatus {
    TrialStatus {
        number,
        run: run.name_any(),
        phase: TrialPhase::Pending,
        parameters: sweep.shown(number),
        value: None,
        milestones: Vec::new(),
        message: String::new(),
    }
}

fn follow(trial: &mut TrialStatus, run: &TrainingRun, sweep: &ValidSweep) {
    let objective = sweep.spec.objective;
    match phase(run) {
        Some(RunPhase::Succeeded) => {
            trial.phase = TrialPhase::Succeeded;
            trial.value = best_of(trial, final_value(run, objective), objective);
        }
        Some(RunPhase::Failed) => {
            trial.phase = TrialPhase::Failed;
            trial.message = cut(&message_of(run, "Failed"), MAX_MESSAGE);
        }
        _ if is_leaving(run) => deleted(trial),
        Some(RunPhase::Running) => {
            trial.phase = TrialPhase::Running;
            if let Some(rule) = &sweep.spec.early_stopping {
                pass_milestone(trial, run, rule.grace_epochs, objective);
            }
        }
        _ => trial.phase = TrialPhase::Pending,
    }
}

/// Notes how good a trial is when it has come to another milestone. One that it was not seen at has no note: a later
/// value would make it look better than it was.
fn pass_milestone(trial: &mut TrialStatus, run: &TrainingRun, grace: i32, objective: Objective) {
    let Some(progress) = run.status.as_ref().and_then(|status| status.progress.as_ref()) else { return };
    let value = match objective.metric {
        ObjectiveMetric::Accuracy => progress.reported.best,
        ObjectiveMetric::Loss => progress.reported.loss,
    };
    let last = trial.milestones.last().map_or(0, |milestone| milestone.epoch);
    let passed = early::milestone(grace, progress.reported.epoch).filter(|epoch| *epoch > last);
    let value = best_of(trial, value.map(rounded), objective);
    if let (Some(epoch), Some(value)) = (passed, value) {
        trial.milestones.push(Milestone { epoch, value });
        trial.value = Some(value);
    }
}

/// The better of what the trial had and what it has.
fn best_of(trial: &TrialStatus, new: Option<f64>, objective: Objective) -> Option<f64> {
    match (trial.value, new) {
        (Some(old), Some(new)) if !early::is_better(objective.goal(), new, old) => Some(old),
        (old, new) => new.or(old),
    }
}

fn final_value(run: &TrainingRun, objective: Objective) -> Option<f64> {
    let status = run.status.as_ref()?;
    let progress = status.progress.as_ref().map(|progress| &progress.reported);
    let value = match objective.metric {
        // The test set is for the verdict at the end, not for the choice among trials; an image that reports no
        // progress has nothing else.
        ObjectiveMetric::Accuracy => progress
            .and_then(|progress| progress.best)
            .or_else(|| status.result.as_ref().map(|result| result.metrics.accuracy)),
        ObjectiveMetric::Loss => progress.and_then(|progress| progress.loss),
    };
    value.filter(|value| value.is_finite()).map(rounded)
}

/// Six digits say enough, and read back as the same number.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn stop_the_worst(trials: &mut [TrialStatus], sweep: &ValidSweep) {
    let Some(rule) = &sweep.spec.early_stopping else { return };
    let goal = sweep.spec.objective.goal();
    let verdicts: Vec<Option<String>> = trials.iter().map(|trial| early::verdict(rule, goal, trial, trials)).collect();
    for (trial, verdict) in trials.iter_mut().zip(verdicts) {
        if let Some(message) = verdict.filter(|_| trial.phase == TrialPhase::Running) {
            trial.phase = TrialPhase::Stopped;
            trial.message = message;
        }
    }
}

/// The runs that there is room for, with the numbers of their trials.
fn next_runs(
    seen: &Observed,
    sweep: &ValidSweep,
    trials: &[TrialStatus],
) -> Result<Vec<(i32, TrainingRun)>, serde_json::Error> {
    // A run that is being stopped still has its pod.
    let busy = seen.runs.iter().filter(|trial| !is_over(&trial.run)).count();
    let room = usize::try_from(sweep.spec.parallelism).unwrap_or(1).saturating_sub(busy);
    let started = |number: &i32| trials.iter().any(|trial| trial.number == *number);
    let numbers = (1..).take(sweep.trials.len()).filter(|number| !started(number)).take(room);
    numbers.map(|number| Ok((number, run_of(seen, sweep, number)?))).collect()
}

fn run_of(seen: &Observed, sweep: &ValidSweep, number: i32) -> Result<TrainingRun, serde_json::Error> {
    let own = [(label::SWEEP, sweep.name.clone()), (label::TRIAL, number.to_string())];
    let template = &sweep.spec.template;
    Ok(runs::run(seen.sweep.as_ref(), sweep.run_name(number), template, &own, sweep.run_spec(number)?))
}

/// The runs of trials that were stopped, and that are still there.
fn stopped(seen: &Observed, trials: &[TrialStatus]) -> Vec<TrainingRun> {
    let is_stopped =
        |number: i32| trials.iter().any(|trial| trial.number == number && trial.phase == TrialPhase::Stopped);
    let left = seen.runs.iter().filter(|trial| is_stopped(trial.number) && !is_leaving(&trial.run));
    left.map(|trial| trial.run.clone()).collect()
}

/// Runs that are to be suspended with their sweep, and those that are to go on with it. What somebody suspended by hand
/// stays as it is.
fn to_suspend(seen: &Observed, trials: &[TrialStatus]) -> Vec<(TrainingRun, bool)> {
    let wanted = seen.sweep.spec.suspend;
    let is_over = |number| trials.iter().any(|trial| trial.number == number && trial.phase.is_terminal());
    let under_way = seen.runs.iter().filter(|trial| !is_over(trial.number) && !is_leaving(&trial.run));
    let is_marked = |run: &TrainingRun| run.annotations().contains_key(label::SUSPENDED_BY_SWEEP);
    let differs = |run: &&TrainingRun| if wanted { !run.spec.suspend } else { is_marked(run) };
    under_way.map(|trial| &trial.run).filter(differs).map(|run| (run.clone(), wanted)).collect()
}

/// How many runs are neither over nor suspended.
fn going(seen: &Observed) -> usize {
    let rests = |run: &TrainingRun| is_over(run) || (run.spec.suspend && phase(run) == Some(RunPhase::Suspended));
    seen.runs.iter().filter(|trial| !rests(&trial.run)).count()
}

fn summarise(status: &mut TrainingSweepStatus, sweep: &ValidSweep) {
    status.counts = Some(status::counts(&status.trials, sweep.trials.len()));
    status.best = status::best(&status.trials, sweep.spec.objective);
}

fn state(status: &TrainingSweepStatus, sweep: &ValidSweep, gives_up: bool, going: usize) -> State {
    let counts = status.counts.unwrap_or_default();
    let active = status.trials.iter().filter(|trial| !trial.phase.is_terminal()).count();
    let too_many = || {
        let last = status.trials.iter().rev().find(|trial| trial.phase == TrialPhase::Failed);
        let last = last.map(|trial| format!("; {}: {}", trial.run, trial.message)).unwrap_or_default();
        let most = sweep.spec.max_failed_trials;
        format!("{} trials failed, and spec.maxFailedTrials is {most}{last}", counts.failed)
    };
    let is_over = active == 0 && (gives_up || status.trials.len() >= sweep.trials.len());
    match (&status.best, is_over) {
        (_, true) if gives_up => State::of(SweepPhase::Failed, "TooManyFailures", too_many()),
        (Some(best), true) => {
            let parameters: Vec<String> =
                best.parameters.iter().map(|(path, value)| format!("{path}={value}")).collect();
            let (run, value, total) = (&best.run, best.value, counts.total);
            let message = format!("the best of {total} trials is {run} with {value}: {}", parameters.join(", "));
            State::of(SweepPhase::Succeeded, "Finished", message)
        }
        (None, true) if counts.succeeded > 0 => {
            let message = format!("{} trials succeeded, but none reported the objective's metric", counts.succeeded);
            State::of(SweepPhase::Succeeded, "NoValue", message)
        }
        (None, true) => State::of(
            SweepPhase::Failed,
            "NoTrialSucceeded",
            format!("{} trials failed and {} were stopped; see status.trials", counts.failed, counts.stopped),
        ),
        (_, false) if gives_up => {
            State::of(SweepPhase::Running, "TooManyFailures", format!("{}; no further trial starts", too_many()))
        }
        (_, false) if sweep.spec.suspend && going == 0 => {
            State::of(SweepPhase::Suspended, "Suspended", "spec.suspend is true; set it to false to go on")
        }
        (_, false) if sweep.spec.suspend => State::of(
            SweepPhase::Running,
            "Suspending",
            format!("spec.suspend is true: no further trial starts, and {going} write a checkpoint and end"),
        ),
        (_, false) => {
            let over = counts.succeeded + counts.failed + counts.stopped;
            let message = format!("{over} of {} trials are over, and {active} are under way", counts.total);
            State::of(SweepPhase::Running, "TrialsRunning", message)
        }
    }
}

fn finish(
    seen: &Observed,
    mut status: TrainingSweepStatus,
    state: State,
    start: Vec<TrainingRun>,
    wake: Wake,
    now: Timestamp,
) -> Plan {
    state.write_into(&mut status, seen.sweep.metadata.generation, now);
    let stop = stopped(seen, &status.trials);
    let events = status::transitions(&former(seen), &status);
    let suspend = to_suspend(seen, &status.trials);
    Plan { start, status, stop, suspend, expire: false, events, wake }
}

#[cfg(test)]
mod tests;
