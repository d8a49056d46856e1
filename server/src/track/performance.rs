//! How well a server did, as the report says it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anneal_figures::Confusion;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{client::Predicted, percentile::percentile, table};

/// What became of one photo.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Its class.
    pub(super) class: String,
    /// The answer, or why there is none.
    pub(super) given: Result<Given, String>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) predicted: Predicted,
    pub(super) took: Duration,
    pub(super) revision: Option<String>,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Performance {
    /// When it ended.
    pub(super) timestamp: Timestamp,
    /// The revisions that answered; more than one where the traffic moved in between.
    pub(super) revisions: BTreeSet<String>,
    /// Photos that were answered.
    pub(super) total: u64,
    /// Photos that were not.
    pub(super) failed: u64,
    /// Photos whose class was right.
    pub(super) correct: u64,
    /// Their share of those that were answered.
    pub(super) accuracy: f64,
    /// Wilson's interval of the accuracy, 95 %.
    pub(super) accuracy_interval: (f64, f64),
    pub(super) mean_confidence: f64,
    pub(super) mean_time_ms: f64,
    pub(super) p95_time_ms: f64,
    pub(super) by_class: BTreeMap<String, ClassPerformance>,
    /// How often each error came.
    pub(super) errors: BTreeMap<String, u64>,
}

/// The part of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ClassPerformance {
    pub(super) total: u64,
    pub(super) correct: u64,
    pub(super) accuracy: f64,
    pub(super) mean_confidence: f64,
}

impl Performance {
    /// What the outcomes come to. `classes` has those of all photos.
    pub(super) fn of(timestamp: Timestamp, classes: &[String], outcomes: &[Outcome]) -> Self {
        let answered = answered(outcomes);
        let confusion = confusion(classes, outcomes);
        let mut errors = BTreeMap::new();
        for error in outcomes.iter().filter_map(|outcome| outcome.given.as_ref().err()) {
            *errors.entry(error.clone()).or_default() += 1;
        }
        let mut times: Vec<f64> = answered.iter().map(|(_, given)| given.took.as_secs_f64() * 1e3).collect();
        let confidence = |of: Option<&String>| {
            let chosen = answered.iter().filter(|(class, _)| of.is_none_or(|of| of == *class));
            mean(&chosen.map(|(_, given)| given.predicted.confidence).collect::<Vec<_>>())
        };
        let of_class = |(index, class): (usize, &String)| {
            let (row, metrics) = (&confusion.rows()[index], confusion.by_class()[index]);
            let part = ClassPerformance {
                total: metrics.support,
                correct: row[index],
                accuracy: metrics.recall,
                mean_confidence: confidence(Some(class)),
            };
            (class.clone(), part)
        };
        Self {
            timestamp,
            revisions: answered.iter().filter_map(|(_, given)| given.revision.clone()).collect(),
            total: confusion.total(),
            failed: errors.values().sum(),
            correct: confusion.right(),
            accuracy: confusion.accuracy(),
            accuracy_interval: confusion.interval(),
            mean_confidence: confidence(None),
            mean_time_ms: mean(&times),
            p95_time_ms: percentile(&mut times, 0.95).unwrap_or_default(),
            by_class: classes.iter().enumerate().map(of_class).collect(),
            errors,
        }
    }

    /// The measurement for people.
    pub(super) fn table(&self) -> String {
        let row = |name: &str, total: u64, correct: u64, accuracy: f64, confidence: f64| {
            [
                name.to_owned(),
                total.to_string(),
                correct.to_string(),
                format!("{accuracy:.4}"),
                format!("{confidence:.4}"),
            ]
        };
        let of_class = |(class, of): (&String, &ClassPerformance)| {
            row(class, of.total, of.correct, of.accuracy, of.mean_confidence)
        };
        let mut rows: Vec<_> = self.by_class.iter().map(of_class).collect();
        rows.push(row("all", self.total, self.correct, self.accuracy, self.mean_confidence));
        let (low, high) = self.accuracy_interval;
        let errors: Vec<String> = self.errors.iter().map(|(error, count)| format!("{count} x {error}\n")).collect();
        format!(
            "{}\naccuracy {low:.4} to {high:.4} (95 %)  mean {:.1} ms  p95 {:.1} ms  without answer {}\n{}",
            table::render(["CLASS", "PHOTOS", "CORRECT", "ACCURACY", "CONFIDENCE"], &rows),
            self.mean_time_ms,
            self.p95_time_ms,
            self.failed,
            errors.concat(),
        )
    }
}

/// Which class was taken for which.
pub(super) fn confusion(classes: &[String], outcomes: &[Outcome]) -> Confusion {
    let index = |class: &String| classes.iter().position(|known| known == class);
    let mut confusion = Confusion::new(classes.len());
    for (class, given) in answered(outcomes) {
        if let (Some(actual), Some(predicted)) = (index(class), index(&given.predicted.prediction)) {
            confusion.count(actual, predicted);
        }
    }
    confusion
}

fn answered(outcomes: &[Outcome]) -> Vec<(&String, &Given)> {
    outcomes.iter().filter_map(|outcome| outcome.given.as_ref().ok().map(|given| (&outcome.class, given))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a count of photos")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::track) fn outcome(class: &str, prediction: &str, confidence: f64) -> Outcome {
        let probabilities = BTreeMap::from([(prediction.to_owned(), confidence)]);
        let predicted = Predicted { prediction: prediction.to_owned(), confidence, probabilities };
        let given = Given { predicted, took: Duration::from_millis(10), revision: Some("e300d319".to_owned()) };
        Outcome { class: class.to_owned(), given: Ok(given) }
    }

    #[test]
    fn answers_are_counted_by_class_and_those_that_are_missing_apart() {
        let lost = Outcome { class: "cat".to_owned(), given: Err("refused".to_owned()) };
        let outcomes = [outcome("cat", "cat", 0.9), outcome("cat", "dog", 0.6), outcome("dog", "dog", 0.75), lost];
        let classes = ["cat", "dog"].map(str::to_owned);
        let performance = Performance::of(Timestamp::UNIX_EPOCH, &classes, &outcomes);
        assert_eq!((performance.total, performance.failed, performance.correct), (3, 1, 2));
        assert!((performance.accuracy - 2.0 / 3.0).abs() < 1e-12);
        assert!((performance.mean_confidence - 0.75).abs() < 1e-12);
        assert!((performance.mean_time_ms - 10.0).abs() < 1e-9);
        let cats = &performance.by_class["cat"];
        assert_eq!((cats.total, cats.correct), (2, 1));
        assert!((cats.mean_confidence - 0.75).abs() < 1e-12);
        assert_eq!(performance.errors["refused"], 1);
        let table = performance.table();
        assert!(
            table.starts_with(
                "CLASS  PHOTOS  CORRECT  ACCURACY  CONFIDENCE\ncat    2       1        0.5000    0.7500\n"
            )
        );
        assert!(table.ends_with("without answer 1\n1 x refused\n"), "{table}");
    }
}
