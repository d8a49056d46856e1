//! What every reconcile is given.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anneal_api::{
    names::OPERATOR,
    resources::{ModelDeployment, TrainingRun},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::{ObjectRef, Store},
    },
};
use tokio::sync::SetOnce;
use tracing::warn;

use crate::{
    cluster::{self, ClusterError},
    metrics::Metrics,
    performance,
    progress::Board,
    queue::Queue,
    shadow, signals,
    training_run::{known::Known, last_words::LastWords, phases::Phases, written::Written},
};

/// Longest time that is waited for the watch to tell of all runs. Then the API server is asked, whose answer says what is wrong.
const RUNS_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time that the Events of one reconcile may take together.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(2);

/// What the person who installs the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of training pods where a run names none.
    pub trainer_image: String,
    /// Image of inference and smoke test pods where a deployment names none.
    pub server_image: String,
    /// Pull policy of both.
    pub image_pull_policy: Option<String>,
    /// Whether the operator may read the logs of pods.
    pub failure_logs: bool,
    /// Whether pods are reached by their address, or through the API server's proxy when the operator runs outside.
    pub reach: Reach,
}

#[cfg(test)]
impl Settings {
    /// What the tests install the operator with.
    pub fn of_tests() -> Self {
        Self {
            trainer_image: "trainer:1".to_owned(),
            server_image: "server:1".to_owned(),
            image_pull_policy: None,
            failure_logs: false,
            reach: Reach::Address,
        }
    }
}

/// How the operator reaches a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By the pod's address: inside the cluster.
    Address,
    /// Through the API server's pod proxy: outside the cluster. Needs a right that the chart's role never has.
    Proxy,
}

/// What every reconcile is given.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the person who installs the operator decided.
    pub settings: Settings,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Progress of the running training pods.
    pub progress: Board,
    /// What the pods count that just got traffic.
    pub signals: signals::Board,
    /// How well the pods do that serve.
    pub performance: performance::board::Board,
    /// How often candidates that get copies of requests agree with what serves.
    pub shadows: shadow::board::Board,
    /// What training pods said when they left.
    pub last_words: Arc<LastWords>,
    /// What the watches know of the runs' Jobs and pods.
    pub known: Arc<Known>,
    /// Who hears of it when a run comes to another phase.
    pub phases: Arc<Phases>,
    /// What was last written of runs.
    pub written: Written,
    /// The runs as the watch knows them, once it has told of all. Whoever asked the store whether it is ready would take the
    /// wake-up of the controller, which waits for that: it wakes only who asked last.
    pub runs: SetOnce<Store<TrainingRun>>,
    /// The runs that wait for a reconcile, once there is a controller of them.
    pub queue: SetOnce<Arc<Queue<TrainingRun>>>,
    reporter: Reporter,
    failures: Mutex<HashMap<String, u32>>,
}

/// Something that happened to a resource and that its owner wants to read about: one Event each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Whether it is bad news.
    pub warning: bool,
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// What happened, and what to do.
    pub note: String,
}

impl Transition {
    /// Good or neutral news.
    pub fn normal(reason: &'static str, note: impl Into<String>) -> Self {
        Self { warning: false, reason, note: note.into() }
    }

    /// Bad news.
    pub fn warning(reason: &'static str, note: impl Into<String>) -> Self {
        Self { warning: true, reason, note: note.into() }
    }
}

/// The key under which the failures of an object are counted.
pub fn failure_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

