//! Reads training pods' progress beside the reconciles: bounded in time, size and number, and by namespaces in turn, so that
//! slow or broken pods hold up nobody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anneal_api::{
    names::PROGRESS_PORT,
    progress::{MAX_BYTES, Progress},
    resources::TrainingRun,
};
use futures::channel::mpsc;
use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use tracing::debug;

pub use crate::pod_http::Target;
use crate::{
    clock,
    context::Context,
    metrics::Metrics,
    pod_http::{NoAnswer, PodClient, Question, in_turn},
    room::Room,
};

/// How often one pod is read. A status write follows each read that brought news, so this bounds the writes too.
const INTERVAL: Duration = Duration::from_secs(10);
/// Reads of all pods together in one second: each one may bring a write.
const READS_PER_SECOND: u32 = 50;
/// How often to look who is due.
const TICK: Duration = Duration::from_secs(2);
/// Reads that fail in a row before a pod counts as silent.
const SILENT: u32 = 3;
/// Reads that may fail in a row before a pod is asked less often.
const QUICK_TRIES: u32 = 15;
/// Pause after that many.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Reads that run side by side.
const CONCURRENCY: usize = 16;

/// What is asked.
const QUESTION: Question = Question { port: PROGRESS_PORT, path: "/progress", max_bytes: MAX_BYTES };

/// What a pod said, as far as it was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// It was not asked, or not often enough to tell.
    Unknown,
    /// It was asked and does not answer.
    Silent,
    /// The newest that it said.
    Said(Box<Progress>),
}

#[derive(Debug)]
struct Entry {
    target: Target,
    latest: Option<Progress>,
    due: Instant,
    /// When it last answered, or failed to.
    asked: Option<Timestamp>,
    /// Reads that failed in a row.
    failures: u32,
}

impl Entry {
    fn new(target: Target) -> Self {
        Self { target, latest: None, due: Instant::now(), asked: None, failures: 0 }
    }
}

/// What is known about the progress of every running run.
#[derive(Debug)]
pub struct Board {
    entries: Mutex<HashMap<ObjectRef<TrainingRun>, Entry>>,
    metrics: Metrics,
}

impl Board {
    /// A board on which nothing stands yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { entries: Mutex::default(), metrics }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectRef<TrainingRun>, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read `target` for `run`, or goes on; another pod than before starts afresh.
    pub fn follow(&self, run: ObjectRef<TrainingRun>, target: Target) {
        let mut entries = self.entries();
        if entries.get(&run).is_none_or(|entry| entry.target != target) {
            entries.insert(run, Entry::new(target));
        }
    }

    /// Stops to read for `run`.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        if self.entries().take_out(run).is_some() {
            self.metrics.training_ended(run.namespace.as_deref().unwrap_or_default(), &run.name);
        }
    }

    /// What the pod of `run` said.
    pub fn reading(&self, run: &ObjectRef<TrainingRun>) -> Reading {
        let entries = self.entries();
        let Some(entry) = entries.get(run) else { return Reading::Unknown };
        match &entry.latest {
            Some(progress) => Reading::Said(Box::new(progress.clone())),
            None if entry.failures >= SILENT => Reading::Silent,
            None => Reading::Unknown,
        }
    }

    /// When the pod of `run` was asked last. With thousands of runs that may be minutes ago.
    pub fn asked(&self, run: &ObjectRef<TrainingRun>) -> Option<Timestamp> {
        self.entries().get(run)?.asked
    }

    fn due(&self, now: Instant) -> Vec<(ObjectRef<TrainingRun>, Target)> {
        self.entries()
            .iter()
            .filter(|(_, entry)| entry.due <= now)
            .map(|(run, entry)| (run.clone(), entry.target.clone()))
            .collect()
    }

    /// Records a read. Returns whether it brought news.
    fn record(&self, run: &ObjectRef<TrainingRun>, target: &Target, read: Option<Progress>, now: Instant) -> bool {
        let mut entries = self.entries();
        let interval = interval(entries.len());
        let Some(entry) = entries.get_mut(run).filter(|entry| entry.target == *target) else { return false };
        entry.asked = Some(clock::now());
        let Some(progress) = read else {
            // The pod may not listen yet; an image that never does must not be asked for ever at this rate.
            entry.due = now + if entry.failures < QUICK_TRIES { TICK } else { LONGEST_PAUSE };
            entry.failures = entry.failures.saturating_add(1);
            // A deadline on the heartbeat can be judged from now on.
            return entry.failures == SILENT && entry.latest.is_none();
        };
        self.metrics.training(run.namespace.as_deref().unwrap_or_default(), &run.name, &progress);
        entry.due = now + interval;
        entry.failures = 0;
        let news = entry.latest.as_ref() != Some(&progress);
        entry.latest = Some(progress);
        news
    }
}

