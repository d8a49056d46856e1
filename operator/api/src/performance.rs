//! How well a model does under traffic, as a server counts it in its metrics and as it is judged over all servers. What
//! is counted adds up over servers; shares of it do not.

/// Names of the metrics: gauges over the newest predictions of one server.
pub mod metric {
    /// Predictions whose true class is known, by their confidence.
    pub const KNOWN: &str = "anneal_feedback_newest";
    /// Right ones among them.
    pub const RIGHT: &str = "anneal_feedback_newest_right";
    /// Sum of their confidences.
    pub const CONFIDENCE: &str = "anneal_feedback_newest_confidence";
    /// Predictions by class and by confidence, as the label [`OF`] says.
    pub const PREDICTIONS: &str = "anneal_prediction_newest";
    /// What share of them to expect from the validation set, under the same labels.
    pub const EXPECTED: &str = "anneal_prediction_expected";
    /// Label that says what is counted: `classes` or `confidence`.
    pub const OF: &str = "of";
    /// Label that tells bins of one count from each other.
    pub const BIN: &str = "bin";
}

/// Bins of one width that confidences are counted in.
pub const BINS: usize = 10;

/// Fewest predictions whose shares say something: with fewer, chance alone moves the index.
pub const ENOUGH: u32 = 100;

/// Shares of zero are taken as one in ten thousand, so that the index stays finite.
const SMALLEST: f64 = 1e-4;

/// The population stability index of counts against expected shares, given in pairs: the symmetrised Kullback-Leibler
/// divergence of two histograms, `sum((p - q) * ln(p / q))`. Below 0.1 nothing has moved, above 0.25 the data is another
/// (Siddiqi, *Credit Risk Scorecards*, 2006).
pub fn stability(expected_and_counted: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let total = expected_and_counted.clone().map(|(_, count)| count).sum::<f64>().max(1.0);
    let term = |(expected, count): (f64, f64)| {
        let (expected, actual) = (expected.max(SMALLEST), (count / total).max(SMALLEST));
        (actual - expected) * (actual / expected).ln()
    };
    expected_and_counted.map(term).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_that_of_the_formula() {
        // (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5)
        assert!((stability([(0.5, 1.0), (0.5, 3.0)].into_iter()) - 0.274_653).abs() < 1e-6);
    }
}
