//! What the pods of a revision that just got the traffic count: read beside the reconciles, bounded in time, size and
//! number, so that a slow or broken pod holds up nobody.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anneal_api::{names::SERVER_PORT, resources::ModelDeployment};
use futures::channel::mpsc;
use kube::runtime::reflector::ObjectRef;

use crate::{
    context::Context,
    model_deployment::revision::RevisionName,
    pod_http::{Question, Target},
    rounds::{self, Key, MAX_PODS, Pods, Round},
};

/// Buckets of one pod that are kept; the server has a dozen.
const MAX_BUCKETS: usize = 64;
/// Errors from which on their share means something.
const MIN_ERRORS: f64 = 3.0;
/// Answers from which on their 95th percentile means something.
const MIN_ANSWERS: f64 = 20.0;
/// What is asked. A soak may last no longer than some seconds: whoever is followed is read at each tick.
const ROUND: Round = Round {
    question: Question { port: SERVER_PORT, path: "/metrics", max_bytes: 1 << 20 },
    interval: Duration::ZERO,
    most: usize::MAX,
};

/// Whose answers are counted, and since when: with another one the count begins anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The revision of the pods.
    pub revision: RevisionName,
    /// The step of its canary; 0 once it has all of the traffic.
    pub step: i32,
}

/// What pods counted: answers to predictions, and how long they took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Answers.
    pub answers: f64,
    /// Answers that the server is to blame for: status 500 and above.
    pub errors: f64,
    /// Answers that took at most so long, by upper bound in milliseconds.
    pub buckets: BTreeMap<Milliseconds, f64>,
}

/// A bound of a histogram's bucket, in milliseconds; `f64::INFINITY` is the last one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Milliseconds(pub f64);

impl Eq for Milliseconds {}

impl PartialOrd for Milliseconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Milliseconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What a revision may not exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Errors in percent of all answers.
    pub error_percentage: f64,
    /// 95th percentile of the time of an answer, in milliseconds.
    pub p95_milliseconds: Option<f64>,
}

impl Signals {
    /// Reads the server's metrics in Prometheus' text format. Predictions are what comes by POST.
    pub fn parse(text: &str) -> Self {
        let mut signals = Self::default();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('{') else { continue };
            let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
            let Some(value) = value.trim().parse::<f64>().ok().filter(|it| it.is_finite() && *it >= 0.0) else {
                continue;
            };
            if label(labels, "method") != Some("POST") {
                continue;
            }
            match name {
                "api_requests_total" => {
                    signals.answers += value;
                    if label(labels, "status").is_some_and(|status| status.starts_with('5')) {
                        signals.errors += value;
                    }
                }
                "api_request_duration_seconds_bucket" => {
                    let bound = label(labels, "le").and_then(|le| le.trim_start_matches('+').parse::<f64>().ok());
                    let bound = bound.filter(|seconds| *seconds >= 0.0).map(|seconds| Milliseconds(seconds * 1e3));
                    let is_kept = |bound: &Milliseconds| {
                        signals.buckets.len() < MAX_BUCKETS || signals.buckets.contains_key(bound)
                    };
                    if let Some(bound) = bound.filter(is_kept) {
                        *signals.buckets.entry(bound).or_default() += value;
                    }
                }
                _ => {}
            }
        }
        signals
    }

    /// What was counted since `before`. A counter that went back was started anew.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.answers < before.answers || self.errors < before.errors {
            return self.clone();
        }
        let bucket = |(bound, count): (&Milliseconds, &f64)| {
            (*bound, (count - before.buckets.get(bound).copied().unwrap_or_default()).max(0.0))
        };
        Self {
            answers: self.answers - before.answers,
            errors: self.errors - before.errors,
            buckets: self.buckets.iter().map(bucket).collect(),
        }
    }

    /// Adds what another pod counted.
    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.errors += other.errors;
        for (bound, count) in &other.buckets {
            *self.buckets.entry(*bound).or_default() += count;
        }
    }

    /// The 95th percentile of the time of an answer, in milliseconds, as Prometheus estimates it: evenly spread within a
    /// bucket, and the largest finite bound beyond that.
    pub fn p95_milliseconds(&self) -> Option<f64> {
        let all = self.buckets.values().copied().fold(0.0, f64::max);
        let rank = 0.95 * all;
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank && *count > below {
                let share = (rank - below) / (count - below);
                return Some(if bound.0.is_finite() { lower + (bound.0 - lower) * share } else { lower });
            }
            (below, lower) = (*count, bound.0);
        }
        None
    }

    /// In what the limits are exceeded, as a sentence; `None` where they are kept, or too little was counted to tell.
    pub fn breach(&self, limits: &Limits) -> Option<String> {
        let share = 100.0 * self.errors / self.answers.max(1.0);
        if self.errors >= MIN_ERRORS && share > limits.error_percentage {
            return Some(format!(
                "{:.0} of {:.0} answers were errors, more than gate.soakTest.maxErrorPercentage {:.0}",
                self.errors, self.answers, limits.error_percentage
            ));
        }
        let (limit, p95) = (limits.p95_milliseconds?, self.p95_milliseconds()?);
        (self.answers >= MIN_ANSWERS && p95 > limit).then(|| {
            format!(
                "the 95th percentile of {:.0} answers is {p95:.1} ms, above gate.soakTest.maxP95Milliseconds {limit:.0}",
                self.answers
            )
        })
    }
}

