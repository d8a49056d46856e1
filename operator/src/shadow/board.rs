//! The pods whose answers are compared, and what came of it. All of it can be lost: then the count begins anew with what the
//! pods remember.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anneal_api::{
    names::SERVER_PORT,
    resources::ModelDeployment,
    shadow::{Answer, Digest, PATH},
};
use futures::channel::mpsc;
use kube::runtime::reflector::ObjectRef;

use super::{Counts, Words, agreements};
use crate::{
    context::Context,
    model_deployment::revision::RevisionName,
    pod_http::{Question, Target},
    rounds::{self, Key, MAX_PODS, Pods, READS_A_SECOND, Round},
};

/// What is asked, before a pod has forgotten what it answered, unless it answers two thousand requests a second. A list of all
/// the answers that a server remembers is 170 kB long.
const ROUND: Round = Round {
    question: Question { port: SERVER_PORT, path: PATH, max_bytes: 1 << 18 },
    interval: Duration::from_secs(2),
    most: READS_A_SECOND,
};

/// The two revisions whose answers are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The one that serves.
    pub stable: RevisionName,
    /// The one that gets copies of requests.
    pub candidate: RevisionName,
}

/// One of a [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that serves.
    Stable,
    /// The one that gets copies of requests.
    Candidate,
}

/// What came of a comparison so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Whose answers were compared.
    pub pair: Pair,
    /// How many, and how often they agreed.
    pub counts: Counts,
    /// A revision none of whose pods has shown its answers.
    pub silent: Option<RevisionName>,
}

/// What is known of a pod.
#[derive(Debug)]
pub struct Pod {
    side: Side,
    /// What it showed last; none before it has shown anything.
    answers: Option<Vec<Answer>>,
}

/// What is known about a candidate that gets copies of requests.
#[derive(Debug)]
pub struct Entry {
    pair: Pair,
    enough: i64,
    pods: Pods<Pod>,
    /// The requests that were compared, and whether both agreed.
    compared: HashMap<Digest, bool>,
    /// Tenths of what is needed that were told.
    told: i64,
}

/// What a read added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Added {
    counts: Counts,
    is_news: bool,
}

impl rounds::Entry for Entry {
    type Pod = Pod;

    fn pods(&mut self) -> &mut Pods<Pod> {
        &mut self.pods
    }
}

/// What is known about the candidates that get copies of requests.
pub type Board = rounds::Board<Entry>;

impl Board {
    /// Starts to compare the answers of two revisions' pods, given with their UIDs, or goes on until there are enough.
    pub fn follow(
        &self,
        key: ObjectRef<ModelDeployment>,
        pair: &Pair,
        enough: i32,
        pods: impl Iterator<Item = (Side, Vec<(String, Target)>)>,
        now: Instant,
    ) {
        let mut entries = self.entries();
        let enough = i64::from(enough);
        let new = || Entry { pair: pair.clone(), enough, pods: Pods::default(), compared: HashMap::new(), told: 0 };
        let entry = entries.entry(key).or_insert_with(new);
        if entry.pair != *pair || entry.enough != enough {
            *entry = new();
        }
        let pods = pods.flat_map(|(side, pods)| pods.into_iter().take(MAX_PODS).map(move |pod| (side, pod)));
        entry.pods.follow(pods.map(|(side, (uid, target))| (uid, target, Pod { side, answers: None })), now);
    }

    /// What came of a deployment's comparison so far.
    pub fn latest(&self, key: &ObjectRef<ModelDeployment>) -> Option<Compared> {
        self.entries().get(key).map(|entry| Compared {
            pair: entry.pair.clone(),
            counts: entry.counts(),
            silent: entry.silent().cloned(),
        })
    }

    /// Records what a pod shows.
    fn record(&self, (key, uid): &Key, answers: Vec<Answer>) -> Added {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return Added::default() };
        let Some(pod) = entry.pods.get_mut(uid) else { return Added::default() };
        pod.answers = Some(answers);
        let before = entry.counts();
        // What is enough is kept, so that the answers that decide are those that are told.
        if before.compared < entry.enough {
            entry.compare();
        }
        let counts = entry.counts();
        let tenths = counts.tenths(entry.enough);
        let is_news = tenths != entry.told;
        entry.told = tenths;
        let (compared, agreed) = (counts.compared - before.compared, counts.agreed - before.agreed);
        Added { counts: Counts { compared, agreed }, is_news }
    }
}

impl Entry {
    fn compare(&mut self) {
        let of = |side: Side| -> Words {
            let pods = self.pods.known().filter(|pod| pod.side == side);
            pods.flat_map(|pod| pod.answers.iter().flatten()).collect()
        };
        for (request, agrees) in agreements(&of(Side::Stable), &of(Side::Candidate)) {
            self.compared.entry(request).or_insert(agrees);
        }
    }

