//! The controller of `ModelDeployment`: observe, validate, plan, apply, record.

mod apply;
mod canary;
mod desired;
mod feedback;
mod gate;
pub mod objects;
mod observe;
mod plan;
mod pods;
mod preflight;
pub mod record;
mod requests;
pub mod revision;
pub mod route;
mod shadow;
pub mod smoke;
mod soak;
mod status;
mod takeover;
pub mod validate;
mod watches;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anneal_api::resources::{DeploymentPhase, ModelDeployment, ModelDeploymentStatus};
use futures::channel::mpsc;
use jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        reflector::{ObjectRef, Store},
    },
};
use tracing::warn;

use crate::{
    clock,
    cluster::{self, ClusterError},
    context::{Context, Transition},
    controller::{RESYNC, back_off, drive, observed},
    performance::board,
    pod_http::Target,
    shadow::board::{self as shadows, Side},
    signals::{self, Window},
};

/// The kind in metrics and logs.
const KIND: &str = "modeldeployment";
/// How often the deployments out of their bounds are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// A reconcile could not be finished; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do as asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Runs the controller until the process ends.
pub async fn run(context: Arc<Context>, namespace: Option<&str>, concurrency: u16) {
    let (news, woken) = mpsc::unbounded();
    let (told, compared) = (news.clone(), news.clone());
    let controller = watches::controller(&context, namespace, concurrency).reconcile_on(woken);
    let deployments = controller.store();
    tokio::join!(
        drive(
            controller,
            |deployment, context| observed(KIND, deployment.clone(), context.clone(), reconcile(deployment, context)),
            |deployment, problem: &Error, context| back_off(KIND, deployment.as_ref(), problem, &context),
            context.clone(),
        ),
        signals::read_all(context.clone(), news),
        board::read_all(context.clone(), told),
        shadows::read_all(context.clone(), compared),
        count_degraded(&context, &deployments),
    );
}

/// Tells the metrics for ever which of the deployments that are judged are out of their bounds.
async fn count_degraded(context: &Context, deployments: &Store<ModelDeployment>) {
    let mut tick = tokio::time::interval(COUNT_INTERVAL);
    loop {
        tick.tick().await;
        let all = deployments.state();
        context.metrics.performance(all.iter().filter_map(|deployment| {
            let (reason, is_degraded) = feedback::judgement(deployment.status.as_ref()?)?;
            Some((deployment.metadata.namespace.as_deref()?, deployment.metadata.name.as_deref()?, reason, is_degraded))
        }));
    }
}

/// Brings one deployment one step further.
///
/// # Errors
/// When the API server does not do as asked; what the user can mend is in the deployment's conditions instead.
pub async fn reconcile(known: Arc<ModelDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let now = clock::now();
    let seen = match Box::pin(observe::observe(&context, &known)).await {
        Ok(Some(seen)) => seen,
        // Everything that a deployment makes is collected with it.
        Ok(None) => {
            takeover::leave(&context, &known).await?;
            return Ok(Action::await_change());
        }
        Err(problem) => return blocked(&context, &known, problem, now).await,
    };
    let plan = match validate::validate(&seen.owner) {
        Ok(spec) => {
            let plan = plan::plan(&seen, &spec, now);
            let held = plan.desired.as_ref().and_then(|it| takeover::finalizers(&seen, it.former));
            if let Some(finalizers) = held {
                takeover::hold(&context, &seen.owner, &finalizers).await?;
                // With the deployment as it is now.
                return Ok(Action::requeue(Duration::ZERO));
            }
            let writes =
                plan.desired.iter().flat_map(|it| apply::writes(&seen, &spec, it, &context.settings)).collect();
            match apply::carry_out(&context, &spec, writes).await {
                // What is refused beside the Service must not keep the way back from being written down and gone to its end.
                Err(problem) if plan.step.goes_back() && problem.is_users() => {
                    warn!(%problem, deployment = spec.name, namespace = spec.namespace, "refused on the way back");
                }
                Err(problem) => return blocked(&context, &seen.owner, problem, now).await,
                Ok(()) => {}
            }
            follow(&context, &seen, &spec, &plan);
            plan
        }
        Err(problem) => plan::refuse(&seen, &problem, now),
    };
    let version = record(&context, &seen.owner, &plan.status, &plan.events).await?;
    // Last, so that a request which an interrupted reconcile did not see through is seen again.
    apply::consume(&context, &seen.owner, version.as_deref(), &plan.answered).await?;
    let namespace = seen.owner.namespace().unwrap_or_default();
    match plan.step {
        plan::Step::HandOver(_) if plan.status.phase == Some(DeploymentPhase::Degraded) => {}
        plan::Step::HandOver(_) => context.metrics.rollout_finished(&namespace, "promoted"),
        plan::Step::Reject(_) => context.metrics.rollout_finished(&namespace, "rejected"),
        plan::Step::GiveUp { .. } | plan::Step::Withdraw(_) => {
            context.metrics.rollout_finished(&namespace, "rolled_back");
        }
        _ => {}
    }
    Ok(plan.wake.action(now))
}

