//! Makes a plan true, in an order that any crash may cut: children first, then the status, then the Events.

use anneal_api::resources::RunPhase;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt, core::Status, runtime::reflector::ObjectRef};

use super::{
    observe::Observed,
    plan::{Plan, Start, is_over},
    status::{State, transitions},
};
use crate::{
    cluster::{self, ClusterError},
    context::Context,
    controller::Wake,
};

/// Makes the plan true and returns when to look again.
///
/// # Errors
/// When the API server does not answer. What it refuses for a reason that the user can mend goes into the status.
pub async fn apply(context: &Context, seen: &Observed, mut plan: Plan, now: Timestamp) -> Result<Wake, ClusterError> {
    let namespace = seen.run.namespace().unwrap_or_default();
    let reference = ObjectRef::from(seen.run.as_ref());
    if plan.delete_run {
        context.progress.forget(&reference);
        cluster::delete(&context.client, &namespace, seen.run.as_ref()).await?;
        return Ok(plan.wake);
    }
    for job in &plan.delete {
        // One that fails is tried again: the status says that it must go until it is gone.
        cluster::delete(&context.client, &namespace, job).await?;
    }
    if let Some(start) = plan.create.take() {
        match create(context, &namespace, &start).await {
            // Else the first look at the Job would bring one more write.
            Ok(created) => plan.status.start_time = plan.status.start_time.take().or(created),
            Err(problem) if problem.is_users() => refused(seen, &mut plan, &problem, now),
            Err(problem) => return Err(problem),
        }
    }
    match &plan.follow {
        Some(target) => context.progress.follow(reference.clone(), target.clone()),
        None => context.progress.forget(&reference),
    }
    let former = seen.run.status.clone().unwrap_or_default();
    if plan.status != former {
        match cluster::write_status(&context.client, seen.run.as_ref(), &plan.status).await {
            Ok(written) => context.written.note(&written),
            Err(problem) if problem.says(Status::is_conflict) => {
                // Somebody else wrote, and the watch has not told of it yet.
                context.written.doubt(&reference);
                return Ok(Wake::At(now));
            }
            Err(problem) => return Err(problem),
        }
        count(context, &namespace, &former, &plan.status);
        context.publish(&seen.run.object_ref(&()), &plan.events).await;
    }
    if plan.status.current_attempt.is_none() {
        context.last_words.forget(&reference);
    }
    if is_over(&plan.status) {
        context.known.forget(&reference);
    }
    Ok(plan.wake)
}

/// Creates what an attempt needs, and its Job. Returns when the Job was created.
async fn create(context: &Context, namespace: &str, start: &Start) -> Result<Option<Time>, ClusterError> {
    if let Some(claim) = &start.claim {
        cluster::create(&context.client, namespace, claim).await?;
    }
    if let Some(nodes) = &start.nodes {
        cluster::create(&context.client, namespace, nodes).await?;
    }
    Ok(cluster::create(&context.client, namespace, &start.job).await?.creation_timestamp)
}

/// A child could not be created, and somebody must do something about it: the run says so and tries again.
fn refused(seen: &Observed, plan: &mut Plan, problem: &ClusterError, now: Timestamp) {
    let former = seen.run.status.clone().unwrap_or_default();
    let state = State::waiting(RunPhase::Pending, problem.reason(), problem.to_string());
    let mut status = std::mem::take(&mut plan.status);
    // Its Job does not exist: the number is still to be used, and the start deadline goes on.
    status.attempt = status.attempts.last().map(|attempt| attempt.number);
    plan.status = state.write_into(status, seen.run.metadata.generation, now);
    plan.events = transitions(&former, &plan.status);
    plan.wake = Wake::OnChange.or_at(now.checked_add(std::time::Duration::from_secs(15)).unwrap_or(now));
}

fn count(
    context: &Context,
    namespace: &str,
    former: &anneal_api::resources::TrainingRunStatus,
    new: &anneal_api::resources::TrainingRunStatus,
) {
    for attempt in new.attempts.iter().filter(|a| !former.attempts.iter().any(|old| old.number == a.number)) {
        if let Some(class) = attempt.class {
            context.metrics.attempt_failed(class.as_str());
        }
    }
    if former.phase != new.phase && new.completion_time.is_some() {
        match new.phase {
            Some(RunPhase::Succeeded) => context.metrics.run_finished(namespace, true),
            Some(RunPhase::Failed) => context.metrics.run_finished(namespace, false),
            _ => {}
        }
    }
}