/// How often one of this many pods is read.
fn interval(pods: usize) -> Duration {
    INTERVAL.max(Duration::from_secs(1) * u32::try_from(pods).unwrap_or(u32::MAX) / READS_PER_SECOND)
}

/// Reads for ever, and sends the runs that have news.
pub async fn read_all(context: Arc<Context>, news: mpsc::UnboundedSender<ObjectRef<TrainingRun>>) {
    let client = PodClient::default();
    in_turn(TICK, CONCURRENCY, || {
        let due = context.progress.due(Instant::now()).into_iter();
        due.map(|(run, target)| {
            (run.clone(), target.namespace.clone(), follow_up(&context, &client, &news, run, target))
        })
        .collect()
    })
    .await;
}

async fn follow_up(
    context: &Context,
    client: &PodClient,
    news: &mpsc::UnboundedSender<ObjectRef<TrainingRun>>,
    run: ObjectRef<TrainingRun>,
    target: Target,
) {
    let read = read(context, client, &target, &context.metrics).await;
    if context.progress.record(&run, &target, read, Instant::now()) {
        // The receiver is gone only when the controller ended, and with it the process.
        let _ = news.unbounded_send(run);
    }
}

async fn read(context: &Context, client: &PodClient, target: &Target, metrics: &Metrics) -> Option<Progress> {
    let text = client.get(context, target, QUESTION).await;
    let progress =
        text.and_then(|text| Progress::parse(&text).map_err(|problem| NoAnswer::Failed(problem.to_string())));
    metrics.progress_read(match progress {
        Ok(_) => "success",
        Err(NoAnswer::Absent(_)) => "absent",
        Err(NoAnswer::Failed(_)) => "error",
    });
    progress.map_err(|problem| debug!(pod = target.pod, %problem, "progress could not be read")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: i64) -> Progress {
        Progress { epochs: 2, step, steps: 100, ..Progress::default() }
    }

    fn board() -> Board {
        Board::new(Metrics::new().expect("unique names"))
    }

    fn target(pod: &str) -> Target {
        Target { namespace: "ml".into(), pod: pod.into(), address: "10.0.0.1".into() }
    }

    #[test]
    fn a_pod_is_read_again_only_after_the_interval() {
        let (board, run, now) = (board(), ObjectRef::new("cats").within("ml"), Instant::now());
        board.follow(run.clone(), target("cats-1-a"));
        assert_eq!(board.due(Instant::now()).len(), 1);
        assert!(board.record(&run, &target("cats-1-a"), Some(progress(1)), now));
        assert!(board.due(now + INTERVAL / 2).is_empty());
        assert_eq!(board.due(now + INTERVAL).len(), 1);
        assert!(!board.record(&run, &target("cats-1-a"), Some(progress(1)), now), "the same again is no news");
    }

    #[test]
    fn a_pod_that_stays_silent_is_asked_less_often() {
        let (board, run, now) = (board(), ObjectRef::new("cats").within("ml"), Instant::now());
        board.follow(run.clone(), target("cats-1-a"));
        board.record(&run, &target("cats-1-a"), None, now);
        assert_eq!(board.due(now + TICK).len(), 1, "it may just be starting");
        assert!(board.asked(&run).is_some(), "no answer is one, too");
        for _ in 0..QUICK_TRIES {
            board.record(&run, &target("cats-1-a"), None, now);
        }
        assert_eq!(board.reading(&run), Reading::Silent);
        assert!(board.due(now + LONGEST_PAUSE / 2).is_empty());
        assert_eq!(board.due(now + LONGEST_PAUSE).len(), 1);
    }

    #[test]
    fn the_progress_of_a_former_pod_is_not_taken_for_the_new_ones() {
        let (board, run) = (board(), ObjectRef::new("cats").within("ml"));
        board.follow(run.clone(), target("cats-1-a"));
        board.record(&run, &target("cats-1-a"), Some(progress(50)), Instant::now());
        board.follow(run.clone(), target("cats-2-b"));
        assert_eq!(board.reading(&run), Reading::Unknown);
        assert!(!board.record(&run, &target("cats-1-a"), Some(progress(60)), Instant::now()));
        assert_eq!(board.reading(&run), Reading::Unknown);
    }

    #[test]
    fn ten_thousand_runs_are_read_less_often_than_ten() {
        assert_eq!((interval(10), interval(500)), (INTERVAL, INTERVAL));
        assert_eq!(interval(10_000), Duration::from_secs(200));
    }
}
