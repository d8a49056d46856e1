//! The controller of `ModelDeployment`: observe, validate, plan, apply, record.

mod apply;
mod desired;
mod gate;
pub mod objects;
mod observe;
mod plan;
mod pods;
pub mod revision;
pub mod smoke;
mod status;
pub mod validate;

#[cfg(test)]
mod tests;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use anneal_api::{
    names::label,
    resources::{ModelDeployment, ModelDeploymentStatus, TrainingRun},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Resource, ResourceExt,
    runtime::{
        PredicateConfig, WatchStreamExt,
        controller::{Action, Config, Controller},
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use crate::{
    cluster::{self, ClusterError},
    context::{Context, Transition},
    controller::{RESYNC, api, back_off, drive, observed, watch},
};

/// The kind in metrics and logs.
const KIND: &str = "modeldeployment";

/// A reconcile could not be finished; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do as asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Runs the controller until the process ends.
pub async fn run(context: Arc<Context>, namespace: Option<&str>, concurrency: u16) {
    drive(
        controller(&context, namespace, concurrency),
        |deployment, context| observed(KIND, deployment.clone(), context.clone(), reconcile(deployment, context)),
        |deployment, problem: &Error, context| back_off(KIND, deployment.as_ref(), problem, &context),
        context.clone(),
    )
    .await;
}

fn controller(context: &Context, namespace: Option<&str>, concurrency: u16) -> Controller<ModelDeployment> {
    let controller = Controller::new(api::<ModelDeployment>(context, namespace), watch())
        .with_config(Config::default().concurrency(concurrency));
    let (of_runs, of_claims) = (controller.store(), controller.store());
    let own = || watch().labels(label::DEPLOYMENT);
    // Progress is none of a rollout's business; only a change of phase is.
    let runs = watcher(api::<TrainingRun>(context, namespace), watch())
        .default_backoff()
        .touched_objects()
        .predicate_filter(|run: &TrainingRun| Some(phase_of_run(run)), PredicateConfig::default())
        .boxed();
    controller
        .owns(api::<Deployment>(context, namespace), own())
        .owns(api::<Service>(context, namespace), own())
        .owns(api::<Job>(context, namespace), own())
        .owns(api::<HorizontalPodAutoscaler>(context, namespace), own())
        .owns(api::<PodDisruptionBudget>(context, namespace), own())
        .watches(api::<Pod>(context, namespace), own(), |pod: Pod| deployment_of_pod(&pod))
        .watches(api::<PersistentVolumeClaim>(context, namespace), watch(), move |claim| {
            deployments_of_claim(&of_claims, &claim)
        })
        .watches_stream(runs, move |run| deployments_of_run(&of_runs, &run))
}

fn phase_of_run(run: &TrainingRun) -> u64 {
    let mut hasher = DefaultHasher::new();
    run.status.as_ref().and_then(|status| status.phase).hash(&mut hasher);
    hasher.finish()
}

fn deployment_of_pod(pod: &Pod) -> Option<ObjectRef<ModelDeployment>> {
    let deployment = pod.labels().get(label::DEPLOYMENT)?;
    Some(ObjectRef::new(deployment).within(&pod.namespace()?))
}

fn deployments_of_run(all: &Store<ModelDeployment>, run: &TrainingRun) -> Vec<ObjectRef<ModelDeployment>> {
    let name = run.name_any();
    let refers = |deployment: &ModelDeployment| {
        deployment.spec.model.training_run_ref.as_ref().is_some_and(|reference| reference.name == name)
    };
    select(all, run.metadata.namespace.as_deref(), refers)
}

/// The deployments that a claim may set going.
fn deployments_of_claim(
    all: &Store<ModelDeployment>,
    claim: &PersistentVolumeClaim,
) -> Vec<ObjectRef<ModelDeployment>> {
    let name = claim.name_any();
    let waits = |deployment: &ModelDeployment| {
        let conditions = deployment.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        deployment.spec.model.claim_name.as_ref() == Some(&name)
            || conditions.iter().any(|condition| condition.reason == "ClaimNotFound")
    };
    select(all, claim.metadata.namespace.as_deref(), waits)
}

fn select(
    all: &Store<ModelDeployment>,
    namespace: Option<&str>,
    matches: impl Fn(&ModelDeployment) -> bool,
) -> Vec<ObjectRef<ModelDeployment>> {
    all.state()
        .into_iter()
        .filter(|deployment| deployment.metadata.namespace.as_deref() == namespace && matches(deployment))
        .map(|deployment| ObjectRef::from(deployment.as_ref()))
        .collect()
}

/// Brings one deployment one step further.
///
/// # Errors
/// When the API server does not do as asked; what the user can mend is in the deployment's conditions instead.
pub async fn reconcile(known: Arc<ModelDeployment>, context: Arc<Context>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let seen = match Box::pin(observe::observe(&context, &known)).await {
        Ok(Some(seen)) => seen,
        // Everything that a deployment makes is collected with it.
        Ok(None) => return Ok(Action::await_change()),
        Err(problem) => return blocked(&context, &known, problem, now).await,
    };
    let plan = match validate::validate(&seen.owner) {
        Ok(spec) => {
            let plan = plan::plan(&seen, &spec, now);
            let writes =
                plan.desired.iter().flat_map(|it| apply::writes(&seen, &spec, it, &context.settings)).collect();
            if let Err(problem) = apply::carry_out(&context, &spec, writes).await {
                return blocked(&context, &seen.owner, problem, now).await;
            }
            plan
        }
        Err(problem) => plan::refuse(&seen, &problem, now),
    };
    record(&context, &seen.owner, &plan.status, &plan.events).await?;
    match plan.step {
        plan::Step::HandOver(_) => context.metrics.rollout_finished(true),
        plan::Step::Reject(_) => context.metrics.rollout_finished(false),
        _ => {}
    }
    Ok(plan.wake.action(now))
}

/// Writes the status where it changed, then tells of it: an Event is never told twice when the status is refused.
async fn record(
    context: &Context,
    owner: &ModelDeployment,
    status: &ModelDeploymentStatus,
    events: &[Transition],
) -> Result<(), Error> {
    if owner.status.as_ref() != Some(status) {
        cluster::write_status(&context.client, owner, status).await?;
    }
    context.publish(&owner.object_ref(&()), events).await;
    Ok(())
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
