//! Pods that are read again and again beside the reconciles: each now and then, and so many a second at most, however many
//! deployments there are. One that gives no answer is asked less and less often, until it does.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anneal_api::resources::ModelDeployment;
use kube::runtime::reflector::ObjectRef;
use tracing::debug;

use crate::{
    context::Context,
    pod_http::{PodClient, Question, Target, in_turn},
};

/// How often to look who is due.
const TICK: Duration = Duration::from_secs(1);
/// Reads that run side by side.
const CONCURRENCY: usize = 16;
/// Longest pause before a pod that gives no answer is asked again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Pods of one revision that are read; of more, these speak for all.
pub const MAX_PODS: usize = 32;
/// Pods that are read within a second, at most, where that many may be read for ever.
pub const READS_A_SECOND: usize = 50;

/// A pod of a deployment, by its UID.
pub type Key = (ObjectRef<ModelDeployment>, String);

/// What pods are asked, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// What is asked.
    pub question: Question,
    /// How often a pod is asked that answers, where there are no more than can be asked in that time.
    pub interval: Duration,
    /// Pods that are asked within a second, at most.
    pub most: usize,
}

/// A pod that is read, and what is known of it.
#[derive(Debug)]
struct Pod<T> {
    target: Target,
    due: Instant,
    /// Reads that failed in a row.
    failures: u32,
    known: T,
}

/// The pods of one deployment that are read, by UID.
#[derive(Debug)]
pub struct Pods<T>(HashMap<String, Pod<T>>);

impl<T> Default for Pods<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Pods<T> {
    /// Goes on to read those that are still there, and forgets the others. Each is given with its UID and with what is known
    /// of it where it is new. One that has another address now is asked at once.
    pub fn follow(&mut self, pods: impl IntoIterator<Item = (String, Target, T)>, now: Instant) {
        let mut known = std::mem::take(&mut self.0);
        let pods = pods.into_iter().map(|(uid, target, new)| {
            let pod = match known.remove(&uid) {
                Some(pod) if pod.target == target => pod,
                former => Pod { target, due: now, failures: 0, known: former.map_or(new, |former| former.known) },
            };
            (uid, pod)
        });
        self.0 = pods.collect();
    }

    /// What is known of a pod, where it is read.
    pub fn get_mut(&mut self, uid: &str) -> Option<&mut T> {
        self.0.get_mut(uid).map(|pod| &mut pod.known)
    }

    /// What is known of each pod, with its UID.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &T)> {
        self.0.iter().map(|(uid, pod)| (uid, &pod.known))
    }

    /// What is known of each pod.
    pub fn known(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(|pod| &pod.known)
    }

    /// The same, to be changed.
    pub fn known_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut().map(|pod| &mut pod.known)
    }
}

/// What is known of a deployment whose pods are read.
pub trait Entry {
    /// What is known of one pod.
    type Pod;

    /// The pods.
    fn pods(&mut self) -> &mut Pods<Self::Pod>;
}

/// The deployments whose pods are read.
#[derive(Debug)]
pub struct Board<E>(Mutex<HashMap<ObjectRef<ModelDeployment>, E>>);

impl<E> Default for Board<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<E> Board<E> {
    /// What is known of all deployments.
    pub fn entries(&self) -> MutexGuard<'_, HashMap<ObjectRef<ModelDeployment>, E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops to read for a deployment.
    pub fn forget(&self, key: &ObjectRef<ModelDeployment>) {
        self.entries().remove(key);
    }
}

impl<E: Entry> Board<E> {
    /// The pods whose turn it is, those first that have waited longest.
    fn take_due(&self, round: &Round, now: Instant) -> Vec<(Key, Target)> {
        let mut entries = self.entries();
        let pods = entries.iter_mut().flat_map(|(key, entry)| entry.pods().0.iter_mut().map(move |pod| (key, pod)));
        let mut due: Vec<_> = pods.filter(|(_, (_, pod))| pod.due <= now).collect();
        due.sort_by_key(|(_, (_, pod))| pod.due);
        let due = due.into_iter().take(round.most).map(|(key, (uid, pod))| {
            pod.due = now + round.interval;
            ((key.clone(), uid.clone()), pod.target.clone())
        });
        due.collect()
    }

    /// Notes whether a pod answered. One that did not has its next turn later.
    fn note(&self, (key, uid): &Key, answered: bool, round: &Round, now: Instant) {
        let mut entries = self.entries();
        let Some(pod) = entries.get_mut(key).and_then(|entry| entry.pods().0.get_mut(uid)) else { return };
        if answered {
            pod.failures = 0;
        } else {
            pod.due = now + pause(round.interval, pod.failures);
            pod.failures = pod.failures.saturating_add(1);
        }
    }
}

/// How long a pod is left alone that failed to answer so often in a row before: no longer than any other one for once, for it
/// may just have been busy.
fn pause(interval: Duration, failures: u32) -> Duration {
    let doubled = interval.max(TICK).saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(LONGEST_PAUSE)
}

