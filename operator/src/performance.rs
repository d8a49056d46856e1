//! How well a model does under traffic, over all pods that serve it: what they count is added up, and only then divided.

pub mod board;

use std::collections::BTreeMap;

use anneal_api::{
    performance::{ENOUGH, metric, stability},
    resources::{Feedback, FeedbackAction},
};
use jiff::{SignedDuration, Timestamp};

/// Bins of one pod that are kept: those of a thousand classes, and some.
const MAX_BINS: usize = 2048;
/// Bytes of their labels: a class may have a name of 255 letters, a pod of a stranger's image one of a million.
const MAX_LABELS: usize = 256 << 10;
/// Least pause between two words about the same thing that is within its bounds: a number that moves a little is no news.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);
/// By how much an accuracy, a calibration error or an index must have moved to be news.
const STEP: f64 = 0.01;

/// What pods count of their newest predictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Predictions whose true class is known, right ones among them, and the sum of their confidences, by bin.
    known: BTreeMap<String, [f64; 3]>,
    /// Predictions and the share to expect, by the labels that tell bins from each other.
    predictions: BTreeMap<String, [f64; 2]>,
}

impl Counts {
    /// Reads a server's metrics in Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        let (mut counts, mut room) = (Self::default(), MAX_LABELS);
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('{') else { continue };
            let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
            let Some(value) = value.trim().parse::<f64>().ok().filter(|it| it.is_finite() && *it >= 0.0) else {
                continue;
            };
            match name {
                metric::KNOWN => set(&mut counts.known, &mut room, labels, 0, value),
                metric::RIGHT => set(&mut counts.known, &mut room, labels, 1, value),
                metric::CONFIDENCE => set(&mut counts.known, &mut room, labels, 2, value),
                metric::PREDICTIONS => set(&mut counts.predictions, &mut room, labels, 0, value),
                metric::EXPECTED => set(&mut counts.predictions, &mut room, labels, 1, value),
                _ => {}
            }
        }
        counts
    }

    /// Adds what another pod of the same revision counts.
    pub fn add(&mut self, other: &Self) {
        for (bin, [count, right, confidence]) in &other.known {
            let sum = self.known.entry(bin.clone()).or_default();
            *sum = [sum[0] + count, sum[1] + right, sum[2] + confidence];
        }
        for (bin, [count, expected]) in &other.predictions {
            let sum = self.predictions.entry(bin.clone()).or_default();
            // One checkpoint lets every pod expect the same.
            *sum = [sum[0] + count, *expected];
        }
    }

    /// Bins that are kept.
    fn bins(&self) -> usize {
        self.known.len() + self.predictions.len()
    }

    /// What follows from the counts of so many pods.
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    pub fn measured(&self, revision: &str, pods: i32) -> Measured {
        let count: f64 = self.known.values().map(|[count, ..]| count).sum();
        let is_any = count > 0.0;
        let right: f64 = self.known.values().map(|[_, right, _]| right).sum();
        let apart: f64 = self.known.values().map(|[_, right, confidence]| (right - confidence).abs()).sum();
        Measured {
            revision: revision.to_owned(),
            feedback_count: count as i64,
            accuracy: is_any.then(|| rounded(right / count)),
            calibration_error: is_any.then(|| rounded(apart / count)),
            drift: self.drift("classes").into_iter().chain(self.drift("confidence")).max_by(f64::total_cmp),
            pods,
        }
    }

    fn drift(&self, of: &str) -> Option<f64> {
        // A class may hold any character; which of the two counts a line is about stands at the end.
        let ending = format!(r#"{}="{of}""#, metric::OF);
        let bins = self.predictions.iter().filter(|(labels, _)| labels.ends_with(&ending));
        let pairs = bins.map(|(_, [count, expected])| (*expected, *count));
        let count: f64 = pairs.clone().map(|(_, count)| count).sum();
        (count >= f64::from(ENOUGH)).then(|| rounded(stability(pairs)))
    }
}

/// Sets one number of a bin, where the bin is known or there is room for it.
fn set<const N: usize>(bins: &mut BTreeMap<String, [f64; N]>, room: &mut usize, labels: &str, at: usize, value: f64) {
    if let Some(bin) = bins.get_mut(labels) {
        bin[at] = value;
    } else if bins.len() < MAX_BINS && labels.len() <= *room {
        *room -= labels.len();
        bins.entry(labels.to_owned()).or_insert([0.0; N])[at] = value;
    }
}

