//! What is recorded about a run: the phase with its conditions, and an Event for each transition.

use anneal_api::{
    failure::FailureClass,
    progress::Progress,
    resources::{ProgressStatus, RunPhase, TrainingRunStatus, condition, set_condition},
    termination::RunResult,
};
use jiff::Timestamp;

use super::observe::Observed;
use crate::context::Transition;

/// Condition types. `Ready` and `Stalled` are what kstatus reads.
pub mod kind {
    /// The run has succeeded.
    pub const READY: &str = "Ready";
    /// The run moves.
    pub const PROGRESSING: &str = "Progressing";
    /// The run has succeeded: what `kubectl wait --for=condition=Complete` waits for.
    pub const COMPLETE: &str = "Complete";
    /// The run has failed for good.
    pub const FAILED: &str = "Failed";
    /// Nothing moves until somebody changes something.
    pub const STALLED: &str = "Stalled";
}

/// The phase of a run with the reason for it: everything that conditions and Events say follows from it.
#[derive(Clone, Debug)]
pub struct State {
    phase: RunPhase,
    reason: String,
    message: String,
    moves: bool,
}

impl State {
    /// The run moves by itself.
    pub fn working(phase: RunPhase, reason: &str, message: String) -> Self {
        Self { phase, reason: reason.to_owned(), message, moves: true }
    }

    /// The run waits for somebody to do something.
    pub fn waiting(phase: RunPhase, reason: &str, message: String) -> Self {
        Self { phase, reason: reason.to_owned(), message, moves: false }
    }

    /// The run has succeeded.
    pub fn complete(message: String) -> Self {
        Self { phase: RunPhase::Succeeded, reason: "Published".to_owned(), message, moves: false }
    }

    /// The run has failed for good.
    pub fn failed(class: FailureClass, message: String) -> Self {
        Self { phase: RunPhase::Failed, reason: class.as_str().to_owned(), message, moves: false }
    }

    /// Writes the phase and its conditions.
    pub fn write_into(
        self,
        mut status: TrainingRunStatus,
        generation: Option<i64>,
        now: Timestamp,
    ) -> TrainingRunStatus {
        let conditions = [
            (kind::READY, self.phase == RunPhase::Succeeded),
            (kind::COMPLETE, self.phase == RunPhase::Succeeded),
            (kind::FAILED, self.phase == RunPhase::Failed),
            (kind::STALLED, self.phase == RunPhase::Failed),
            (kind::PROGRESSING, self.moves && !self.phase.is_terminal()),
        ];
        for (kind, holds) in conditions {
            let new = condition(kind, holds, &self.reason, &self.message, generation);
            set_condition(&mut status.conditions, new, now);
        }
        status.phase = Some(self.phase);
        status.observed_generation = generation;
        status
    }
}

/// The progress of a run that has succeeded: all steps done, whatever the last reading caught.
pub fn final_progress(seen: &Observed, result: &RunResult, end: Timestamp) -> ProgressStatus {
    let recorded = seen.run.status.as_ref().and_then(|status| status.progress.as_ref()).map(|p| p.reported.clone());
    let last = seen.progress.clone().or(recorded);
    let steps = last.as_ref().map_or(1, |progress| progress.steps.max(1));
    ProgressStatus::from(Progress {
        epoch: result.epochs,
        epochs: result.epochs,
        step: steps,
        steps,
        checkpoint_step: Some(steps),
        resumed_from_step: result.resumed_from_step,
        steps_lost: result.steps_lost,
        loss: last.as_ref().and_then(|progress| progress.loss),
        best: last.as_ref().and_then(|progress| progress.best).or(Some(result.metrics.accuracy)),
        images_per_second: last.as_ref().and_then(|progress| progress.images_per_second),
        estimated_completion_time: None,
        last_update_time: last.map_or(end, |progress| progress.last_update_time),
    })
}

/// One Event for each transition from the former status to the new one.
pub fn transitions(former: &TrainingRunStatus, new: &TrainingRunStatus) -> Vec<Transition> {
    let reason_of = |status: &TrainingRunStatus| {
        status.conditions.iter().find(|c| c.type_ == kind::READY).map(|c| (c.reason.clone(), c.message.clone()))
    };
    let Some((reason, message)) = reason_of(new) else { return Vec::new() };
    let changed = former.phase != new.phase
        || former.attempt != new.attempt
        || reason_of(former).is_none_or(|(former_reason, _)| former_reason != reason);
    let Some(phase) = new.phase.filter(|_| changed) else { return Vec::new() };
    let waits = new.conditions.iter().any(|c| c.type_ == kind::PROGRESSING && c.status == "False");
    vec![match phase {
        RunPhase::Succeeded => Transition::normal("Succeeded", message),
        RunPhase::Failed => Transition::warning("Failed", format!("{reason}: {message}")),
        RunPhase::Retrying => Transition::warning("Retrying", message),
        RunPhase::Running => Transition::normal("Running", message),
        RunPhase::Pending => Transition::warning("Pending", format!("{reason}: {message}")),
        RunPhase::Preparing if waits => Transition::warning("Preparing", format!("{reason}: {message}")),
        RunPhase::Preparing => Transition::normal("Preparing", message),
    }]
}