/// Asks for ever whatever pods of a board are due, and records what each one said.
pub async fn read_all<E: Entry>(
    context: &Context,
    board: &Board<E>,
    round: Round,
    record: impl Fn(Key, Result<String, ()>),
) {
    let (client, record) = (&PodClient::default(), &record);
    let read = |(key, target): (Key, Target)| {
        (key.clone(), target.namespace.clone(), async move {
            let read = client.get(context, &target, round.question).await;
            board.note(&key, read.is_ok(), &round, Instant::now());
            let path = round.question.path;
            record(key, read.map_err(|problem| debug!(pod = target.pod, path, %problem, "no answer")));
        })
    };
    in_turn(TICK, CONCURRENCY, || board.take_due(&round, Instant::now()).into_iter().map(read).collect()).await;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    impl Entry for Pods<()> {
        type Pod = ();

        fn pods(&mut self) -> &mut Self {
            self
        }
    }

    fn key() -> ObjectRef<ModelDeployment> {
        ObjectRef::new("cats").within("ml")
    }

    fn round(interval: Duration) -> Round {
        Round { question: Question { port: 8000, path: "/metrics", max_bytes: 1 }, interval, most: READS_A_SECOND }
    }

    fn follow(board: &Board<Pods<()>>, pods: usize, address: &str, now: Instant) {
        let target = || Target { namespace: "ml".into(), pod: "cats-1".into(), address: address.into() };
        let pods = (0..pods).map(|n| (n.to_string(), target(), ()));
        board.entries().entry(key()).or_default().follow(pods, now);
    }

    /// A board of one pod, and how many seconds later it is asked, of those up to `until`, where it never answers.
    fn asked(interval: Duration, until: u64) -> (Board<Pods<()>>, Instant, Vec<u64>) {
        let (board, begun, round) = (Board::default(), Instant::now(), round(interval));
        follow(&board, 1, "10.0.0.1", begun);
        let is_asked = |second: &u64| {
            let now = begun + Duration::from_secs(*second);
            let due = board.take_due(&round, now);
            for (key, _) in &due {
                board.note(key, false, &round, now);
            }
            !due.is_empty()
        };
        let asked = (0..until).filter(is_asked).collect();
        (board, begun, asked)
    }

    #[test]
    fn however_many_pods_there_are_only_so_many_are_read_a_second_and_all_get_their_turn() {
        let (begun, board, round) = (Instant::now(), Board::default(), round(Duration::from_secs(15)));
        follow(&board, 4 * READS_A_SECOND, "10.0.0.1", begun);
        let due = |after: Duration| {
            let due = board.take_due(&round, begun + after);
            due.into_iter().map(|((_, uid), _)| uid).collect::<HashSet<_>>()
        };
        let mut read = HashSet::new();
        for second in 0..4 {
            let now = due(Duration::from_secs(second));
            assert_eq!(now.len(), READS_A_SECOND);
            read.extend(now);
        }
        assert_eq!(read.len(), 4 * READS_A_SECOND);
        assert!(due(Duration::from_secs(4)).is_empty(), "not again so soon");
        assert_eq!(due(round.interval).len(), READS_A_SECOND);
    }

    #[test]
    fn a_pod_that_gives_no_answer_is_asked_less_and_less_often_but_within_a_minute() {
        assert_eq!(asked(Duration::ZERO, 200).2, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        assert_eq!(asked(Duration::from_secs(15), 200).2, [0, 15, 45, 105, 165]);
    }

    #[test]
    fn a_pod_that_answers_again_or_has_another_address_is_asked_as_often_as_any() {
        let round = round(Duration::ZERO);
        let (board, begun, asked) = asked(round.interval, 64);
        assert_eq!(asked.last(), Some(&63));
        let at = |second: u64| begun + Duration::from_secs(second);
        follow(&board, 1, "10.0.0.1", at(64));
        assert!(board.take_due(&round, at(122)).is_empty(), "nothing is new about it");
        follow(&board, 1, "10.0.0.2", at(100));
        assert_eq!(board.take_due(&round, at(100)).len(), 1, "it may listen there");

        for second in 100..104 {
            board.note(&(key(), "0".to_owned()), false, &round, at(second));
        }
        assert!(board.take_due(&round, at(105)).is_empty());
        assert_eq!(board.take_due(&round, at(111)).len(), 1);
        board.note(&(key(), "0".to_owned()), true, &round, at(111));
        assert_eq!(board.take_due(&round, at(112)).len(), 1);
        board.note(&(key(), "0".to_owned()), false, &round, at(112));
        assert_eq!(board.take_due(&round, at(113)).len(), 1, "the row began anew");
    }

    #[test]
    fn nothing_is_kept_of_a_pod_that_is_gone() {
        let (board, begun, _) = asked(Duration::ZERO, 64);
        follow(&board, 0, "", begun);
        assert!(board.entries()[&key()].0.is_empty());
        follow(&board, 1, "10.0.0.1", begun);
        assert_eq!(board.take_due(&round(Duration::ZERO), begun).len(), 1);
    }
}
