//! Makes a plan true, in an order that any crash may cut: the new run first, then the status, then the Events, and at
//! last what goes.

use jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::{observe::Observed, plan::Plan};
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
pub async fn apply(context: &Context, seen: &Observed, mut plan: Plan, now: Timestamp) -> Result<Wake, ClusterError> {
    let namespace = seen.cron.namespace().unwrap_or_default();
    let (_, problem) = runs::create(context, &namespace, plan.start.as_slice()).await?;
    if let Some(problem) = problem {
        plan = plan.blocked(seen, problem.reason(), problem.to_string(), now);
    }
    if seen.cron.status.as_ref() != Some(&plan.status) {
        cluster::write_status(&context.client, seen.cron.as_ref(), &plan.status).await?;
        context.publish(&seen.cron.object_ref(&()), &plan.events).await;
        context.metrics.scheduled(&namespace, true, u64::from(plan.start.is_some()));
        context.metrics.scheduled(&namespace, false, u64::from(plan.missed));
    }
    for run in &plan.delete {
        cluster::delete(&context.client, &namespace, run).await?;
    }
    Ok(plan.wake)
}
