//! How far the newest answers are from those that the checkpoint gave on its validation set, by the population stability
//! index.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use anneal_api::{
    checkpoint::ValidationProfile,
    performance::{ENOUGH, stability},
};

/// Answers that are compared.
const WINDOW: usize = 1000;

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
        (newest.answers.len() >= ENOUGH as usize).then(|| Moved {
            classes: index(&self.profile.class_shares, &newest.classes),
            confidence: index(&self.profile.confidence_histogram, &newest.confidences),
        })
    }

    /// The counts of the newest answers beside the shares to expect, by class and by confidence.
    pub fn newest(&self) -> Beside {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let beside = |shares: &[f64], counts: &[u32]| shares.iter().copied().zip(counts.iter().copied()).collect();
        Beside {
            classes: beside(&self.profile.class_shares, &newest.classes),
            confidence: beside(&self.profile.confidence_histogram, &newest.confidences),
        }
    }
}

/// For each bin the share to expect, and the count.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// By predicted class, in the order of the classes.
    pub classes: Vec<(f64, u32)>,
    /// By confidence.
    pub confidence: Vec<(f64, u32)>,
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
pub fn bin(confidence: f64, bins: usize) -> usize {
    ((confidence.clamp(0.0, 1.0) * bins as f64) as usize).min(bins.saturating_sub(1))
}

fn index(shares: &[f64], counts: &[u32]) -> f64 {
    stability(shares.iter().copied().zip(counts.iter().copied().map(f64::from)))
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
        assert_eq!(usual(&drift, ENOUGH as usize - 1), None, "too few to say");
        let moved = usual(&drift, WINDOW).expect("enough");
        assert!(moved.classes < 1e-3 && moved.confidence < 1e-3, "{moved:?}");
        let beside = drift.newest();
        assert_eq!(beside.classes, [(0.5, 500), (0.5, 500)]);
        assert_eq!((beside.confidence[6], beside.confidence[9]), ((0.25, 250), (0.75, 750)));
    }

    #[test]
    fn other_photos_move_both_indices_and_the_usual_ones_bring_them_back() {
        let drift = Drift::new(profile());
        let moved = (0..WINDOW).map(|_| drift.add(0, 0.55)).last().flatten().expect("enough");
        assert!(moved.classes > 0.25 && moved.confidence > 0.25, "{moved:?}");
        let back = usual(&drift, WINDOW).expect("enough");
        assert!(back.classes < 1e-3 && back.confidence < 1e-3, "the old ones have left the window: {back:?}");
    }
}
