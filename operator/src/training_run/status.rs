//! What is recorded about a run: the phase with its conditions, and an Event for each transition.

use anneal_api::{
    failure::FailureClass,
    progress::Progress,
    resources::{
        ProgressStatus, RunPhase, TrainingRunStatus, condition, run_condition as kind, run_reason, set_condition,
    },
    termination::RunResult,
};
use jiff::Timestamp;

use crate::context::Transition;

/// The phase of a run with the reason for it: everything that conditions and Events say follows from it.
#[derive(Clone, Debug)]
pub struct State {
    phase: RunPhase,
    reason: String,
    message: String,
    moves: bool,
    /// Whether nothing moves until somebody changes something.
    stalled: bool,
}

impl State {
    /// The run moves by itself.
    pub fn working(phase: RunPhase, reason: &str, message: String) -> Self {
        Self { phase, reason: reason.to_owned(), message, moves: true, stalled: false }
    }

    /// The run waits for something outside, and goes on by itself when it comes.
    pub fn waiting(phase: RunPhase, reason: &str, message: String) -> Self {
        Self { phase, reason: reason.to_owned(), message, moves: false, stalled: false }
    }

    /// The run waits until somebody changes its specification.
    pub fn stalled(phase: RunPhase, reason: &str, message: String) -> Self {
        Self { phase, reason: reason.to_owned(), message, moves: false, stalled: true }
    }

    /// The run has succeeded.
    pub fn complete(message: String) -> Self {
        Self::waiting(RunPhase::Succeeded, run_reason::PUBLISHED, message)
    }

    /// The run has failed for good.
    pub fn failed(class: FailureClass, message: String) -> Self {
        Self::stalled(RunPhase::Failed, class.as_str(), message)
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
            (kind::SUSPENDED, self.phase == RunPhase::Suspended),
            (kind::STALLED, self.stalled),
            (kind::PROGRESSING, self.moves),
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

/// The progress of a run that has succeeded: all steps done, and as good as it says itself, whatever the last reading caught.
pub fn final_progress(status: &TrainingRunStatus, result: &RunResult, end: Timestamp) -> ProgressStatus {
    let last = status.progress.as_ref().map(|progress| &progress.reported);
    let steps = last.map_or(1, |progress| progress.steps.max(1));
    ProgressStatus::from(Progress {
        epoch: result.epochs,
        epochs: result.epochs,
        step: steps,
        steps,
        checkpoint_step: Some(steps),
        resumed_from_step: result.resumed_from_step,
        steps_lost: result.steps_lost,
        loss: result.loss.or(last.and_then(|progress| progress.loss)),
        best: result.best.or(last.and_then(|progress| progress.best)).or(Some(result.metrics.accuracy)),
        images_per_second: last.and_then(|progress| progress.images_per_second),
        data_wait_share: last.and_then(|progress| progress.data_wait_share),
        estimated_completion_time: None,
        last_update_time: last.map_or(end, |progress| progress.last_update_time),
    })
}

/// One Event for each transition from the former status to the new one. That a Job is made is told by the Job's own Events; if
/// its pod takes a while to run, there is one about that.
pub fn transitions(former: &TrainingRunStatus, new: &TrainingRunStatus) -> Vec<Transition> {
    let reason_of = |status: &TrainingRunStatus| {
        status.conditions.iter().find(|c| c.type_ == kind::READY).map(|c| (c.reason.clone(), c.message.clone()))
    };
    let Some((reason, message)) = reason_of(new) else { return Vec::new() };
    let changed = former.phase != new.phase
        || former.attempt != new.attempt
        || reason_of(former).is_none_or(|(former_reason, _)| former_reason != reason);
    let Some(phase) = new.phase.filter(|_| changed && reason != run_reason::JOB_CREATED) else { return Vec::new() };
    let waits = new.conditions.iter().any(|c| c.type_ == kind::PROGRESSING && c.status == "False");
    vec![match phase {
        RunPhase::Succeeded => Transition::normal("Succeeded", message),
        RunPhase::Failed => Transition::warning("Failed", format!("{reason}: {message}")),
        RunPhase::Retrying => Transition::warning("Retrying", message),
        RunPhase::Pending if waits => Transition::warning("Pending", format!("{reason}: {message}")),
        RunPhase::Pending => Transition::normal("Pending", message),
        RunPhase::Suspending => Transition::normal("Suspending", message),
        RunPhase::Suspended => Transition::normal("Suspended", message),
        RunPhase::Running if waits => Transition::warning("Running", format!("{reason}: {message}")),
        RunPhase::Preparing if waits => Transition::warning("Preparing", format!("{reason}: {message}")),
        RunPhase::Preparing => Transition::normal("Preparing", message),
        RunPhase::Running if reason == run_reason::TRAINING => Transition::normal("Running", message),
        RunPhase::Running => Transition::warning("Stopping", format!("{reason}: {message}")),
    }]
}