/// Reads what the pods count that get the traffic or a share of it, from the announcement of a switch until the soak ends
/// and in each step of a canary; how well those do that serve, for as long as the spec asks for it; and what both answer while
/// a candidate gets copies of requests.
fn follow(context: &Context, seen: &observe::Observed, spec: &validate::ValidDeployment, plan: &plan::Plan) {
    let key = ObjectRef::from(seen.owner.as_ref());
    let status = &plan.status;
    let targets = |revision: &observe::RevisionSeen| -> Vec<(String, Target)> {
        let target = |pod: &pods::PodSeen| {
            let (pod, uid, address) = (pod.name.clone(), pod.uid.clone(), pod.address.clone()?);
            Some((uid, Target { namespace: spec.namespace.clone(), pod, address }))
        };
        revision.pods.iter().filter_map(target).collect()
    };
    let live = seen.live().and_then(|live| seen.revisions.get_key_value(&live));
    match live.zip(spec.feedback.as_ref()) {
        Some(((name, live), bounds)) => {
            context.performance.follow(key.clone(), name.as_str(), targets(live), bounds, Instant::now());
        }
        None => context.performance.forget(&key),
    }
    match shadow::pair(seen, status).zip(spec.shadow.as_ref()) {
        Some((pair, bounds)) => {
            let sides = [(Side::Stable, &pair.stable), (Side::Candidate, &pair.candidate)];
            let pods = sides.map(|(side, name)| (side, seen.revisions.get(name).map(targets).unwrap_or_default()));
            context.shadows.follow(key.clone(), &pair, bounds.min_requests, pods.into_iter(), Instant::now());
        }
        None => context.shadows.forget(&key),
    }
    let promotion = status.promotion.as_ref().map(|promotion| (promotion.to.as_str(), 0));
    let canary = || status.canary.as_ref().and_then(|canary| Some((canary.revision.as_str(), canary.step?)));
    let soaking = || {
        let stable = status.stable_revision.as_deref()?;
        (status.phase == Some(DeploymentPhase::Soaking)).then_some((stable, 0))
    };
    let window = promotion.or_else(canary).or_else(soaking);
    let window = window.and_then(|(name, step)| Some(Window { revision: revision::RevisionName::parse(name)?, step }));
    let found = window.and_then(|window| Some((seen.revisions.get(&window.revision)?, window)));
    let Some((revision, window)) = found else {
        return context.signals.forget(&key);
    };
    context.signals.follow(key, window, targets(revision), spec.gate.limits, Instant::now());
}

/// Writes the status where it changed, then tells of it: an Event is never told twice when the status is refused. Returns the
/// version of the deployment as it was observed, with this status.
async fn record(
    context: &Context,
    owner: &ModelDeployment,
    status: &ModelDeploymentStatus,
    events: &[Transition],
) -> Result<Option<String>, Error> {
    let version = if owner.status.as_ref() == Some(status) {
        owner.resource_version()
    } else {
        cluster::write_status(&context.client, owner, status).await?.resource_version
    };
    context.publish(&owner.object_ref(&()), events).await;
    Ok(version)
}

/// Tells of a problem that the user can mend; any other one is tried again.
async fn blocked(
    context: &Context,
    owner: &ModelDeployment,
    problem: ClusterError,
    now: Timestamp,
) -> Result<Action, Error> {
    if !problem.is_users() {
        return Err(problem.into());
    }
    let old = owner.status.clone().unwrap_or_default();
    let (status, events) =
        status::blocked(&old, owner.metadata.generation, problem.reason(), &problem.to_string(), now);
    record(context, owner, &status, &events).await?;
    // Nothing tells of an object that belongs to somebody else and goes away.
    Ok(Action::requeue(RESYNC / 10))
}
