//! Metrics of a classification, all from its confusion matrix, and scikit-learn's report of them.

use anneal_api::termination::Metrics;

const WEIGHTED: &str = "weighted avg";

/// How often a photo of one class (row) was taken for another (column).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion(Vec<Vec<u64>>);

/// Metrics of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassMetrics {
    /// True positives by predicted positives.
    pub precision: f64,
    /// True positives by actual positives.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Actual positives.
    pub support: u64,
}

impl Confusion {
    /// A matrix without photos.
    pub fn new(classes: usize) -> Self {
        Self(vec![vec![0; classes]; classes])
    }

    /// Counts one photo.
    pub fn count(&mut self, actual: usize, predicted: usize) {
        self.0[actual][predicted] += 1;
    }

    /// The rows.
    pub fn rows(&self) -> &[Vec<u64>] {
        &self.0
    }

    /// All photos.
    pub fn total(&self) -> u64 {
        self.0.iter().flatten().sum()
    }

    /// Photos whose class was right.
    pub fn right(&self) -> u64 {
        self.0.iter().enumerate().map(|(class, row)| row[class]).sum()
    }

    /// Share of photos whose class was right.
    pub fn accuracy(&self) -> f64 {
        share(self.right(), self.total())
    }

    /// Wilson's interval, which holds the accuracy on further photos of this kind in 95 of 100 cases.
    pub fn interval(&self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        if self.total() == 0 {
            return (0.0, 1.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of photos")]
        let (n, p) = (self.total() as f64, self.accuracy());
        let centre = p + Z * Z / (2.0 * n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
    }

    /// Metrics of each class.
    pub fn by_class(&self) -> Vec<ClassMetrics> {
        let of = |class: usize| {
            let hits = self.0[class][class];
            let support = self.0[class].iter().sum();
            let predicted = self.0.iter().map(|row| row[class]).sum();
            let (precision, recall) = (share(hits, predicted), share(hits, support));
            let sum = precision + recall;
            let f1 = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
            ClassMetrics { precision, recall, f1, support }
        };
        (0..self.0.len()).map(of).collect()
    }

    /// Macro-averaged metrics.
    pub fn metrics(&self) -> Metrics {
        let classes = self.by_class();
        Metrics {
            accuracy: self.accuracy(),
            precision: mean(&classes, |class| class.precision),
            recall: mean(&classes, |class| class.recall),
            f1: mean(&classes, |class| class.f1),
        }
    }

    /// The text of scikit-learn's `classification_report` with two digits.
    pub fn report(&self, names: &[String]) -> String {
        let classes = self.by_class();
        let (total, all) = (self.total(), self.metrics());
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(WEIGHTED.len());
        let row = |name: &str, values: [f64; 3], support: u64| {
            let [precision, recall, f1] = values;
            format!("{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {support:>9}\n")
        };
        let weighted = |of: fn(&ClassMetrics) -> f64| {
            classes.iter().map(|class| of(class) * share(class.support, total)).sum::<f64>()
        };
        let rows: String = names
            .iter()
            .zip(&classes)
            .map(|(name, class)| row(name, [class.precision, class.recall, class.f1], class.support))
            .collect();
        [
            format!("{:>width$}  {:>9} {:>9} {:>9} {:>9}\n\n", "", "precision", "recall", "f1-score", "support"),
            rows,
            format!("\n{:>width$}  {:>9} {:>9} {:>9.2} {total:>9}\n", "accuracy", "", "", all.accuracy),
            row("macro avg", [all.precision, all.recall, all.f1], total),
            row(WEIGHTED, [weighted(|c| c.precision), weighted(|c| c.recall), weighted(|c| c.f1)], total),
        ]
        .concat()
    }
}

fn mean(classes: &[ClassMetrics], of: fn(&ClassMetrics) -> f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of classes")]
    let count = classes.len().max(1) as f64;
    classes.iter().map(of).sum::<f64>() / count
}

#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn confusion(rows: &[&[u64]]) -> Confusion {
        Confusion(rows.iter().map(|row| row.to_vec()).collect())
    }

    #[test]
    fn the_report_is_laid_out_as_scikit_learn_does_it() {
        // classification_report([0]*10 + [1]*10, [0]*8 + [1]*2 + [0] + [1]*9, target_names=["cat", "dog"])
        let report = confusion(&[&[8, 2], &[1, 9]]).report(&["cat".to_owned(), "dog".to_owned()]);
        let lines: Vec<&str> = report.lines().collect();
        assert_eq!(lines[0], "              precision    recall  f1-score   support");
        assert_eq!(lines[2], "         cat       0.89      0.80      0.84        10");
        assert_eq!(lines[5], "    accuracy                           0.85        20");
        assert_eq!(lines[7], "weighted avg       0.85      0.85      0.85        20");
    }

    #[test]
    fn a_class_that_is_never_predicted_has_no_precision() {
        let metrics = confusion(&[&[0, 4], &[0, 6]]).metrics();
        assert!((metrics.accuracy - 0.6).abs() < 1e-12);
        assert!((metrics.precision - 0.3).abs() < 1e-12);
        assert!((metrics.f1 - 0.375).abs() < 1e-12);
    }

    #[test]
    fn the_interval_is_what_statsmodels_gives() {
        // proportion_confint(92, 100, method="wilson") is (0.8501, 0.9589)
        let (low, high) = confusion(&[&[46, 4], &[4, 46]]).interval();
        assert!((low - 0.8501).abs() < 1e-4 && (high - 0.9589).abs() < 1e-4, "{low} to {high}");
    }

    proptest! {
        #[test]
        fn every_metric_is_a_share(counts in prop::collection::vec(prop::collection::vec(0_u64..1000, 3), 3)) {
            let metrics = Confusion(counts).metrics();
            for value in [metrics.accuracy, metrics.precision, metrics.recall, metrics.f1] {
                prop_assert!((0.0..=1.0).contains(&value));
            }
        }
    }
}