/// To four digits, so that the status says what is judged.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// How well a revision does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Its name.
    pub revision: String,
    /// Predictions whose true class is known.
    pub feedback_count: i64,
    /// Share of right ones among them.
    pub accuracy: Option<f64>,
    /// Expected calibration error.
    pub calibration_error: Option<f64>,
    /// Population stability index.
    pub drift: Option<f64>,
    /// Pods that were read.
    pub pods: i32,
}

impl Measured {
    /// Whether this is worth a word after `old`, which was told at `told`. That a bound is passed is, at once, and so is
    /// that enough is known to tell.
    pub fn is_news(&self, old: &Self, told: Timestamp, bounds: &Bounds, now: Timestamp) -> bool {
        let [was, is] = [old, self].map(|it| bounds.breach(it).map(|breach| breach.reason));
        let is_known_now = bounds.is_enough(self) && !bounds.is_enough(old);
        if self.revision != old.revision || is_known_now || (is.is_some() && is != was) {
            return true;
        }
        let moved = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() >= STEP,
            (a, b) => a.is_some() != b.is_some(),
        };
        let difference = self.feedback_count.abs_diff(old.feedback_count);
        let grown = difference.saturating_mul(10) > old.feedback_count.unsigned_abs();
        let has_changed = was != is
            || grown
            || moved(self.accuracy, old.accuracy)
            || moved(self.calibration_error, old.calibration_error)
            || moved(self.drift, old.drift);
        has_changed && now.duration_since(told) >= PAUSE
    }
}

/// What a model has to do under traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds(Feedback);

/// A bound that is passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// What was measured, and what was asked for.
    pub message: String,
    /// Whether another revision would do better at the same photos, and the spec asks to go back to it.
    pub rolls_back: bool,
}

impl Bounds {
    /// As a spec has them.
    pub fn of(feedback: &Feedback) -> Self {
        Self(feedback.clone())
    }

    /// Whether anything that is measured may take the traffic from a revision.
    pub fn roll_back(&self) -> bool {
        self.0.action == FeedbackAction::Rollback
    }

    /// True classes that must be known.
    pub fn min_count(&self) -> i32 {
        self.0.min_count
    }

    /// Whether enough is known to judge accuracy and calibration.
    pub fn is_enough(&self, measured: &Measured) -> bool {
        measured.feedback_count >= i64::from(self.0.min_count)
    }

