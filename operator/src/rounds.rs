//! Pods that are read again and again beside the reconciles: each now and then, and so many a second at most, however many
//! deployments there are.

use std::{
    hash::Hash,
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
/// Pods that are read within a second, at most.
const READS_A_SECOND: usize = 50;
/// Reads that run side by side.
const CONCURRENCY: usize = 16;

/// A pod of a deployment, by its UID.
pub type Key = (ObjectRef<ModelDeployment>, String);

/// A pod, and when it is to be read again.
#[derive(Debug)]
pub struct Turn {
    target: Target,
    due: Instant,
}

impl Turn {
    /// A pod that is to be read at that time.
    pub fn new(target: Target, due: Instant) -> Self {
        Self { target, due }
    }
}

/// The pods whose turn it is, those first that have waited longest. Each has its next turn after the interval.
pub fn take_due<'a, K>(
    all: impl Iterator<Item = (K, &'a mut Turn)>,
    interval: Duration,
    now: Instant,
) -> Vec<(K, Target)> {
    let mut due: Vec<_> = all.filter(|(_, turn)| turn.due <= now).collect();
    due.sort_by_key(|(_, turn)| turn.due);
    let due = due.into_iter().take(READS_A_SECOND).map(|(key, turn)| {
        turn.due = now + interval;
        (key, turn.target.clone())
    });
    due.collect()
}

/// Asks for ever whatever pods are due, and records what each one said.
pub async fn read_all<K: Clone + Eq + Hash>(
    context: &Context,
    question: Question,
    due: impl Fn(Instant) -> Vec<(K, Target)>,
    record: impl Fn(K, Result<String, ()>),
) {
    let (client, record) = (&PodClient::default(), &record);
    let read = |(key, target): (K, Target)| {
        (key.clone(), target.namespace.clone(), async move {
            let read = client.get(context, &target, question).await;
            record(key, read.map_err(|problem| debug!(pod = target.pod, path = question.path, %problem, "no answer")));
        })
    };
    in_turn(TICK, CONCURRENCY, || due(Instant::now()).into_iter().map(read).collect()).await;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn however_many_pods_there_are_only_so_many_are_read_a_second_and_all_get_their_turn() {
        let (begun, interval) = (Instant::now(), Duration::from_secs(15));
        let target = || Target { namespace: "ml".into(), pod: "cats-1".into(), address: "10.0.0.1".into() };
        let mut all: Vec<_> = (0..4 * READS_A_SECOND).map(|_| Turn::new(target(), begun)).collect();
        let mut due = |after: Duration| {
            let due = take_due(all.iter_mut().enumerate(), interval, begun + after);
            due.into_iter().map(|(n, _)| n).collect::<HashSet<_>>()
        };
        let mut read = HashSet::new();
        for second in 0..4 {
            let now = due(Duration::from_secs(second));
            assert_eq!(now.len(), READS_A_SECOND);
            read.extend(now);
        }
        assert_eq!(read.len(), 4 * READS_A_SECOND);
        assert!(due(Duration::from_secs(4)).is_empty(), "not again so soon");
        assert_eq!(due(interval).len(), READS_A_SECOND);
    }
}
