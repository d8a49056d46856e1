//! Where the server is in its life, and what it therefore says to probes.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::Notify;
use warp::http::{HeaderName, HeaderValue};

use crate::{answers::Answers, drift::Drift, engine::Engine, feedback::Feedback, model::Facts};

/// A stage of the server's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet; the words say what it is doing.
    Starting(&'static str),
    /// Answers requests.
    Ready,
    /// The model gave outputs that are no numbers. That does not heal.
    Broken(String),
    /// Was told to stop. Still answers, but wants no new clients.
    Stopping,
}

/// The model and its workers, once loaded.
#[derive(Debug)]
pub struct Serving {
    /// What is known about the model.
    pub facts: Facts,
    /// The threads that run it.
    pub engine: Engine,
    /// What became of its predictions.
    pub feedback: Feedback,
    /// How far they are from those on the validation set, where the checkpoint tells of those.
    pub drift: Option<Drift>,
    /// What the newest requests were answered, to be compared with another revision.
    pub answers: Answers,
    /// Headers that say where it came from.
    pub lineage: Vec<(HeaderName, HeaderValue)>,
}

impl Serving {
    /// A model that is served, with the secret that signs the ids of its predictions.
    pub fn new(facts: Facts, engine: Engine, secret: Option<&str>) -> Self {
        let dataset = facts.dataset.as_ref().map(|dataset| dataset.digest.as_str());
        let names = [
            (HeaderName::from_static("x-anneal-checkpoint"), Some(facts.sha256.as_str())),
            (HeaderName::from_static("x-anneal-training-run"), facts.run.as_deref()),
            (HeaderName::from_static("x-anneal-dataset"), dataset),
        ];
        // A name that cannot be a header is in /model/info all the same.
        let lineage = names.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(value?).ok()?)));
        let drift = facts.validation.clone().map(Drift::new);
        let feedback = Feedback::new(secret, &facts.sha256);
        Self { lineage: lineage.collect(), drift, answers: Answers::default(), feedback, facts, engine }
    }
}

/// The server's life, shared by all that ask about it.
#[derive(Clone, Debug, Default)]
pub struct Life(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    phase: RwLock<Phase>,
    serving: OnceLock<Serving>,
    late: Notify,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            phase: RwLock::new(Phase::Starting("the model is being loaded")),
            serving: OnceLock::new(),
            late: Notify::new(),
        }
    }
}

impl Life {
    /// The current stage.
    pub fn phase(&self) -> Phase {
        self.0.phase.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model, from the moment that it is loaded.
    pub fn serving(&self) -> Option<&Serving> {
        self.0.serving.get()
    }

    /// Says what the server is doing before it is ready.
    pub fn starting(&self, what: &'static str) {
        self.advance(Phase::Starting(what));
    }

    /// From now on requests are answered with this model.
    pub fn ready(&self, serving: Serving) {
        // Set before the phase, so that whoever sees `Ready` finds a model.
        let _ = self.0.serving.set(serving);
        self.advance(Phase::Ready);
    }

    /// The model turned out to be unusable.
    pub fn broken(&self, why: String) {
        self.advance(Phase::Broken(why));
    }

    /// The server was told to stop.
    pub fn stopping(&self) {
        self.advance(Phase::Stopping);
    }

    /// Whether clients should open new connections elsewhere.
    pub fn is_stopping(&self) -> bool {
        self.phase() == Phase::Stopping
    }

    /// A client asks for something that only a model can give.
    pub fn asked(&self) {
        if self.is_stopping() && self.serving().is_some() {
            self.0.late.notify_one();
        }
    }

    /// Waits until a client asks although the server was told to stop: not everybody has learned of it.
    pub async fn asked_late(&self) {
        self.0.late.notified().await;
    }

    /// Why the server should get no traffic; none when it should.
    pub fn unready(&self) -> Option<String> {
        match self.phase() {
            Phase::Starting(what) => Some(what.to_owned()),
            Phase::Ready => None,
            Phase::Broken(why) => Some(why),
            Phase::Stopping => Some("the server is shutting down".to_owned()),
        }
    }

    /// Life goes one way: a server that stops is never ready again, a broken one neither.
    fn advance(&self, next: Phase) {
        let mut phase = self.0.phase.write().unwrap_or_else(PoisonError::into_inner);
        if rank(&next) >= rank(&phase) {
            *phase = next;
        }
    }
}

fn rank(phase: &Phase) -> u8 {
    match phase {
        Phase::Starting(_) => 0,
        Phase::Ready => 1,
        Phase::Broken(_) => 2,
        Phase::Stopping => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_while_it_loads_never_becomes_ready() {
        let life = Life::default();
        assert!(life.unready().is_some());
        life.starting("the model is warmed up");
        assert_eq!(life.unready().as_deref(), Some("the model is warmed up"));
        life.stopping();
        life.advance(Phase::Ready);
        life.broken("NaN".to_owned());
        assert_eq!(life.phase(), Phase::Stopping);
    }

    #[test]
    fn a_broken_model_does_not_heal() {
        let life = Life::default();
        life.advance(Phase::Ready);
        assert_eq!(life.unready(), None);
        life.broken("NaN".to_owned());
        life.advance(Phase::Ready);
        assert_eq!(life.unready().as_deref(), Some("NaN"));
    }
}