    /// The first bound that is passed, where enough is known to tell.
    pub fn breach(&self, measured: &Measured) -> Option<Breach> {
        let Feedback { min_accuracy, max_calibration_error, max_drift, .. } = &self.0;
        let of = measured.feedback_count;
        let known = |value: Option<f64>| value.filter(|_| self.is_enough(measured));
        let accuracy = known(measured.accuracy).zip(*min_accuracy).filter(|(is, least)| is < least);
        let calibration = known(measured.calibration_error).zip(*max_calibration_error).filter(|(is, most)| is > most);
        let drift = measured.drift.zip(*max_drift).filter(|(is, most)| is > most);
        let rolls_back = self.roll_back();
        if let Some((is, least)) = accuracy {
            let message = format!("the accuracy over {of} true classes is {is}, below feedback.minAccuracy {least}");
            return Some(Breach { reason: "AccuracyBelowMinimum", message, rolls_back });
        }
        if let Some((is, most)) = calibration {
            let message = format!(
                "confidence and accuracy over {of} true classes are {is} apart, more than feedback.maxCalibrationError {most}"
            );
            return Some(Breach { reason: "CalibrationErrorAboveMaximum", message, rolls_back });
        }
        drift.map(|(is, most)| Breach {
            reason: "PredictionsDrifted",
            message: format!(
                "the predictions have moved by {is} from those on the validation set, more than feedback.maxDrift {most}: the photos are of another kind; train with some of them"
            ),
            rolls_back: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(count: u32, right: u32, confidence: f64) -> Counts {
        Counts::parse(&format!(
            "anneal_feedback_newest{{bin=\"9\"}} {count}\nanneal_feedback_newest_right{{bin=\"9\"}} {right}\n\
             anneal_feedback_newest_confidence{{bin=\"9\"}} {confidence}\napi_requests_total{{method=\"POST\"}} 7\n"
        ))
    }

    fn bounds(min_accuracy: f64) -> Bounds {
        Bounds(Feedback { min_accuracy: Some(min_accuracy), max_drift: Some(0.25), ..Feedback::default() })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    #[test]
    fn pods_are_weighed_by_what_they_know() {
        let mut all = pod(900, 900, 855.0);
        all.add(&pod(100, 0, 95.0));
        let measured = all.measured("r", 2);
        assert_eq!((measured.feedback_count, measured.accuracy), (1000, Some(0.9)), "not the mean of 1 and 0");
        assert_eq!(measured.calibration_error, Some(0.05));
        assert_eq!(Counts::default().measured("r", 1).accuracy, None, "nothing is known, which is no accuracy of 0");
    }

    #[test]
    fn drift_is_that_of_all_predictions_together_whatever_a_class_is_called() {
        let pod = |cats: u32, dogs: u32| {
            Counts::parse(&format!(
                "anneal_prediction_newest{{bin=\"cat, \\\"of\\\"\",of=\"classes\"}} {cats}\n\
                 anneal_prediction_newest{{bin=\"dog\",of=\"classes\"}} {dogs}\n\
                 anneal_prediction_expected{{bin=\"cat, \\\"of\\\"\",of=\"classes\"}} 0.5\n\
                 anneal_prediction_expected{{bin=\"dog\",of=\"classes\"}} 0.5\n"
            ))
        };
        assert_eq!(pod(99, 0).measured("r", 1).drift, None, "too few to say");
        let mut all = pod(500, 0);
        assert!(all.measured("r", 1).drift.is_some_and(|drift| drift > 1.0));
        all.add(&pod(0, 500));
        assert_eq!(all.measured("r", 2).drift, Some(0.0), "what one pod saw too much of the other saw too little of");
    }

    #[test]
    fn bounds_are_passed_only_when_enough_is_known_and_drift_never_rolls_back() {
        let back = Bounds(Feedback { action: FeedbackAction::Rollback, ..bounds(0.9).0 });
        assert_eq!(back.breach(&pod(99, 0, 99.0).measured("r", 1)), None);
        assert_eq!(back.breach(&pod(100, 90, 99.0).measured("r", 1)), None);
        let breach = back.breach(&pod(100, 89, 99.0).measured("r", 1)).expect("a breach");
        assert_eq!((breach.reason, breach.rolls_back), ("AccuracyBelowMinimum", true));
        assert!(breach.message.contains("over 100 true classes is 0.89, below feedback.minAccuracy 0.9"));
        let moved = Measured { drift: Some(0.3), ..Measured::default() };
        assert!(back.breach(&moved).is_some_and(|breach| !breach.rolls_back && breach.message.contains("train")));
        let unsure = Bounds(Feedback { max_calibration_error: Some(0.05), ..Feedback::default() });
        assert!(unsure.breach(&pod(100, 89, 99.0).measured("r", 1)).is_some_and(|it| it.message.contains("0.1 apart")));
    }

    #[test]
    fn a_number_that_moves_a_little_is_no_news_and_a_passed_bound_is_at_once() {
        let told = pod(100, 95, 95.0).measured("r", 1);
        let news = |new: Counts, seconds: i64| new.measured("r", 1).is_news(&told, at(0), &bounds(0.9), at(seconds));
        assert!(!news(pod(105, 100, 100.0), 3600), "about the same");
        assert!(!news(pod(200, 195, 195.0), 299), "not so soon");
        assert!(news(pod(200, 195, 195.0), 300));
        assert!(news(pod(200, 100, 195.0), 1));
        let few = pod(99, 95, 95.0).measured("r", 1);
        assert!(told.is_news(&few, at(0), &bounds(0.9), at(1)), "enough is known now");
        let low = pod(200, 100, 195.0).measured("r", 1);
        assert!(!told.is_news(&low, at(0), &bounds(0.9), at(299)), "what goes up and down is told once");
        assert!(told.is_news(&low, at(0), &bounds(0.9), at(300)));
    }

    #[test]
    fn what_is_no_count_is_not_counted() {
        let text =
            "anneal_feedback_newest{bin=\"0\"} NaN\nanneal_feedback_newest{bin=\"1\"} -3\nanneal_feedback_newest{\n";
        assert_eq!(Counts::parse(text), Counts::default());
        let line = |n| format!("anneal_prediction_newest{{bin=\"{n}\",of=\"classes\"}} 1");
        let many: Vec<String> = (0..5000).map(line).collect();
        assert_eq!(Counts::parse(&many.join("\n")).predictions.len(), MAX_BINS);
        let long: Vec<String> = (0..100).map(|n| line(n).replace('"', &format!("\"{}", "x".repeat(10_000)))).collect();
        let bytes: usize = Counts::parse(&long.join("\n")).predictions.keys().map(String::len).sum();
        assert!((1..=MAX_LABELS).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_count_beyond_all_bounds_is_news_and_no_overflow() {
        let most = Counts::parse("anneal_feedback_newest{bin=\"0\"} 1e300").measured("r", 1);
        let few = pod(100, 95, 95.0).measured("r", 1);
        assert!(most.is_news(&few, at(0), &Bounds(Feedback::default()), at(300)));
    }
}
