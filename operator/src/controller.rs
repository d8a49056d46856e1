//! What the controllers have in common: when a watch wakes them, how a failure backs off, what is logged.

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        controller::{self, Action, Controller},
        reflector::{self, ObjectRef, Store},
        utils::Backoff,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::{
    cluster::Object,
    context::{Context, failure_key},
};

/// Longest sleep of an object that nothing wakes: a watch event that got lost is made up for by then.
pub const RESYNC: Duration = Duration::from_mins(5);

/// When to look at an object again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At this time, or earlier when something changes.
    At(Timestamp),
    /// When something changes, and after [`RESYNC`] at the latest.
    OnChange,
    /// Only when something changes: the object has reached its end.
    Never,
}

impl Wake {
    /// The earlier of two.
    #[must_use]
    pub fn or_at(self, time: Timestamp) -> Self {
        match self {
            Self::At(own) => Self::At(own.min(time)),
            Self::OnChange | Self::Never => Self::At(time),
        }
    }

    /// As kube-runtime takes it.
    pub fn action(self, now: Timestamp) -> Action {
        match self {
            Self::At(time) => {
                let wait = Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO);
                // Never at once: a deadline that has just passed must not spin.
                Action::requeue(wait.clamp(Duration::from_millis(200), RESYNC))
            }
            Self::OnChange => Action::requeue(RESYNC),
            Self::Never => Action::await_change(),
        }
    }
}

/// Length of a watch. One that died in silence is noticed some seconds after it, and load balancers drop what is idle for
/// longer; a new one costs one request, for it goes on from where the last one ended.
pub const WATCH: Duration = Duration::from_secs(30);

/// Watches that end after [`WATCH`], and begin with a list in pages that do not cost much memory at once.
pub fn watch() -> watcher::Config {
    let timeout = u32::try_from(WATCH.as_secs()).ok();
    watcher::Config { timeout, ..watcher::Config::default() }.page_size(100)
}

/// Pause after a failure of a watch, before it is tried again. It does not grow: after an outage of the API server, whoever
/// waits longest is to be back in seconds.
const PAUSE: Duration = Duration::from_secs(2);

/// A pause that never changes.
struct Pause(Duration);

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}

/// What a watch tells. It makes its pauses by itself: kube-runtime would hold up all watches of a controller for the failure
/// of one, longer and longer, and after an outage each of them fails more than once.
pub fn events<K: Object + Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static {
    watcher::watcher(api, config).backoff(Pause(PAUSE))
}

/// The objects that a watch tells of, those that are gone included.
pub fn touched<K: Object + Send + 'static>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<K>> + Send + 'static {
    events(api, config).touched_objects()
}

/// A controller of objects as [`stored`] has them.
pub fn controller<K: Object + Send + Sync + 'static>(api: Api<K>) -> Controller<K> {
    let (changed, store) = stored(api, |_| (), |_, _| (), |_| ());
    Controller::for_stream(changed, store)
}

/// The objects that a watch tells of, and a store which has no more of each than what somebody reads: who changed which field
/// when, and what kubectl keeps of what it applied, take more room than all the rest. `trim` takes away still more, `tell` hears
/// what the watch told before the store has it, and `listed` hears of each list that the store then has whole.
pub fn stored<K: Object + Send + Sync + 'static>(
    api: Api<K>,
    trim: fn(&mut K),
    tell: impl Fn(&Store<K>, &watcher::Event<K>) + Send + 'static,
    listed: impl Fn(&Store<K>) + Send + 'static,
) -> (impl Stream<Item = watcher::Result<K>> + Send + 'static, Store<K>) {
    let (store, writer) = reflector::store();
    let (before, after) = (store.clone(), store.clone());
    let events = events(api, watch()).modify(move |object: &mut K| {
        object.meta_mut().managed_fields = None;
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        trim(object);
    });
    let events = events.inspect_ok(move |event| tell(&before, event)).reflect(writer).inspect_ok(move |event| {
        if matches!(event, watcher::Event::InitDone) {
            listed(&after);
        }
    });
    (events.applied_objects(), store)
}

/// What is told of objects whose names, labels and owners are all that matters: the rest does not even come over the wire.
pub fn metadata_of<K: Object + Send + 'static>(
    context: &Context,
    namespace: Option<&str>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<PartialObjectMeta<K>>> + Send + 'static + use<K> {
    touched(api::<PartialObjectMeta<K>>(context, namespace), config)
}

/// An API over one namespace, or over all of them.
pub fn api<K: Object>(context: &Context, namespace: Option<&str>) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

/// Runs one reconcile: under a span, timed, counted, its failures backed off by key.
///
/// # Errors
/// What `reconcile` gives.
pub async fn observed<K, E, F>(
    kind: &'static str,
    object: Arc<K>,
    context: Arc<Context>,
    reconcile: F,
) -> Result<Action, E>
where
    K: Object,
    F: Future<Output = Result<Action, E>>,
{
    let key = key(kind, object.as_ref());
    let span = info_span!("reconcile", kind, namespace = object.namespace(), name = object.name_any());
    let start = std::time::Instant::now();
    let result = reconcile.instrument(span).await;
    let (namespace, seconds) = (object.namespace().unwrap_or_default(), start.elapsed().as_secs_f64());
    context.metrics.reconciled(kind, &namespace, result.is_ok(), seconds);
    if result.is_ok() {
        context.succeeded(&key);
    }
    result
}