/// The value of a label. The labels that are looked for hold no quotes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

/// What a pod counted when it was first read, and last.
type Counted = Option<(Signals, Signals)>;

/// What is known about a revision that just got the traffic.
#[derive(Debug)]
pub struct Entry {
    pods: Pods<Counted>,
    window: Window,
    limits: Limits,
    told: bool,
}

impl rounds::Entry for Entry {
    type Pod = Counted;

    fn pods(&mut self) -> &mut Pods<Counted> {
        &mut self.pods
    }
}

/// What is known about the revisions that just got the traffic.
pub type Board = rounds::Board<Entry>;

impl Board {
    /// Starts to read the pods, given with their UIDs, or goes on: what a pod counted before it was first read is not
    /// held against it.
    pub fn follow(
        &self,
        key: ObjectRef<ModelDeployment>,
        window: Window,
        pods: Vec<(String, Target)>,
        limits: Limits,
        now: Instant,
    ) {
        let mut entries = self.entries();
        let begun = || Entry { pods: Pods::default(), window: window.clone(), limits, told: false };
        let entry = entries.entry(key).or_insert_with(begun);
        entry.told &= entry.limits == limits && entry.window == window;
        entry.limits = limits;
        if entry.window != window {
            entry.window = window;
            entry.pods.known_mut().flatten().for_each(|(first, latest)| first.clone_from(latest));
        }
        entry.pods.follow(pods.into_iter().take(MAX_PODS).map(|(uid, target)| (uid, target, None)), now);
    }

    /// What the pods of a deployment counted together in the window in which they are read.
    pub fn latest(&self, key: &ObjectRef<ModelDeployment>) -> Option<(Window, Signals)> {
        self.entries().get(key).map(|entry| (entry.window.clone(), entry.sum()))
    }

    /// Records a read. Returns whether the limits are exceeded now, and were not before.
    fn record(&self, (key, uid): &Key, read: Signals) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return false };
        let Some(counted) = entry.pods.get_mut(uid) else { return false };
        let first = counted.take().map_or_else(|| read.clone(), |(first, _)| first);
        *counted = Some((first, read));
        let breaks = entry.sum().breach(&entry.limits).is_some();
        let is_news = breaks && !entry.told;
        entry.told = breaks;
        is_news
    }
}

impl Entry {
    fn sum(&self) -> Signals {
        let mut sum = Signals::default();
        for (first, latest) in self.pods.known().flatten() {
            sum.add(&latest.since(first));
        }
        sum
    }
}

