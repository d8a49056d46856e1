//! A run that has ended: it never moves again, and goes when its time has come, unless something needs it.

use anneal_api::resources::{RunPhase, TrainingRun, TrainingRunStatus};
use jiff::{SignedDuration, Timestamp};

use super::{super::observe::Observed, Plan};
use crate::controller::{RESYNC, Wake};

/// The plan for a run that has ended.
pub fn plan(seen: &Observed, mut status: TrainingRunStatus, now: Timestamp) -> Plan {
    status.observed_generation = seen.run.metadata.generation;
    for condition in &mut status.conditions {
        condition.observed_generation = seen.run.metadata.generation;
    }
    let due = due(&seen.run);
    let may_go = due.is_some_and(|due| now >= due);
    let wake = match due {
        None => Wake::Never,
        Some(due) if now < due => Wake::At(due),
        // Whoever needs it may let go of it at any time, and nothing of the run tells.
        Some(_) => Wake::At(now.checked_add(RESYNC).unwrap_or(now)),
    };
    Plan { delete_run: may_go && seen.needed_by.is_empty(), ..Plan::new(status, wake) }
}

/// When a run is to be deleted; `None` where it has not ended, or stays.
fn due(run: &TrainingRun) -> Option<Timestamp> {
    let status = run.status.as_ref()?;
    let end = status.completion_time.as_ref().filter(|_| status.phase.is_some_and(RunPhase::is_terminal))?;
    let after = SignedDuration::from_secs(run.spec.ttl_seconds_after_finished?);
    Some(end.0.checked_add(after).unwrap_or(Timestamp::MAX))
}

/// Whether the time of a run has come, so that it matters who needs it.
pub fn is_due(run: &TrainingRun, now: Timestamp) -> bool {
    due(run).is_some_and(|due| now >= due)
}
