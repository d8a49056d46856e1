//! How far the newest answers are from those that the checkpoint gave on its validation set.
//!
//! The measure is the population stability index, the symmetrised Kullback-Leibler divergence of two histograms:
//! `sum((p - q) * ln(p / q))`. Below 0.1 nothing has moved, above 0.25 the data is another (Siddiqi, *Credit Risk
//! Scorecards*, 2006). Shares of zero are taken as one in ten thousand, so that the index stays finite.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use anneal_api::checkpoint::ValidationProfile;

/// Answers that are compared.
const WINDOW: usize = 1000;
/// Fewest answers that say something: with fewer, chance alone moves the index.
const ENOUGH: usize = 100;
const SMALLEST: f64 = 1e-4;

/// The newest answers beside the validation set.
#[derive(Debug)]
pub struct Drift {
    profile: ValidationProfile,
    newest: Mutex<Newest>,
}

/// Counts of the answers in the window.
#[derive(Debug, Default)]
struct Newest {
    answers: VecDeque<(usize, usize)>,
    classes: Vec<u32>,
    confidences: Vec<u32>,
}

/// How far the answers have moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// Index of the shares of the predicted classes.
    pub classes: f64,
    /// Index of the histogram of confidences.
    pub confidence: f64,
}

impl Drift {
    /// Compares with this profile.
    pub fn new(profile: ValidationProfile) -> Self {
        let newest = Newest {
            answers: VecDeque::new(),
            classes: vec![0; profile.class_shares.len()],
            confidences: vec![0; profile.confidence_histogram.len()],
        };
        Self { profile, newest: Mutex::new(newest) }
    }

    /// Counts an answer, and says how far the newest have moved once there are enough.
    pub fn add(&self, class: usize, confidence: f64) -> Option<Moved> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let bin = bin(confidence, newest.confidences.len());
        if newest.answers.len() == WINDOW
            && let Some((class, bin)) = newest.answers.pop_front()
        {
            newest.count(class, bin, |count| count.saturating_sub(1));
        }
        newest.answers.push_back((class, bin));
        newest.count(class, bin, |count| count + 1);
        (newest.answers.len() >= ENOUGH).then(|| Moved {
            classes: stability(&self.profile.class_shares, &newest.classes),
            confidence: stability(&self.profile.confidence_histogram, &newest.confidences),
        })
    }
}

impl Newest {
    fn count(&mut self, class: usize, bin: usize, change: impl Fn(u32) -> u32) {
        for count in [self.classes.get_mut(class), self.confidences.get_mut(bin)].into_iter().flatten() {
            *count = change(*count);
        }
    }
}

/// The bin of equal width over [0, 1] that the trainer counts this confidence in; the last one has its end too.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few bins")]
fn bin(confidence: f64, bins: usize) -> usize {
    ((confidence.clamp(0.0, 1.0) * bins as f64) as usize).min(bins.saturating_sub(1))
}

/// The population stability index of counts against expected shares.
fn stability(expected: &[f64], counts: &[u32]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>()).max(1.0);
    let term = |(expected, count): (&f64, &u32)| {
        let (expected, actual) = (expected.max(SMALLEST), (f64::from(*count) / total).max(SMALLEST));
        (actual - expected) * (actual / expected).ln()
    };
    expected.iter().zip(counts).map(term).sum()
}

#[cfg(test)]
mod tests {
    use anneal_api::checkpoint::Calibration;

    use super::*;

    fn profile() -> ValidationProfile {
        let mut confidence_histogram = vec![0.0; 10];
        confidence_histogram[9] = 0.75;
        confidence_histogram[6] = 0.25;
        ValidationProfile {
            images: 100,
            class_shares: vec![0.5, 0.5],
            confidence_histogram,
            calibration: Calibration { temperature: 1.0, expected_error: 0.0, expected_error_at_temperature: 0.0 },
        }
    }

    /// Every fourth answer is unsure, and of each two one is of the second class.
    fn usual(drift: &Drift, answers: usize) -> Option<Moved> {
        (0..answers).map(|n| drift.add(n % 2, if n % 4 == 3 { 0.65 } else { 1.0 })).last().flatten()
    }

    #[test]
    fn answers_like_those_of_validation_have_not_moved() {
        let drift = Drift::new(profile());
        assert_eq!(usual(&drift, ENOUGH - 1), None, "too few to say");
        let moved = usual(&drift, WINDOW).expect("enough");
        assert!(moved.classes < 1e-3 && moved.confidence < 1e-3, "{moved:?}");
    }

    #[test]
    fn other_photos_move_both_indices_and_the_usual_ones_bring_them_back() {
        let drift = Drift::new(profile());
        let moved = (0..WINDOW).map(|_| drift.add(0, 0.55)).last().flatten().expect("enough");
        assert!(moved.classes > 0.25 && moved.confidence > 0.25, "{moved:?}");
        let back = usual(&drift, WINDOW).expect("enough");
        assert!(back.classes < 1e-3 && back.confidence < 1e-3, "the old ones have left the window: {back:?}");
    }

    #[test]
    fn the_index_is_that_of_the_formula() {
        // (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5)
        assert!((stability(&[0.5, 0.5], &[1, 3]) - 0.274_653).abs() < 1e-6);
    }
}