/// Reads for ever, and sends the deployments whose limits are exceeded.
pub async fn read_all(context: Arc<Context>, news: mpsc::UnboundedSender<ObjectRef<ModelDeployment>>) {
    let record = |key: Key, read: Result<String, ()>| {
        if read.is_ok_and(|text| context.signals.record(&key, Signals::parse(&text))) {
            // The receiver is gone only when the controller ended, and with it the process.
            let _ = news.unbounded_send(key.0);
        }
    };
    rounds::read_all(&context, &context.signals, ROUND, record).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP api_requests_total Answers
api_requests_total{endpoint="/predict",method="POST",status="200"} 90
api_requests_total{endpoint="/predict",method="POST",status="503"} 10
api_requests_total{endpoint="/readyz",method="GET",status="503"} 400
api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="0.005"} 0
api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="0.01"} 90
api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="0.025"} 100
api_request_duration_seconds_bucket{endpoint="/predict",method="POST",le="+Inf"} 100
active_requests 3
"#;

    fn limits(error_percentage: f64, p95_milliseconds: Option<f64>) -> Limits {
        Limits { error_percentage, p95_milliseconds }
    }

    #[test]
    fn predictions_are_told_from_probes() {
        let signals = Signals::parse(TEXT);
        assert_eq!((signals.answers, signals.errors), (100.0, 10.0));
        assert!((signals.p95_milliseconds().expect("some") - 17.5).abs() < 1e-9);
    }

    #[test]
    fn what_no_server_counts_is_not_kept() {
        let line = |le: String, value: &str| {
            format!("api_request_duration_seconds_bucket{{method=\"POST\",le=\"{le}\"}} {value}")
        };
        let many: Vec<String> = (0..5000).map(|n| line(n.to_string(), "1")).collect();
        assert_eq!(Signals::parse(&many.join("\n")).buckets.len(), MAX_BUCKETS);
        for (le, value) in [("1", "NaN"), ("1", "-1"), ("1", "+Inf"), ("NaN", "1"), ("-1", "1")] {
            assert_eq!(Signals::parse(&line(le.to_owned(), value)), Signals::default(), "{le}: {value}");
        }
        let text = "api_requests_total{method=\"POST\",status=\"500\"} NaN";
        assert_eq!(Signals::parse(text), Signals::default());
    }

    #[test]
    fn limits_are_exceeded_only_when_enough_was_counted() {
        let signals = Signals::parse(TEXT);
        assert!(signals.breach(&limits(9.0, None)).is_some_and(|why| why.contains("10 of 100 answers were errors")));
        assert_eq!(signals.breach(&limits(10.0, Some(18.0))), None);
        assert!(signals.breach(&limits(10.0, Some(17.0))).is_some_and(|why| why.contains("17.5 ms")));
        let few = Signals { answers: 2.0, errors: 2.0, ..Signals::default() };
        assert_eq!(few.breach(&limits(5.0, Some(1.0))), None);
    }

    #[test]
    fn what_a_pod_counted_before_is_not_held_against_it() {
        let (board, key) = (Board::default(), ObjectRef::new("cats").within("ml"));
        let target = Target { namespace: "ml".into(), pod: "cats-1".into(), address: "10.0.0.1".into() };
        let pods = || vec![("1".to_owned(), target.clone())];
        let window = |step| Window { revision: RevisionName::parse("0123abcd").expect("a name"), step };
        let latest = |board: &Board| board.latest(&key).expect("an entry").1;
        let follow = |step| board.follow(key.clone(), window(step), pods(), limits(5.0, None), Instant::now());
        follow(1);
        let pod = (key.clone(), "1".to_owned());
        assert!(!board.record(&pod, Signals::parse(TEXT)));
        assert!(latest(&board).errors < 1.0);
        let mut later = Signals::parse(TEXT);
        (later.answers, later.errors) = (120.0, 30.0);
        assert!(board.record(&pod, later.clone()), "it is told");
        assert!(!board.record(&pod, later), "once");
        follow(1);
        assert_eq!((latest(&board).answers, latest(&board).errors), (20.0, 20.0));
        follow(2);
        assert!(latest(&board).errors < 1.0, "another step of a canary counts anew");
    }

    #[test]
    fn a_counter_that_went_back_was_started_anew() {
        let few = Signals { answers: 3.0, errors: 1.0, ..Signals::default() };
        assert_eq!(few.since(&Signals::parse(TEXT)), few);
    }
}