impl Context {
    /// A context over a client.
    pub fn new(client: Client, settings: Settings, metrics: Metrics, instance: String) -> Self {
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: Some(instance) };
        Self {
            client,
            settings,
            progress: Board::new(metrics.clone()),
            signals: signals::Board::default(),
            performance: performance::board::Board::default(),
            shadows: shadow::board::Board::default(),
            metrics,
            last_words: Arc::default(),
            known: Arc::default(),
            phases: Arc::default(),
            written: Written::default(),
            runs: SetOnce::new(),
            queue: SetOnce::new(),
            reporter,
            failures: Mutex::default(),
        }
    }

    /// The runs of a namespace: as the watch knows them, so that thousands of runs that ask for each other cost nothing. An
    /// operator that starts waits for it: a list for each who asks would be more than its memory holds.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn runs_of(&self, namespace: &str) -> Result<Vec<Arc<TrainingRun>>, ClusterError> {
        let Ok(known) = tokio::time::timeout(RUNS_TIMEOUT, self.runs.wait()).await else {
            return Ok(cluster::list(&self.client, namespace, "").await?.into_iter().map(Arc::new).collect());
        };
        Ok(known.state().into_iter().filter(|run| run.namespace().as_deref() == Some(namespace)).collect())
    }

    /// Publishes Events. One that cannot be published is logged and never stops a reconcile, nor do all of them together hold
    /// one up for long: on a way back every second counts.
    pub async fn publish(&self, about: &ObjectReference, transitions: &[Transition]) {
        // A recorder keeps every Event for six minutes, to count those that come again, and goes through all of them for
        // each new one: with thousands of runs that is most of the memory. A transition is told once.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        let end = tokio::time::Instant::now() + EVENTS_TIMEOUT;
        for transition in transitions {
            let event = Event {
                type_: if transition.warning { EventType::Warning } else { EventType::Normal },
                reason: transition.reason.to_owned(),
                // The API server refuses a note of more than 1 kB.
                note: Some(anneal_api::termination::cut(&transition.note, 1000)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = tokio::time::timeout_at(end, recorder.publish(&event, about)).await;
            match published {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => warn!(%problem, reason = transition.reason, "an Event could not be published"),
                Err(_) => warn!(reason = transition.reason, "an Event could not be published in time"),
            }
        }
    }

    /// How long to wait before the next try of `key`, which just failed: 1 s, doubled with each failure, at most 256 s.
    pub fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_default();
        let wait = Duration::from_secs(1 << (*count).min(8));
        *count += 1;
        wait
    }

    /// Forgets the failures of `key`, which just succeeded.
    pub fn succeeded(&self, key: &str) {
        self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }

    /// Forgets everything about an object that is gone.
    pub fn forget(&self, kind: &str, namespace: &str, name: &str) {
        self.succeeded(&failure_key(&kind.to_lowercase(), namespace, name));
        if kind == TrainingRun::kind(&()) {
            let run = ObjectRef::new(name).within(namespace);
            self.progress.forget(&run);
            self.last_words.forget(&run);
            self.known.forget(&run);
            self.written.forget(&run);
            if let Some(queue) = self.queue.get() {
                queue.done(&run);
            }
        }
        if kind == ModelDeployment::kind(&()) {
            let deployment = ObjectRef::new(name).within(namespace);
            self.signals.forget(&deployment);
            self.performance.forget(&deployment);
            self.shadows.forget(&deployment);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use hyper::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// A context whose API server never answers.
    fn unanswered() -> Context {
        let silent = tower::service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let metrics = Metrics::new().expect("unique names");
        Context::new(Client::new(silent, "ml"), Settings::of_tests(), metrics, "operator-1".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_needs_the_runs_waits_for_the_watch_and_asks_the_api_server_only_where_it_does_not_come() {
        let context = Arc::new(unanswered());
        let asking = tokio::spawn({
            let context = context.clone();
            async move { context.runs_of("ml").await.map(|runs| runs.len()).ok() }
        });
        tokio::time::sleep(RUNS_TIMEOUT / 2).await;
        let (store, mut writer) = kube::runtime::reflector::store();
        let run = crate::training_run::fixtures::run(&serde_json::json!({}));
        writer.apply_watcher_event(&kube::runtime::watcher::Event::Apply(run.clone()));
        let mut ours = run;
        ours.metadata.namespace = Some("ml".to_owned());
        writer.apply_watcher_event(&kube::runtime::watcher::Event::Apply(ours));
        assert!(context.runs.set(store).is_ok());
        assert_eq!(asking.await.expect("an end"), Some(1));
        assert!(unanswered().runs_of("ml").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_nobody_takes_hold_up_a_reconcile_for_seconds_only() {
        let context = unanswered();
        let start = tokio::time::Instant::now();
        let about = ObjectReference { namespace: Some("ml".to_owned()), ..ObjectReference::default() };
        context.publish(&about, &vec![Transition::normal("Promoted", "why"); 3]).await;
        assert!(start.elapsed() < EVENTS_TIMEOUT + Duration::from_millis(100), "{:?}", start.elapsed());
    }
}
