//! Makes a plan true, in an order that any crash may cut: runs first, then the status, then the Events, and at last what
//! the status says was stopped.

use anneal_api::{
    names::label,
    resources::{SweepPhase, TrainingRun, TrainingSweepStatus, TrialPhase},
};
use jiff::Timestamp;
use kube::{Resource, ResourceExt, core::Status};
use serde_json::json;

use super::{observe::Observed, plan::Plan, validate::ValidSweep};
use crate::{
    cluster::{self, ClusterError},
    context::Context,
    controller::Wake,
    runs,
};

/// Makes the plan true and returns when to look again.
///
/// # Errors
/// When the API server does not answer. What it refuses for a reason that the user can mend goes into the status.
pub async fn apply(
    context: &Context,
    seen: &Observed,
    sweep: Option<&ValidSweep>,
    mut plan: Plan,
    now: Timestamp,
) -> Result<Wake, ClusterError> {
    let namespace = seen.sweep.namespace().unwrap_or_default();
    if plan.expire {
        cluster::delete(&context.client, &namespace, seen.sweep.as_ref()).await?;
        return Ok(Wake::Never);
    }
    let (created, problem) = runs::create(context, &namespace, &plan.start).await?;
    if let (Some(problem), Some(sweep)) = (problem, sweep) {
        plan = plan.blocked(seen, sweep, &created, (problem.reason(), problem.to_string()), now);
    }
    for (run, suspend) in &plan.suspend {
        set_suspended(context, &namespace, run, *suspend).await?;
    }
    let former = seen.sweep.status.clone().unwrap_or_default();
    if plan.status != former {
        cluster::write_status(&context.client, seen.sweep.as_ref(), &plan.status).await?;
        count(context, &former, &plan.status);
        context.publish(&seen.sweep.object_ref(&()), &plan.events).await;
    }
    for run in &plan.stop {
        cluster::delete(&context.client, &namespace, run).await?;
    }
    Ok(plan.wake)
}

/// Suspends a run, or lets it go on. What became of it meanwhile, the next pass sees.
async fn set_suspended(
    context: &Context,
    namespace: &str,
    run: &TrainingRun,
    suspend: bool,
) -> Result<(), ClusterError> {
    // `null` takes the annotation away.
    let mark = suspend.then_some("true");
    let patch = json!({
        "metadata": {"uid": run.uid(), "annotations": {label::SUSPENDED_BY_SWEEP: mark}}, "spec": {"suspend": suspend}
    });
    match cluster::merge::<TrainingRun>(&context.client, namespace, &run.name_any(), &patch).await {
        Err(problem) if problem.says(Status::is_not_found) || problem.says(Status::is_conflict) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn count(context: &Context, former: &TrainingSweepStatus, new: &TrainingSweepStatus) {
    for trial in &new.trials {
        let known = former.trials.iter().find(|old| old.number == trial.number).map(|old| old.phase);
        if known == Some(trial.phase) {
            continue;
        }
        match trial.phase {
            TrialPhase::Succeeded => context.metrics.trial_finished("succeeded"),
            TrialPhase::Failed => context.metrics.trial_finished("failed"),
            TrialPhase::Stopped => context.metrics.trial_finished("stopped"),
            TrialPhase::Pending | TrialPhase::Running => {}
        }
    }
    if former.completion_time.is_none() && new.completion_time.is_some() {
        context.metrics.sweep_finished(new.phase == Some(SweepPhase::Succeeded));
    }
}
