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
    resources::{RunPhase, RunPodTemplate, TrainingRun, TrainingRunStatus},
};
use futures::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    channel::mpsc,
    stream::{self, BoxStream, SelectAll},
};
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
    controller::{api, back_off, drive, events, log_watch, observed, stored, watch},
    progress::read_all,
    queue::Queue,
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
    let (woken, runs) = wakes(&context, namespace, woken);
    let queue = Queue::new(KIND, usize::from(concurrency), context.metrics.clone());
    // There is one controller of runs in a process.
    let _ = context.queue.set(queue.clone());
    // Bounded by the queue, which alone wakes it.
    let controller = Controller::for_stream(stream::pending(), runs.clone())
        .with_config(Config::default().concurrency(0))
        .reconcile_on(queue.clone().take());
    let waiting = queue.clone();
    tokio::join!(
        fill(&queue, woken),
        drive(
            controller,
            move |run, context| in_turn(waiting.clone(), run, context),
            |run, problem: &Error, context| back_off(KIND, run.as_ref(), problem, &context),
            context.clone(),
        ),
        read_all(context.clone(), news),
        count_phases(&context, &runs),
    );
}

/// Puts into the queue for ever whatever is woken.
async fn fill(queue: &Queue<TrainingRun>, woken: impl Stream<Item = watcher::Result<ObjectRef<TrainingRun>>>) {
    woken
        .for_each(|run| {
            match run {
                Ok(run) => queue.add(run),
                Err(problem) => log_watch(&problem),
            }
            std::future::ready(())
        })
        .await;
}

/// Reconciles a run that the queue gave out. One that woke by the time waits in the queue first.
async fn in_turn(
    queue: Arc<Queue<TrainingRun>>,
    run: Arc<TrainingRun>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let reference = named(&run);
    if !queue.is_out(&reference) {
        queue.add(reference);
        return Ok(Action::await_change());
    }
    let done = Box::pin(observed(KIND, run.clone(), context.clone(), reconcile(run, context))).await;
    queue.done(&reference);
    done
}

/// A run by its name alone.
fn named(run: &TrainingRun) -> ObjectRef<TrainingRun> {
    ObjectRef::new(&run.name_any()).within(&run.namespace().unwrap_or_default())
}

/// Tells the metrics for ever how many runs are in each phase.
async fn count_phases(context: &Context, runs: &Store<TrainingRun>) {
    let mut tick = tokio::time::interval(COUNT_INTERVAL);
    loop {
        tick.tick().await;
        context.metrics.runs(runs.state().iter().map(|run| run.status.as_ref().and_then(|status| status.phase)));
    }
}

/// The runs that something wakes, from all that can.
type Woken = SelectAll<BoxStream<'static, watcher::Result<ObjectRef<TrainingRun>>>>;

/// The runs that something wakes, and the runs as the watch knows them.
fn wakes(
    context: &Arc<Context>,
    namespace: Option<&str>,
    woken: impl Stream<Item = ObjectRef<TrainingRun>> + Send + 'static,
) -> (Woken, Store<TrainingRun>) {
    let phases = context.phases.clone();
    let (listed, is_listed) = tokio::sync::watch::channel(false);
    let tell = move |before: &Store<TrainingRun>, event: &watcher::Event<TrainingRun>| phases.tell(before, event);
    let of_runs = context.clone();
    let whole = move |runs: &Store<TrainingRun>| {
        // There is one controller of runs in a process, and it has this store from the first list on.
        let _ = of_runs.runs.set(runs.clone());
        listed.send_replace(true);
    };
    let (own, runs) = stored(api::<TrainingRun>(context, namespace), trim, tell, whole);
    let jobs = children::<Job>(context, namespace, is_listed.clone());
    let jobs = follow(jobs, context.known.clone(), |known| &known.jobs, is_over_in(&runs));
    let pods = children::<Pod>(context, namespace, is_listed);
    let pods = follow(pods, context.known.clone(), |known| &known.pods, is_over_in(&runs));
    let claims = events(api::<PersistentVolumeClaim>(context, namespace), watch());
    let claims = follow(claims, context.known.clone(), |known| &known.claims, |_| false);
    let (last_words, of_claims) = (context.last_words.clone(), runs.clone());
    let of_pod = move |pod: Pod| {
        let run = run_of(&pod);
        if let Some(run) = &run {
            last_words.note(run, &pod);
        }
        std::future::ready(Ok(run))
    };
    let of_claim = move |claim: PersistentVolumeClaim| {
        stream::iter(runs_of_claim(&of_claims, &claim)).map(Ok::<_, watcher::Error>)
    };
    let woken = stream::select_all([
        own.map_ok(|run| named(&run)).boxed(),
        jobs.try_filter_map(|job| std::future::ready(Ok(run_of(&job)))).boxed(),
        pods.try_filter_map(of_pod).boxed(),
        claims.map_ok(of_claim).try_flatten().boxed(),
        woken.map(Ok).boxed(),
    ]);
    (woken, runs)
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
    let Some(status) = &mut run.status else { return };
    if !plan::is_over(status) {
        // There is room for more than came.
        status.conditions.shrink_to_fit();
        return;
    }
    *status = TrainingRunStatus {
        phase: status.phase,
        observed_generation: status.observed_generation,
        completion_time: status.completion_time.take(),
        init_from: status.init_from.take(),
        result: status.result.take(),
        ..TrainingRunStatus::default()
    };
    run.spec.pod_template = RunPodTemplate::default();
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
