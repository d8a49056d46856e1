//! What is recorded about a sweep: the phase with its conditions, the counts, the best trial, and an Event for each
//! transition.

use anneal_api::resources::{
    BestTrial, Objective, SweepPhase, TrainingSweepStatus, TrialCounts, TrialPhase, TrialStatus, condition,
    set_condition,
};
use jiff::Timestamp;

use super::early::is_better;
use crate::context::Transition;

/// Condition types. `Ready` and `Stalled` are what kstatus reads.
pub mod kind {
    /// The sweep has succeeded.
    pub const READY: &str = "Ready";
    /// Trials run or are about to.
    pub const PROGRESSING: &str = "Progressing";
    /// The sweep has succeeded: what `kubectl wait --for=condition=Complete` waits for.
    pub const COMPLETE: &str = "Complete";
    /// The sweep has failed for good.
    pub const FAILED: &str = "Failed";
    /// Nothing moves until somebody changes something.
    pub const STALLED: &str = "Stalled";
    /// `spec.suspend` is true, and no trial runs.
    pub const SUSPENDED: &str = "Suspended";
}

/// The phase of a sweep with the reason for it: everything that conditions and Events say follows from it.
#[derive(Clone, Debug)]
pub struct State {
    phase: SweepPhase,
    reason: String,
    message: String,
    stalled: bool,
}

impl State {
    /// The sweep moves by itself, or has ended, or is suspended as asked.
    pub fn of(phase: SweepPhase, reason: &str, message: impl Into<String>) -> Self {
        Self { phase, reason: reason.to_owned(), message: message.into(), stalled: phase == SweepPhase::Failed }
    }

    /// The sweep waits for somebody to do something.
    pub fn waiting(phase: SweepPhase, reason: &str, message: impl Into<String>) -> Self {
        Self { stalled: true, ..Self::of(phase, reason, message) }
    }

    /// Where the sweep stands.
    pub fn phase(&self) -> SweepPhase {
        self.phase
    }

    /// Writes the phase and its conditions.
    pub fn write_into(self, status: &mut TrainingSweepStatus, generation: Option<i64>, now: Timestamp) {
        let moves = matches!(self.phase, SweepPhase::Pending | SweepPhase::Running);
        let conditions = [
            (kind::READY, self.phase == SweepPhase::Succeeded),
            (kind::COMPLETE, self.phase == SweepPhase::Succeeded),
            (kind::FAILED, self.phase == SweepPhase::Failed),
            (kind::STALLED, self.stalled),
            (kind::SUSPENDED, self.phase == SweepPhase::Suspended),
            (kind::PROGRESSING, moves && !self.stalled),
        ];
        for (kind, holds) in conditions {
            let new = condition(kind, holds, &self.reason, &self.message, generation);
            set_condition(&mut status.conditions, new, now);
        }
        status.phase = Some(self.phase);
        status.observed_generation = generation;
    }
}

/// Whether the sweep is over for good. One whose specification was refused before any trial is not.
pub fn is_finished(status: &TrainingSweepStatus) -> bool {
    status.phase.is_some_and(SweepPhase::is_terminal) && status.completion_time.is_some()
}

/// How many of the trials stand where; those that are not started are pending.
pub fn counts(trials: &[TrialStatus], total: usize) -> TrialCounts {
    let of = |phase: TrialPhase| number(trials.iter().filter(|trial| trial.phase == phase).count());
    let mut counts = TrialCounts {
        total: number(total.max(trials.len())),
        pending: 0,
        running: of(TrialPhase::Running),
        succeeded: of(TrialPhase::Succeeded),
        failed: of(TrialPhase::Failed),
        stopped: of(TrialPhase::Stopped),
    };
    counts.pending = counts.total - counts.running - counts.succeeded - counts.failed - counts.stopped;
    counts
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The best of the trials that succeeded; of equal ones, the first.
pub fn best(trials: &[TrialStatus], objective: Objective) -> Option<BestTrial> {
    let succeeded = trials.iter().filter(|trial| trial.phase == TrialPhase::Succeeded);
    let mut best: Option<(&TrialStatus, f64)> = None;
    for (trial, value) in succeeded.filter_map(|trial| Some((trial, trial.value?))) {
        if best.is_none_or(|(_, former)| is_better(objective.goal(), value, former)) {
            best = Some((trial, value));
        }
    }
    let (trial, value) = best?;
    Some(BestTrial { run: trial.run.clone(), value, parameters: trial.parameters.clone() })
}

/// The parameters of a trial as one line.
pub fn line(trial: &TrialStatus) -> String {
    let each: Vec<String> = trial.parameters.iter().map(|(path, value)| format!("{path}={value}")).collect();
    each.join(", ")
}

/// One Event for each transition from the former status to the new one: first of trials, then of the sweep.
pub fn transitions(former: &TrainingSweepStatus, new: &TrainingSweepStatus) -> Vec<Transition> {
    let known = |trial: &TrialStatus| former.trials.iter().find(|old| old.number == trial.number).map(|old| old.phase);
    let mut events: Vec<Transition> = new.trials.iter().filter_map(|trial| of_trial(known(trial), trial)).collect();
    events.extend(of_sweep(former, new));
    events
}

fn of_trial(former: Option<TrialPhase>, trial: &TrialStatus) -> Option<Transition> {
    if former == Some(trial.phase) {
        return None;
    }
    let run = &trial.run;
    match trial.phase {
        TrialPhase::Pending | TrialPhase::Running if former.is_none() => {
            Some(Transition::normal("TrialStarted", format!("{run}: {}", line(trial))))
        }
        TrialPhase::Pending | TrialPhase::Running => None,
        TrialPhase::Succeeded => {
            let value = trial.value.map_or_else(|| "without a value".to_owned(), |value| format!("with {value}"));
            Some(Transition::normal("TrialSucceeded", format!("{run} succeeded {value}: {}", line(trial))))
        }
        TrialPhase::Failed => Some(Transition::warning("TrialFailed", format!("{run}: {}", trial.message))),
        TrialPhase::Stopped => Some(Transition::normal("TrialStopped", format!("{run}: {}", trial.message))),
    }
}

fn of_sweep(former: &TrainingSweepStatus, new: &TrainingSweepStatus) -> Option<Transition> {
    let reason_of = |status: &TrainingSweepStatus| {
        status.conditions.iter().find(|c| c.type_ == kind::READY).map(|c| (c.reason.clone(), c.message.clone()))
    };
    let (reason, message) = reason_of(new)?;
    let phase = new.phase?;
    let same = former.phase == new.phase && reason_of(former).is_some_and(|(former_reason, _)| former_reason == reason);
    if same {
        return None;
    }
    let stalled = new.conditions.iter().any(|c| c.type_ == kind::STALLED && c.status == "True");
    Some(match phase {
        SweepPhase::Succeeded => Transition::normal("Succeeded", message),
        SweepPhase::Failed => Transition::warning("Failed", format!("{reason}: {message}")),
        SweepPhase::Suspended => Transition::normal("Suspended", message),
        SweepPhase::Pending | SweepPhase::Running if stalled => {
            Transition::warning("Waiting", format!("{reason}: {message}"))
        }
        SweepPhase::Pending => Transition::normal("Pending", message),
        SweepPhase::Running => Transition::normal("Running", message),
    })
}
