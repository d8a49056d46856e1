//! The controller of `TrainingSweep`: observe, validate, plan, apply, record.

mod apply;
pub mod early;
pub mod observe;
pub mod plan;
pub mod search;
pub mod status;
pub mod validate;

use std::sync::Arc;

use anneal_api::{
    names::label,
    resources::{TrainingRun, TrainingSweep},
};
use kube::runtime::controller::{Action, Config};

use crate::{
    clock,
    cluster::ClusterError,
    context::Context,
    controller::{api, back_off, controller, drive, metadata_of, observed, watch},
};

/// The kind in metrics and logs.
const KIND: &str = "trainingsweep";

/// A reconcile could not be finished; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do as asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// Runs the controller until the process ends.
pub async fn run(context: Arc<Context>, namespace: Option<&str>, concurrency: u16) {
    let controller = controller(api::<TrainingSweep>(&context, namespace))
        .with_config(Config::default().concurrency(concurrency))
        .owns_stream(metadata_of::<TrainingRun>(&context, namespace, watch().labels(label::SWEEP)));
    drive(
        controller,
        |sweep, context| observed(KIND, sweep.clone(), context.clone(), reconcile(sweep, context)),
        |sweep, problem: &Error, context| back_off(KIND, sweep.as_ref(), problem, &context),
        context.clone(),
    )
    .await;
}

/// Brings one sweep one step further.
///
/// # Errors
/// When the API server does not do as asked; what the user can mend is in the sweep's conditions instead.
pub async fn reconcile(sweep: Arc<TrainingSweep>, context: Arc<Context>) -> Result<Action, Error> {
    let Some(seen) = observe::observe(&context, &sweep).await? else {
        // Everything that a sweep makes is collected with it.
        return Ok(Action::await_change());
    };
    let now = clock::now();
    let valid = validate::validate(&seen.sweep);
    let plan = match &valid {
        Ok(valid) => plan::plan(&seen, valid, now),
        Err(problem) => plan::refuse(&seen, problem, now),
    };
    let wake = Box::pin(apply::apply(&context, &seen, valid.as_ref().ok(), plan, now)).await?;
    Ok(wake.action(now))
}
