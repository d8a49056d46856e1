//! The pods whose performance is followed, and what came of reading them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anneal_api::{names::SERVER_PORT, resources::ModelDeployment};
use futures::channel::mpsc;
use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;

use super::{Bounds, Counts, Measured};
use crate::{
    clock,
    context::Context,
    pod_http::{Question, Target},
    rounds::{self, Key, MAX_PODS, Pods, READS_A_SECOND, Round},
};

/// Bins that are kept of the pods of one namespace: those of a hundred pods with a thousand classes. Of more, the pods that are
/// read later count as silent.
const MAX_BINS: usize = 128 * 1024;
/// What is asked.
const ROUND: Round = Round {
    question: Question { port: SERVER_PORT, path: "/metrics", max_bytes: 1 << 20 },
    interval: Duration::from_secs(15),
    most: READS_A_SECOND,
};

/// What came of reading a pod last.
type Read = Option<Result<Counts, ()>>;

/// What is known about a revision that has the traffic.
#[derive(Debug)]
pub struct Entry {
    revision: String,
    bounds: Bounds,
    pods: Pods<Read>,
    told: Option<(Measured, Timestamp)>,
}

impl rounds::Entry for Entry {
    type Pod = Read;

    fn pods(&mut self) -> &mut Pods<Read> {
        &mut self.pods
    }
}

/// What is known about the revisions that have the traffic.
pub type Board = rounds::Board<Entry>;

impl Board {
    /// Starts to read the pods of a revision, given with their UIDs, or goes on.
    pub fn follow(
        &self,
        key: ObjectRef<ModelDeployment>,
        revision: &str,
        pods: Vec<(String, Target)>,
        bounds: &Bounds,
        now: Instant,
    ) {
        let mut entries = self.entries();
        let new = || Entry { revision: revision.to_owned(), bounds: bounds.clone(), pods: Pods::default(), told: None };
        let entry = entries.entry(key).or_insert_with(new);
        if entry.revision != revision {
            *entry = new();
        }
        entry.bounds = bounds.clone();
        entry.pods.follow(pods.into_iter().take(MAX_PODS).map(|(uid, target)| (uid, target, None)), now);
    }

    /// How well a deployment's revision does, once each of its pods was asked.
    pub fn latest(&self, key: &ObjectRef<ModelDeployment>) -> Option<Measured> {
        self.entries().get(key).and_then(Entry::measured)
    }

    /// Records a read. Returns whether it is worth a reconcile.
    fn record(&self, (key, uid): &Key, read: Result<Counts, ()>, now: Timestamp) -> bool {
        let mut entries = self.entries();
        let others = entries.iter().filter(|(other, _)| other.namespace == key.namespace);
        let others = others.flat_map(|(_, entry)| entry.pods.iter()).filter(|(other, _)| *other != uid);
        let others = others.filter_map(|(_, read)| read.as_ref()?.as_ref().ok());
        let kept: usize = others.map(Counts::bins).sum();
        let read = read.and_then(|counts| if kept + counts.bins() > MAX_BINS { Err(()) } else { Ok(counts) });
        let Some(entry) = entries.get_mut(key) else { return false };
        let Some(last) = entry.pods.get_mut(uid) else { return false };
        // A pod that gives no answer for once is still as it was.
        if read.is_ok() || last.is_none() {
            *last = Some(read);
        }
        let Some(measured) = entry.measured() else { return false };
        let told = entry.told.as_ref();
        let is_news = told.is_none_or(|(old, told)| measured.is_news(old, *told, &entry.bounds, now));
        if is_news {
            entry.told = Some((measured, now));
        }
        is_news
    }
}

impl Entry {
    fn measured(&self) -> Option<Measured> {
        let (mut sum, mut pods) = (Counts::default(), 0);
        for read in self.pods.known() {
            if let Ok(counts) = read.as_ref()? {
                sum.add(counts);
                pods += 1;
            }
        }
        (pods > 0).then(|| sum.measured(&self.revision, pods))
    }
}

