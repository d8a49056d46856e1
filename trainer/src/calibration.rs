//! Whether a network is as often right as it is sure: confidence histogram, calibration error, temperature.

use anneal_api::checkpoint::{Calibration, ValidationProfile};

use crate::answers::{Answer, Answers};

/// Bins of confidence between 0 and 1, all of one width.
pub const BINS: usize = 10;

/// Temperatures between which the best one is looked for.
const TEMPERATURES: (f64, f64) = (0.05, 20.0);

/// The photos whose confidence lies in one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Their count.
    pub count: u64,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that were right.
    pub accuracy: f64,
}

/// Sorts photos into bins by confidence, with logits divided by `temperature`.
pub fn bins(answers: &Answers, temperature: f64) -> [Bin; BINS] {
    let mut bins = [Bin::default(); BINS];
    for answer in answers.iter() {
        let confidence = tempered(&answer, answer.predicted(), temperature).exp();
        let bin = &mut bins[bin_of(confidence)];
        bin.count += 1;
        bin.confidence += confidence;
        bin.accuracy += f64::from(u8::from(answer.is_right()));
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= float(bin.count);
        bin.accuracy /= float(bin.count);
    }
    bins
}

/// Expected calibration error: the mean distance between confidence and accuracy of the bins, weighted by their photos.
pub fn expected_error(bins: &[Bin]) -> f64 {
    let total = float(bins.iter().map(|bin| bin.count).sum::<u64>().max(1));
    bins.iter().map(|bin| float(bin.count) / total * (bin.confidence - bin.accuracy).abs()).sum()
}

/// The temperature by which logits are divided for the lowest cross entropy; the answers themselves do not change.
pub fn temperature(answers: &Answers) -> f64 {
    // Golden-section search over the logarithm: the cross entropy has one minimum along it.
    const RATIO: f64 = 0.618_033_988_749_894_9;
    let (mut low, mut high) = (TEMPERATURES.0.ln(), TEMPERATURES.1.ln());
    let loss = |log: f64| cross_entropy(answers, log.exp());
    let (mut left, mut right) = (high - RATIO * (high - low), low + RATIO * (high - low));
    let (mut at_left, mut at_right) = (loss(left), loss(right));
    while high - low > 1e-3 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - RATIO * (high - low);
            at_left = loss(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + RATIO * (high - low);
            at_right = loss(right);
        }
    }
    f64::midpoint(low, high).exp()
}

/// What serving compares its own answers with.
pub fn profile(answers: &Answers) -> ValidationProfile {
    let mut class_shares = vec![0.0; answers.classes()];
    for answer in answers.iter() {
        class_shares[answer.predicted()] += 1.0;
    }
    let total = float(answers.len().max(1) as u64);
    let class_shares = class_shares.into_iter().map(|count: f64| round(count / total)).collect();
    let raw = bins(answers, 1.0);
    let temperature = temperature(answers);
    ValidationProfile {
        images: i64::try_from(answers.len()).unwrap_or(i64::MAX),
        class_shares,
        confidence_histogram: raw.iter().map(|bin| round(float(bin.count) / total)).collect(),
        calibration: Calibration {
            temperature: round(temperature),
            expected_error: round(expected_error(&raw)),
            expected_error_at_temperature: round(expected_error(&bins(answers, temperature))),
        },
    }
}

/// Six digits: more would only make checkpoints differ by noise.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn cross_entropy(answers: &Answers, temperature: f64) -> f64 {
    let total: f64 = answers.iter().map(|answer| -tempered(&answer, answer.label, temperature)).sum();
    total / float(answers.len().max(1) as u64)
}

/// The log-probability of a class with logits divided by `temperature`. Log-probabilities stand for logits: they differ
/// by a constant of the photo, which the normalisation takes out.
fn tempered(answer: &Answer<'_>, class: usize, temperature: f64) -> f64 {
    let scaled = |value: f32| f64::from(value) / temperature;
    let highest = answer.log_probabilities.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = answer.log_probabilities.iter().map(|&value| (scaled(value) - scaled(highest)).exp()).sum();
    scaled(answer.log_probabilities[class]) - scaled(highest) - sum.ln()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "ten bins")]
fn bin_of(confidence: f64) -> usize {
    ((confidence * BINS as f64) as usize).min(BINS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "a count of photos")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Photos of class 0 or 1 with these probabilities of class 0.
    fn answers(of: &[(usize, f64)]) -> Answers {
        let mut answers = Answers::new(2);
        for &(label, p) in of {
            #[expect(clippy::cast_possible_truncation, reason = "a probability")]
            let row = [p.ln() as f32, (1.0 - p).ln() as f32];
            answers.extend(std::iter::once(label), &row);
        }
        answers
    }

    #[test]
    fn a_network_that_is_as_often_right_as_it_is_sure_has_no_error() {
        let photos: Vec<_> = (0..100).map(|i| (usize::from(i % 4 == 0), 0.75)).collect();
        let bins = bins(&answers(&photos), 1.0);
        assert_eq!(bins[7].count, 100);
        assert!(expected_error(&bins) < 1e-6);
        assert!((temperature(&answers(&photos)) - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_network_that_is_too_sure_is_cooled_to_its_accuracy() {
        let photos: Vec<_> = (0..100).map(|i| (usize::from(i % 4 == 0), 0.999)).collect();
        let profile = profile(&answers(&photos));
        // ln(0.999 / 0.001) / ln(0.75 / 0.25)
        assert!((profile.calibration.temperature - 6.287).abs() < 0.02, "{profile:?}");
        assert!(profile.calibration.expected_error > 0.2);
        assert!(profile.calibration.expected_error_at_temperature < 0.01);
        assert_eq!(profile.class_shares, [1.0, 0.0]);
        assert!((profile.confidence_histogram[9] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_split_without_photos_is_no_special_case() {
        let profile = profile(&Answers::new(2));
        assert_eq!((profile.images, profile.class_shares), (0, vec![0.0, 0.0]));
    }

    proptest! {
        #[test]
        fn a_temperature_never_makes_the_cross_entropy_worse(
            photos in prop::collection::vec((0_usize..2, 0.01..0.99), 1..60),
        ) {
            let answers = answers(&photos);
            let best = cross_entropy(&answers, temperature(&answers));
            prop_assert!(best <= cross_entropy(&answers, 1.0) + 1e-6);
        }

        #[test]
        fn shares_sum_to_one(photos in prop::collection::vec((0_usize..2, 0.01..0.99), 1..60)) {
            let profile = profile(&answers(&photos));
            for shares in [&profile.class_shares, &profile.confidence_histogram] {
                prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-4);
            }
        }
    }
}
