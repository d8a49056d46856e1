//! Reads training pods' progress beside the reconciles: bounded in time, size and number, so that a slow or broken pod
//! holds up nobody.

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
use futures::{StreamExt, channel::mpsc};
use kube::runtime::reflector::ObjectRef;
use tracing::debug;

pub use crate::pod_http::Target;
use crate::{
    context::Context,
    metrics::Metrics,
    pod_http::{PodClient, Question},
};

/// How often one pod is read. A status write follows each read that brought news, so this bounds the writes too.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often to look who is due.
const TICK: Duration = Duration::from_secs(2);
/// Reads that may fail in a row before a pod is asked less often.
const QUICK_TRIES: u32 = 15;
/// Pause after that many.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Reads that run side by side.
const CONCURRENCY: usize = 16;

/// What is asked.
const QUESTION: Question = Question { port: PROGRESS_PORT, path: "/progress", max_bytes: MAX_BYTES };

#[derive(Debug)]
struct Entry {
    target: Target,
    latest: Option<Progress>,
    due: Instant,
    /// Reads that failed in a row.
    failures: u32,
}

/// What is known about the progress of every running run.
#[derive(Debug, Default)]
pub struct Board(Mutex<HashMap<ObjectRef<TrainingRun>, Entry>>);

impl Board {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectRef<TrainingRun>, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read `target` for `run`, or goes on; another pod than before starts afresh.
    pub fn follow(&self, run: ObjectRef<TrainingRun>, target: Target) {
        let mut entries = self.entries();
        if entries.get(&run).is_none_or(|entry| entry.target != target) {
            entries.insert(run, Entry { target, latest: None, due: Instant::now(), failures: 0 });
        }
    }

    /// Stops to read for `run`.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        self.entries().remove(run);
    }

    /// The newest progress of `run`.
    pub fn latest(&self, run: &ObjectRef<TrainingRun>) -> Option<Progress> {
        self.entries().get(run).and_then(|entry| entry.latest.clone())
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
        let Some(entry) = entries.get_mut(run).filter(|entry| entry.target == *target) else { return false };
        let Some(progress) = read else {
            // The pod may not listen yet; an image that never does must not be asked for ever at this rate.
            entry.due = now + if entry.failures < QUICK_TRIES { TICK } else { LONGEST_PAUSE };
            entry.failures = entry.failures.saturating_add(1);
            return false;
        };
        entry.due = now + INTERVAL;
        entry.failures = 0;
        let news = entry.latest.as_ref() != Some(&progress);
        entry.latest = Some(progress);
        news
    }
}

/// Reads for ever, and sends the runs that have news.
pub async fn read_all(context: Arc<Context>, news: mpsc::UnboundedSender<ObjectRef<TrainingRun>>) {
    let client = PodClient::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let board = &context.progress;
        futures::stream::iter(board.due(Instant::now()))
            .for_each_concurrent(CONCURRENCY, |(run, target)| {
                let (context, news, client) = (&context, &news, &client);
                async move {
                    let read = read(context, client, &target, &context.metrics).await;
                    if board.record(&run, &target, read, Instant::now()) {
                        // The receiver is gone only when the controller ended, and with it the process.
                        let _ = news.unbounded_send(run);
                    }
                }
            })
            .await;
    }
}

async fn read(context: &Context, client: &PodClient, target: &Target, metrics: &Metrics) -> Option<Progress> {
    let text = client.get(context, target, QUESTION).await;
    let progress = text.and_then(|text| serde_json::from_str(&text).map_err(|problem| problem.to_string()));
    metrics.progress_read(progress.is_ok());
    progress.map_err(|problem| debug!(pod = target.pod, problem, "progress could not be read")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: i64) -> Progress {
        Progress { epochs: 2, step, steps: 100, ..Progress::default() }
    }

    fn target(pod: &str) -> Target {
        Target { namespace: "ml".into(), pod: pod.into(), address: "10.0.0.1".into() }
    }

    #[test]
    fn a_pod_is_read_again_only_after_the_interval() {
        let (board, run, now) = (Board::default(), ObjectRef::new("cats").within("ml"), Instant::now());
        board.follow(run.clone(), target("cats-1-a"));
        assert_eq!(board.due(Instant::now()).len(), 1);
        assert!(board.record(&run, &target("cats-1-a"), Some(progress(1)), now));
        assert!(board.due(now + INTERVAL / 2).is_empty());
        assert_eq!(board.due(now + INTERVAL).len(), 1);
        assert!(!board.record(&run, &target("cats-1-a"), Some(progress(1)), now), "the same again is no news");
    }

    #[test]
    fn a_pod_that_stays_silent_is_asked_less_often() {
        let (board, run, now) = (Board::default(), ObjectRef::new("cats").within("ml"), Instant::now());
        board.follow(run.clone(), target("cats-1-a"));
        board.record(&run, &target("cats-1-a"), None, now);
        assert_eq!(board.due(now + TICK).len(), 1, "it may just be starting");
        for _ in 0..QUICK_TRIES {
            board.record(&run, &target("cats-1-a"), None, now);
        }
        assert!(board.due(now + LONGEST_PAUSE / 2).is_empty());
        assert_eq!(board.due(now + LONGEST_PAUSE).len(), 1);
    }

    #[test]
    fn the_progress_of_a_former_pod_is_not_taken_for_the_new_ones() {
        let (board, run) = (Board::default(), ObjectRef::new("cats").within("ml"));
        board.follow(run.clone(), target("cats-1-a"));
        board.record(&run, &target("cats-1-a"), Some(progress(50)), Instant::now());
        board.follow(run.clone(), target("cats-2-b"));
        assert_eq!(board.latest(&run), None);
        assert!(!board.record(&run, &target("cats-1-a"), Some(progress(60)), Instant::now()));
        assert_eq!(board.latest(&run), None);
    }
}