    fn silent(&self) -> Option<&RevisionName> {
        let sides = [(Side::Stable, &self.pair.stable), (Side::Candidate, &self.pair.candidate)];
        let speaks = |side: Side| self.pods.known().any(|pod| pod.side == side && pod.answers.is_some());
        sides.into_iter().find(|(side, _)| !speaks(*side)).map(|(_, name)| name)
    }

    fn counts(&self) -> Counts {
        let count = |all: usize| i64::try_from(all).unwrap_or(i64::MAX);
        let agreed = self.compared.values().filter(|agrees| **agrees).count();
        Counts { compared: count(self.compared.len()), agreed: count(agreed) }
    }
}

/// Reads for ever, and sends the deployments about which there is news.
pub async fn read_all(context: Arc<Context>, news: mpsc::UnboundedSender<ObjectRef<ModelDeployment>>) {
    let record = |key: Key, read: Result<String, ()>| {
        let Some(answers) = read.ok().and_then(|text| serde_json::from_str(&text).ok()) else { return };
        let added = context.shadows.record(&key, answers);
        context.metrics.compared(added.counts);
        if added.is_news {
            // The receiver is gone only when the controller ended, and with it the process.
            let _ = news.unbounded_send(key.0);
        }
    };
    rounds::read_all(&context, &context.shadows, ROUND, record).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectRef<ModelDeployment> {
        ObjectRef::new("cats").within("ml")
    }

    fn pair(candidate: &str) -> Pair {
        let name = |name: &str| RevisionName::parse(name).expect("a name");
        Pair { stable: name("0123abcd"), candidate: name(candidate) }
    }

    fn follow(board: &Board, candidate: &str, enough: i32) {
        let target = || Target { namespace: "ml".into(), pod: "cats-1".into(), address: "10.0.0.1".into() };
        let pods = |uids: &[&str]| uids.iter().map(|uid| ((*uid).to_owned(), target())).collect();
        let sides = [(Side::Stable, pods(&["a", "b"])), (Side::Candidate, pods(&["c"]))];
        board.follow(key(), &pair(candidate), enough, sides.into_iter(), Instant::now());
    }

    fn shows(board: &Board, uid: &str, answers: &[(u8, u8)]) -> Added {
        let answer = |(request, said): &(u8, u8)| Answer {
            request: Digest::from([*request; 8]),
            said: Some(Digest::from([*said; 8])),
        };
        board.record(&(key(), uid.to_owned()), answers.iter().map(answer).collect())
    }

    fn counts(board: &Board) -> (i64, i64) {
        let Counts { compared, agreed } = board.latest(&key()).expect("an entry").counts;
        (compared, agreed)
    }

    #[test]
    fn answers_of_all_pods_are_joined_and_each_request_counts_once() {
        let board = Board::default();
        follow(&board, "4567abcd", 10);
        assert_eq!(shows(&board, "a", &[(1, 7)]), Added::default());
        assert_eq!(board.latest(&key()).and_then(|it| it.silent), Some(pair("4567abcd").candidate));
        let added = shows(&board, "c", &[(1, 7), (2, 7)]);
        assert_eq!(added, Added { counts: Counts { compared: 1, agreed: 1 }, is_news: true });
        assert_eq!(shows(&board, "c", &[(1, 7), (2, 7)]), Added::default(), "it is counted already");
        shows(&board, "b", &[(2, 8)]);
        assert_eq!((counts(&board), board.latest(&key()).and_then(|it| it.silent)), ((2, 1), None));
        follow(&board, "4567abcd", 10);
        assert_eq!(counts(&board), (2, 1), "the same pair goes on");
        follow(&board, "89ababcd", 10);
        assert_eq!(counts(&board), (0, 0), "another candidate begins with nothing");
    }

    #[test]
    fn what_a_pod_has_forgotten_is_still_counted() {
        let board = Board::default();
        follow(&board, "4567abcd", 10);
        shows(&board, "a", &[(1, 7)]);
        shows(&board, "c", &[(1, 7)]);
        shows(&board, "a", &[(2, 7)]);
        shows(&board, "c", &[(2, 7)]);
        assert_eq!(counts(&board), (2, 2));
    }

    #[test]
    fn what_is_enough_stays_as_it_is() {
        let board = Board::default();
        follow(&board, "4567abcd", 2);
        shows(&board, "a", &[(1, 7), (2, 7), (3, 7)]);
        assert!(shows(&board, "c", &[(1, 7), (2, 7)]).is_news);
        assert_eq!(shows(&board, "c", &[(3, 8)]), Added::default());
        assert_eq!(counts(&board), (2, 2));
    }
}
