//! The controller of `TrainingRun`: observe, validate, plan, apply, record.

mod apply;
pub mod claim;
pub mod failure;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod init;
pub mod last_words;
mod log;
pub mod nodes;
pub mod objects;
pub mod observe;
pub mod output;
pub mod plan;
pub mod status;
pub mod validate;

use std::sync::Arc;

use anneal_api::{dataset::DatasetUri, names::label, resources::TrainingRun};
use futures::{Stream, channel::mpsc};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    ResourceExt,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::{ObjectRef, Store},
    },
};

use crate::{
    cluster::ClusterError,
    context::Context,
    controller::{api, back_off, drive, in_turn, observed, watch},
    progress::read_all,
    turns::Turns,
};

/// The kind in metrics and logs.
const KIND: &str = "trainingrun";
/// How often runs are counted by phase.
const COUNT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

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
    let controller = controller(&context, namespace, woken);
    let runs = controller.store();
    // There is one controller of runs in a process.
    let _ = context.runs.set(runs.clone());
    let turns = Turns::new(usize::from(concurrency));
    tokio::join!(
        drive(
            controller,
            move |run, context: Arc<Context>| {
                let (turns, metrics) = (turns.clone(), context.metrics.clone());
                async move {
                    let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
                    in_turn(&turns, namespace, KIND, &metrics, || {
                        observed(KIND, run.clone(), context.clone(), reconcile(run.clone(), context))
                    })
                    .await
                }
            },
            |run, problem: &Error, context| back_off(KIND, run.as_ref(), problem, &context),
            context.clone(),
        ),
        read_all(context.clone(), news),
        count_phases(&context, &runs),
    );
}

/// Tells the metrics for ever how many runs are in each phase.
async fn count_phases(context: &Context, runs: &Store<TrainingRun>) {
    let mut tick = tokio::time::interval(COUNT_INTERVAL);
    loop {
        tick.tick().await;
        context.metrics.runs(runs.state().iter().map(|run| run.status.as_ref().and_then(|status| status.phase)));
    }
}

fn controller(
    context: &Context,
    namespace: Option<&str>,
    woken: impl Stream<Item = ObjectRef<TrainingRun>> + Send + 'static,
) -> Controller<TrainingRun> {
    let last_words = context.last_words.clone();
    // Bounded by `in_turn`.
    let controller =
        Controller::new(api::<TrainingRun>(context, namespace), watch()).with_config(Config::default().concurrency(0));
    let runs = controller.store();
    controller
        .owns(api::<Job>(context, namespace), watch().labels(label::RUN))
        .watches(api::<Pod>(context, namespace), watch().labels(label::RUN), move |pod: Pod| {
            let run = run_of_pod(&pod)?;
            last_words.note(&run, &pod);
            Some(run)
        })
        .watches(api::<PersistentVolumeClaim>(context, namespace), watch(), move |claim| runs_of_claim(&runs, &claim))
        .reconcile_on(woken)
}

fn run_of_pod(pod: &Pod) -> Option<ObjectRef<TrainingRun>> {
    let run = pod.labels().get(label::RUN)?;
    Some(ObjectRef::new(run).within(&pod.namespace()?))
}

/// The runs that a claim may set going.
fn runs_of_claim(runs: &Store<TrainingRun>, claim: &PersistentVolumeClaim) -> Vec<ObjectRef<TrainingRun>> {
    let name = claim.name_any();
    runs.state()
        .into_iter()
        .filter(|run| run.namespace() == claim.namespace())
        .filter(|run| run.status.as_ref().and_then(|status| status.phase).is_none_or(|phase| !phase.is_terminal()))
        .filter(|run| {
            let dataset = run.spec.dataset.uri.parse();
            run.output_claim() == name || matches!(dataset, Ok(DatasetUri::Pvc { claim, .. }) if claim == name)
        })
        .map(|run| ObjectRef::from(run.as_ref()))
        .collect()
}

/// Brings one run one step further.
///
/// # Errors
/// When the API server does not do as asked; what the user can mend is in the run's conditions instead.
pub async fn reconcile(run: Arc<TrainingRun>, context: Arc<Context>) -> Result<Action, Error> {
    let now = Timestamp::now();
    if run.is_ours() {
        output::release(&context, &run).await?;
    }
    let Some(seen) = observe::observe(&context, &run, now).await? else {
        // Everything that a run makes is collected with it; claims are files, and stay or go as their owner said.
        let reference = ObjectRef::from(run.as_ref());
        context.progress.forget(&reference);
        context.last_words.forget(&reference);
        return Ok(Action::await_change());
    };
    if output::guard(&context, &seen.run).await? {
        return Ok(Action::await_change());
    }
    let valid = validate::validate(&seen.run);
    let plan = plan::plan(&seen, valid.as_ref(), &context.settings, now);
    let wake = Box::pin(apply::apply(&context, &seen, plan, now)).await?;
    Ok(wake.action(now))
}
