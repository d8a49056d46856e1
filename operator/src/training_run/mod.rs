//! The controller of `TrainingRun`: observe, validate, plan, apply, record.

mod apply;
pub mod claim;
pub mod failure;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod init;
pub mod known;
pub mod last_words;
mod log;
pub mod nodes;
pub mod objects;
pub mod observe;
pub mod output;
pub mod phases;
pub mod plan;
pub mod status;
pub mod validate;
pub mod written;

use std::sync::Arc;

use anneal_api::{
    dataset::DatasetUri,
    names::label,
    resources::{PodTemplate, RunPhase, TrainingRun, TrainingRunStatus},
};
use futures::{FutureExt, Stream, StreamExt, channel::mpsc};
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
        watcher,
    },
};

use self::{
    known::{Essential, follow, run_of},
    observe::{Look, Observed, observe},
    plan::Plan,
};
use crate::{
    clock,
    cluster::ClusterError,
    context::Context,
    controller::{self, api, back_off, drive, events, in_turn, observed, watch},
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
    context: &Arc<Context>,
    namespace: Option<&str>,
    woken: impl Stream<Item = ObjectRef<TrainingRun>> + Send + 'static,
) -> Controller<TrainingRun> {
    let phases = context.phases.clone();
    let (listed, is_listed) = tokio::sync::watch::channel(false);
    let tell = move |before: &Store<TrainingRun>, event: &watcher::Event<TrainingRun>| phases.tell(before, event);
    let of_runs = context.clone();
    let whole = move |runs: &Store<TrainingRun>| {
        // There is one controller of runs in a process, and it has this store from the first list on.
        let _ = of_runs.runs.set(runs.clone());
        listed.send_replace(true);
    };
    let controller = controller::controller_with(api::<TrainingRun>(context, namespace), trim, tell, whole);
    // Bounded by `in_turn`.
    let controller = controller.with_config(Config::default().concurrency(0));
    let runs = controller.store();
    let jobs = children::<Job>(context, namespace, is_listed.clone());
    let jobs = follow(jobs, context.known.clone(), |known| &known.jobs, is_over_in(&runs));
    let pods = children::<Pod>(context, namespace, is_listed);
    let pods = follow(pods, context.known.clone(), |known| &known.pods, is_over_in(&runs));
    let claims = events(api::<PersistentVolumeClaim>(context, namespace), watch());
    let claims = follow(claims, context.known.clone(), |known| &known.claims, |_| false);
    let last_words = context.last_words.clone();
    controller
        .owns_stream(jobs)
        .watches_stream(pods, move |pod: Pod| {
            let run = run_of(&pod)?;
            last_words.note(&run, &pod);
            Some(run)
        })
        .watches_stream(claims, move |claim| runs_of_claim(&runs, &claim))
        .reconcile_on(woken)
}

/// What is told of the objects of one kind that belong to runs, once the runs are known: what belongs to those that are over
/// would otherwise be kept until each of them was looked at. Of those who wait for a store of kube-runtime's only one is woken, and
/// that is the controller itself: hence a signal of our own.
fn children<K: Essential + Send + 'static>(
    context: &Context,
    namespace: Option<&str>,
    mut are_listed: tokio::sync::watch::Receiver<bool>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static + use<K> {
    let children = events(api::<K>(context, namespace), watch().labels(label::RUN));
    let once_listed = async move {
        // The sender is gone only when the controller ended, and with it the process.
        let _ = are_listed.wait_for(|are_listed| *are_listed).await;
        children
    };
    once_listed.into_stream().flatten()
}

/// Takes away of a run that is over what only its owner reads: ten thousand of them are kept. What is written of one follows
/// from the whole of it, as [`is_to_be_asked_for`] sees to.
fn trim(run: &mut TrainingRun) {
    let Some(status) = run.status.as_mut().filter(|status| plan::is_over(status)) else { return };
    *status = TrainingRunStatus {
        phase: status.phase,
        observed_generation: status.observed_generation,
        completion_time: status.completion_time.take(),
        init_from: status.init_from.take(),
        result: status.result.take(),
        ..TrainingRunStatus::default()
    };
    run.spec.pod_template = PodTemplate::default();
    run.spec.tracking = None;
}

