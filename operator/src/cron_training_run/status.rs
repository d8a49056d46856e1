//! What is recorded about a schedule: its conditions, and an Event for each transition.

use anneal_api::resources::{CronTrainingRunStatus, condition, set_condition};
use jiff::Timestamp;

use crate::context::Transition;

/// Condition types. `Ready` and `Stalled` are what kstatus reads.
pub mod kind {
    /// The schedule is understood, and runs start by it.
    pub const READY: &str = "Ready";
    /// A start waits for something that comes by itself.
    pub const PROGRESSING: &str = "Progressing";
    /// Nothing moves until somebody changes something.
    pub const STALLED: &str = "Stalled";
    /// `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
}

/// How a schedule is, with the reason for it.
#[derive(Clone, Debug)]
pub enum State {
    /// Runs start by it.
    Scheduled(String),
    /// A start waits for the end of the run before.
    RunActive(String),
    /// `spec.suspend` is true.
    Suspended,
    /// Somebody has to do something: reason and message.
    Stalled(&'static str, String),
}

impl State {
    /// Writes the conditions.
    pub fn write_into(self, status: &mut CronTrainingRunStatus, generation: Option<i64>, now: Timestamp) {
        let (ready, progressing, stalled, suspended) = match self {
            Self::Scheduled(_) => (true, false, false, false),
            Self::RunActive(_) => (true, true, false, false),
            Self::Suspended => (true, false, false, true),
            Self::Stalled(..) => (false, false, true, false),
        };
        let (reason, message) = match self {
            Self::Scheduled(message) => ("Scheduled", message),
            Self::RunActive(message) => ("RunActive", message),
            Self::Suspended => {
                ("Suspended", "spec.suspend is true: nothing starts until it is set to false".to_owned())
            }
            Self::Stalled(reason, message) => (reason, message),
        };
        let conditions = [
            (kind::READY, ready),
            (kind::PROGRESSING, progressing),
            (kind::STALLED, stalled),
            (kind::SUSPENDED, suspended),
        ];
        for (kind, holds) in conditions {
            let new = condition(kind, holds, reason, &message, generation);
            set_condition(&mut status.conditions, new, now);
        }
        status.observed_generation = generation;
    }
}

/// An Event where the reason changed.
pub fn transition(former: &CronTrainingRunStatus, new: &CronTrainingRunStatus) -> Option<Transition> {
    let ready = |status: &CronTrainingRunStatus| status.conditions.iter().find(|c| c.type_ == kind::READY).cloned();
    let now = ready(new)?;
    if ready(former).is_some_and(|former| former.reason == now.reason) {
        return None;
    }
    Some(match now.reason.as_str() {
        "Scheduled" => Transition::normal("Scheduled", now.message),
        "RunActive" => Transition::normal("RunActive", now.message),
        "Suspended" => Transition::normal("Suspended", now.message),
        reason => Transition::warning("Stalled", format!("{reason}: {}", now.message)),
    })
}
