//! The controller of `CronTrainingRun`: observe, validate, plan, apply, record.

mod apply;
pub mod observe;
pub mod plan;
pub mod schedule;
pub mod status;
pub mod validate;

use std::sync::Arc;

use anneal_api::{
    names::label,
    resources::{CronTrainingRun, TrainingRun},
};
use kube::runtime::controller::{Action, Config};

use crate::{
    clock,
    cluster::ClusterError,
    context::Context,
    controller::{api, back_off, controller, drive, metadata_of, observed, watch},
};

/// The kind in metrics and logs.
const KIND: &str = "crontrainingrun";

/// A reconcile could not be finished; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do as asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Runs the controller until the process ends.
pub async fn run(context: Arc<Context>, namespace: Option<&str>, concurrency: u16) {
    let controller = controller(api::<CronTrainingRun>(&context, namespace))
        .with_config(Config::default().concurrency(concurrency))
        .owns_stream(metadata_of::<TrainingRun>(&context, namespace, watch().labels(label::CRON)));
    drive(
        controller,
        |cron, context| observed(KIND, cron.clone(), context.clone(), reconcile(cron, context)),
        |cron, problem: &Error, context| back_off(KIND, cron.as_ref(), problem, &context),
        context.clone(),
    )
    .await;
}

/// Brings one schedule up to date.
///
/// # Errors
/// When the API server does not do as asked; what the user can mend is in the conditions instead.
pub async fn reconcile(cron: Arc<CronTrainingRun>, context: Arc<Context>) -> Result<Action, Error> {
    let Some(seen) = observe::observe(&context, &cron).await? else {
        // Everything that a schedule makes is collected with it.
        return Ok(Action::await_change());
    };
    let now = clock::now();
    let plan = match validate::validate(&seen.cron) {
        Ok(valid) => plan::plan(&seen, &valid, now),
        Err(problem) => plan::refuse(&seen, &problem, now),
    };
    let wake = Box::pin(apply::apply(&context, &seen, plan, now)).await?;
    Ok(wake.action(now))
}
