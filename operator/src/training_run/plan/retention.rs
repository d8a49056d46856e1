//! A run that has ended: it never moves again, and goes when its time has come, unless a deployment needs it.

use anneal_api::resources::{ModelDeployment, RunPhase, TrainingRun, TrainingRunStatus};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

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
        // The deployment may let go of it at any time, and nothing of the run tells.
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

/// The deployments of a run's namespace that name the run or serve, or may go back to, what it published.
pub fn needed_by(run: &TrainingRun, deployments: &[ModelDeployment]) -> Vec<String> {
    let name = run.name_any();
    let published = run.status.as_ref().and_then(|status| status.result.as_ref()).map(|result| &result.sha256);
    let needs = |deployment: &&ModelDeployment| {
        let named = deployment.spec.model.training_run_ref.as_ref().is_some_and(|reference| reference.name == name);
        let revisions = deployment.status.iter().flat_map(|status| &status.revisions);
        let serves = |revision: &anneal_api::resources::RevisionStatus| {
            revision.training_run.as_ref() == Some(&name) || Some(&revision.sha256) == published
        };
        named || revisions.into_iter().any(serves)
    };
    deployments.iter().filter(needs).map(ResourceExt::name_any).collect()
}