/// Logs a failure and says when to try again.
pub fn back_off<K: Object, E: std::fmt::Display>(
    kind: &'static str,
    object: &K,
    problem: &E,
    context: &Context,
) -> Action {
    let wait = context.failed(&key(kind, object));
    warn!(kind, namespace = object.namespace(), name = object.name_any(), %problem, ?wait, "a reconcile failed and is tried again");
    Action::requeue(wait)
}

fn key<K: Object>(kind: &str, object: &K) -> String {
    failure_key(kind, &object.namespace().unwrap_or_default(), &object.name_any())
}

/// What a controller's stream says; nothing of it may go unseen, or a missing right would be silent.
fn log<K, E>(context: &Context, result: Result<(ObjectRef<K>, Action), controller::Error<E, watcher::Error>>)
where
    K: Resource<DynamicType = ()> + Debug,
    E: std::error::Error + 'static,
{
    match result {
        Ok((object, action)) => debug!(%object, ?action, "reconciled"),
        // Deleted: its reconcile is never called again, so that what is known of it is forgotten here.
        Err(controller::Error::ObjectNotFound(object)) => {
            debug!(%object, "gone");
            context.forget(&object.dyntype.kind, object.namespace.as_deref().unwrap_or_default(), &object.name);
        }
        // Logged with its object by the error policy.
        Err(controller::Error::ReconcilerFailed(..)) => {}
        Err(problem) => log_watch(&problem),
    }
}

/// Tells of a watch that failed.
pub fn log_watch(problem: &impl std::fmt::Display) {
    error!(%problem, "a watch of the controller failed; it is started again");
}

/// Drives a controller until it ends.
pub async fn drive<K, E, F, Fut>(
    controller: Controller<K>,
    reconcile: F,
    policy: impl Fn(Arc<K>, &E, Arc<Context>) -> Action + Send + Sync + 'static,
    context: Arc<Context>,
) where
    K: Object + Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
    E: std::error::Error + Send + 'static,
    F: Fn(Arc<K>, Arc<Context>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
{
    let shared = context.clone();
    // Each watch makes its own pauses.
    let controller = controller.trigger_backoff(Pause(Duration::ZERO));
    controller.run(reconcile, policy, context).for_each(|result| async { log(&shared, result) }).await;
}

#[cfg(test)]
mod tests {
    use anneal_api::resources::TrainingRun;
    use futures::{channel::mpsc, stream};
    use kube::{Client, Config, core::Status};

    use super::*;
    use crate::context::Settings;
    use crate::metrics::Metrics;

    #[derive(Debug, thiserror::Error)]
    #[error("never")]
    struct Never;

    fn failure() -> watcher::Error {
        watcher::Error::WatchError(Box::new(Status::failure("too old resource version", "Expired")))
    }

    #[tokio::test(start_paused = true)]
    async fn the_failures_of_one_watch_hold_up_no_other_one() {
        let run: TrainingRun = serde_json::from_value(serde_json::json!({
            "apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": "cats", "namespace": "demo"},
            "spec": {
                "model": {"architecture": "simple"}, "dataset": {"uri": "synthetic://?images=4&size=32"},
                "output": {"claimName": "models"}
            }
        }))
        .expect("a run");
        let (all, mut writer) = reflector::store();
        for event in [watcher::Event::Init, watcher::Event::InitApply(run.clone()), watcher::Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        // As after an outage: every watch fails some times, and only then one tells of something.
        let failing = || stream::iter((0..3).map(|_| Err::<TrainingRun, _>(failure()))).chain(stream::pending());
        let telling = stream::once(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(run)
        });
        let mut controller = Controller::for_stream(failing(), all);
        for _ in 0..7 {
            controller = controller.watches_stream(failing(), |_| None::<ObjectRef<TrainingRun>>);
        }
        let controller =
            controller.watches_stream(telling.chain(stream::pending()), |run: TrainingRun| Some(ObjectRef::from(&run)));
        let client =
            Client::try_from(Config::new("http://127.0.0.1:1".parse().expect("an address"))).expect("a client");
        let metrics = Metrics::new().expect("unique names");
        let context = Arc::new(Context::new(client, Settings::of_tests(), metrics, "test".to_owned()));
        let (tell, mut told) = mpsc::unbounded();
        let reconcile = move |run: Arc<TrainingRun>, _| {
            let _ = tell.unbounded_send(run.name_any());
            async { Ok::<_, Never>(Action::await_change()) }
        };
        let driven = tokio::spawn(drive(controller, reconcile, |_, _: &Never, _| Action::await_change(), context));
        let told = tokio::time::timeout(Duration::from_secs(5), told.next()).await;
        driven.abort();
        assert_eq!(told.expect("it is reconciled in time").as_deref(), Some("cats"));
    }
}