/// Whether a plan follows from what the watches told, but must not.
fn is_to_be_asked_for(seen: &Observed, plan: &Plan) -> bool {
    // A pod that the watches have not told of yet may still write: no other starts beside it.
    let begins_again = plan.create.is_some() && seen.has_begun();
    let former = seen.run.status.as_ref().filter(|former| plan::is_over(former));
    begins_again || former.is_some_and(|former| *former != plan.status)
}

/// Whether a run is over as far as the watch knows.
fn is_over_in(runs: &Store<TrainingRun>) -> impl Fn(&ObjectRef<TrainingRun>) -> bool + Send + 'static {
    let runs = runs.clone();
    move |run| runs.get(run).and_then(|run| run.status.as_ref().map(plan::is_over)).unwrap_or_default()
}

/// The runs that a claim may set going.
fn runs_of_claim(runs: &Store<TrainingRun>, claim: &impl ResourceExt) -> Vec<ObjectRef<TrainingRun>> {
    let name = claim.name_any();
    // A run that trains has its claims.
    let waits = |phase: RunPhase| matches!(phase, RunPhase::Pending | RunPhase::Retrying);
    runs.state()
        .into_iter()
        .filter(|run| run.metadata.namespace == claim.meta().namespace)
        .filter(|run| run.status.as_ref().and_then(|status| status.phase).is_none_or(waits))
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
    let now = clock::now();
    if run.is_ours() {
        output::release(&context, &run).await?;
    }
    let Some(mut seen) = observe(&context, &run, Look::Known, now).await? else { return Ok(gone(&context, &run)) };
    if output::guard(&context, &seen.run).await? {
        return Ok(Action::await_change());
    }
    let mut plan = plan(&context, &seen, now);
    if is_to_be_asked_for(&seen, &plan) {
        let Some(newer) = observe(&context, &run, Look::Afresh, now).await? else { return Ok(gone(&context, &run)) };
        seen = newer;
        plan = self::plan(&context, &seen, now);
    }
    let wake = Box::pin(apply::apply(&context, &seen, plan, now)).await?;
    Ok(wake.action(now))
}

fn plan(context: &Context, seen: &Observed, now: Timestamp) -> Plan {
    plan::plan(seen, validate::validate(&seen.run).as_ref(), &context.settings, now)
}

/// Everything that a run makes is collected with it; claims are files, and stay or go as their owner said.
fn gone(context: &Context, run: &TrainingRun) -> Action {
    let reference = ObjectRef::from(run);
    context.progress.forget(&reference);
    context.last_words.forget(&reference);
    Action::await_change()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_run_that_is_over_only_what_others_ask_for_is_kept() {
        let mut run = fixtures::run(&json!({"podTemplate": {"image": "mine:1"}}));
        let condition = json!({"type": "Ready", "status": "True", "reason": "Published", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"phase": "Succeeded", "attempt": 1, "conditions": [condition], "result": fixtures::result("a", 0.9)});
        run.status = serde_json::from_value(status).expect("a status");
        let whole = run.clone();
        trim(&mut run);
        assert_eq!(
            serde_json::to_value(&run).expect("JSON"),
            serde_json::to_value(&whole).expect("JSON"),
            "it is not over"
        );
        run.status.get_or_insert_default().completion_time = Some(Time(Timestamp::UNIX_EPOCH));
        trim(&mut run);
        let status = run.status.expect("a status");
        assert!(plan::is_over(&status) && status.conditions.is_empty() && run.spec.pod_template.image.is_none());
        assert_eq!(status.result, whole.status.and_then(|status| status.result));
    }
}
