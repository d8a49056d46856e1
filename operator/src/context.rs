//! What every reconcile is given.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use anneal_api::names::OPERATOR;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use crate::{metrics::Metrics, progress::Board};

/// What the person who installs the operator decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of training pods where a run names none.
    pub trainer_image: String,
    /// Image of inference and smoke test pods where a deployment names none.
    pub server_image: String,
    /// Pull policy of both.
    pub image_pull_policy: Option<String>,
    /// Whether pods are reached by their address, or through the API server's proxy when the operator runs outside.
    pub reach: Reach,
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
    recorder: Recorder,
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

impl Context {
    /// A context over a client.
    pub fn new(client: Client, settings: Settings, metrics: Metrics, instance: String) -> Self {
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: Some(instance) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, settings, metrics, progress: Board::default(), recorder, failures: Mutex::default() }
    }

    /// Publishes Events. One that cannot be published is logged and never stops a reconcile.
    pub async fn publish(&self, about: &ObjectReference, transitions: &[Transition]) {
        for transition in transitions {
            let event = Event {
                type_: if transition.warning { EventType::Warning } else { EventType::Normal },
                reason: transition.reason.to_owned(),
                // The API server refuses a note of more than 1 kB.
                note: Some(anneal_api::termination::cut(&transition.note, 1000)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = tokio::time::timeout(Duration::from_secs(10), self.recorder.publish(&event, about)).await;
            match published {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => warn!(%problem, reason = transition.reason, "an Event could not be published"),
                Err(_) => warn!(reason = transition.reason, "an Event could not be published in time"),
            }
        }
    }

    /// How long to wait before the next try of `key`, which just failed: 1 s, doubled with each failure, at most 5 min.
    pub fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_default();
        let wait = Duration::from_secs(1 << (*count).min(8)).min(Duration::from_mins(5));
        *count += 1;
        wait
    }

    /// Forgets the failures of `key`, which just succeeded.
    pub fn succeeded(&self, key: &str) {
        self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}