/// Reads for ever, and sends the deployments about which there is news.
pub async fn read_all(context: Arc<Context>, news: mpsc::UnboundedSender<ObjectRef<ModelDeployment>>) {
    let record = |key: Key, read: Result<String, ()>| {
        if context.performance.record(&key, read.map(|text| Counts::parse(&text)), clock::now()) {
            // The receiver is gone only when the controller ended, and with it the process.
            let _ = news.unbounded_send(key.0);
        }
    };
    rounds::read_all(&context, &context.performance, ROUND, record).await;
}

#[cfg(test)]
mod tests {
    use anneal_api::resources::Feedback;

    use super::*;

    fn pods(count: usize) -> Vec<(String, Target)> {
        let target = |n| Target { namespace: "ml".into(), pod: format!("cats-{n}"), address: "10.0.0.1".into() };
        (0..count).map(|n| (n.to_string(), target(n))).collect()
    }

    fn known(count: u32) -> Counts {
        Counts::parse(&format!("anneal_feedback_newest{{bin=\"9\"}} {count}\n"))
    }

    fn bounds() -> Bounds {
        Bounds::of(&Feedback { min_accuracy: Some(0.9), ..Feedback::default() })
    }

    #[test]
    fn nothing_is_said_before_every_pod_was_asked_and_then_once() {
        let (board, key) = (Board::default(), ObjectRef::new("cats").within("ml"));
        board.follow(key.clone(), "r", pods(2), &bounds(), Instant::now());
        let (now, of) = (Timestamp::now(), |uid: &str| (key.clone(), uid.to_owned()));
        assert!(!board.record(&of("0"), Ok(known(60)), now), "half of them say little");
        assert_eq!(board.latest(&key), None);
        assert!(board.record(&of("1"), Err(()), now), "one that gives no answer holds up nobody");
        assert_eq!(board.latest(&key).map(|it| (it.feedback_count, it.pods)), Some((60, 1)));
        assert!(!board.record(&of("0"), Ok(known(60)), now));
        assert!(board.record(&of("1"), Ok(known(60)), now), "120 are enough to say that the accuracy is too low");
        assert!(!board.record(&of("1"), Err(()), now), "and it is still known");
        assert_eq!(board.latest(&key).map(|it| (it.feedback_count, it.pods)), Some((120, 2)));
    }

    #[test]
    fn the_pods_of_one_namespace_are_kept_within_bounds_together() {
        let (board, now) = (Board::default(), Timestamp::now());
        let line = |n: usize| format!("anneal_prediction_newest{{bin=\"{n}\",of=\"classes\"}} 1\n");
        let many = Counts::parse(&(0..2048).map(line).collect::<String>());
        let read = |namespace: &str, n: usize| {
            let key = ObjectRef::new(&format!("cats-{n}")).within(namespace);
            board.follow(
                key.clone(),
                "r",
                vec![(format!("{namespace}-{n}"), pods(1)[0].1.clone())],
                &bounds(),
                Instant::now(),
            );
            board.record(&(key.clone(), format!("{namespace}-{n}")), Ok(many.clone()), now);
            board.latest(&key).is_some()
        };
        assert_eq!((0..100).filter(|n| read("hostile", *n)).count(), MAX_BINS / 2048);
        assert!(read("ml", 0), "somebody else's are read as before");
    }

    #[test]
    fn another_revision_begins_with_nothing() {
        let (board, key) = (Board::default(), ObjectRef::new("cats").within("ml"));
        board.follow(key.clone(), "r", pods(1), &bounds(), Instant::now());
        board.record(&(key.clone(), "0".to_owned()), Ok(known(60)), Timestamp::now());
        board.follow(key.clone(), "r", pods(1), &bounds(), Instant::now());
        assert!(board.latest(&key).is_some(), "the same goes on");
        board.follow(key.clone(), "s", pods(1), &bounds(), Instant::now());
        assert_eq!(board.latest(&key), None);
    }
}
