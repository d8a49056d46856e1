//! From the model's logits to a prediction, and what makes an answer a sound one.

use std::collections::BTreeMap;

/// How far the probabilities of a sound answer may be from summing to one.
pub const SUM_TOLERANCE: f64 = 1e-3;

/// What the model says about one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Index of the most probable class.
    pub class: usize,
    /// Probability of every class, in the order of the model's outputs.
    pub probabilities: Vec<f64>,
    /// The model's outputs.
    pub logits: Vec<f32>,
}

impl Prediction {
    /// The softmax of the logits, or none where it would not be finite.
    pub fn from_logits(logits: &[f32]) -> Option<Self> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return None;
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let probabilities: Vec<f64> = powers.iter().map(|power| power / sum).collect();
        Some(Self { class: argmax(&probabilities)?, probabilities, logits: logits.to_vec() })
    }

    /// The probabilities in float32.
    #[expect(clippy::cast_possible_truncation, reason = "as said")]
    pub fn rounded(&self) -> Vec<f32> {
        self.probabilities.iter().map(|p| *p as f32).collect()
    }

    /// Probability of the predicted class.
    pub fn confidence(&self) -> f64 {
        self.probabilities.get(self.class).copied().unwrap_or(0.0)
    }
}

/// Index of the first largest value.
pub fn argmax(values: &[f64]) -> Option<usize> {
    values.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).map(|(index, _)| index)
}

/// Says what is wrong with the numbers of an answer; a sound one gives nothing.
pub fn unsound(prediction: &str, confidence: f64, probabilities: &BTreeMap<String, f64>) -> Option<String> {
    if probabilities.is_empty() {
        return Some("the answer has no probabilities".to_owned());
    }
    if let Some((class, p)) = probabilities.iter().find(|(_, p)| !(0.0..=1.0).contains(*p)) {
        return Some(format!("the probability of {class:?} is {p}, which is not between 0 and 1"));
    }
    let sum: f64 = probabilities.values().sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Some(format!("the probabilities sum to {sum:.4} instead of 1"));
    }
    let Some(own) = probabilities.get(prediction) else {
        return Some(format!("the predicted class {prediction:?} is not among the probabilities"));
    };
    if let Some((class, p)) = probabilities.iter().find(|(_, p)| *p > own) {
        return Some(format!("{prediction:?} ({own:.4}) is predicted although {class:?} is more probable ({p:.4})"));
    }
    if (confidence - own).abs() > SUM_TOLERANCE {
        return Some(format!("the confidence is {confidence:.4}, but the probability of {prediction:?} is {own:.4}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
        pairs.iter().map(|(class, p)| ((*class).to_owned(), *p)).collect()
    }

    #[test]
    fn probabilities_sum_to_one_even_for_logits_that_overflow_an_exponential() {
        for logits in [vec![0.0], vec![1.0, 2.0, 3.0], vec![-1e30, 1e30], vec![3e38, 3e38]] {
            let prediction = Prediction::from_logits(&logits).expect("finite");
            let sum: f64 = prediction.probabilities.iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{logits:?} sum to {sum}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_give_no_prediction() {
        for logits in [vec![], vec![f32::NAN, 0.0], vec![0.0, f32::INFINITY], vec![f32::NEG_INFINITY]] {
            assert_eq!(Prediction::from_logits(&logits), None, "{logits:?}");
        }
    }

    #[test]
    fn the_most_probable_class_is_the_first_of_equals() {
        let prediction = Prediction::from_logits(&[0.0, 2.0, 2.0]).expect("finite");
        assert_eq!(prediction.class, 1);
        assert!((prediction.confidence() - prediction.probabilities[1]).abs() < 1e-12);
    }

    #[test]
    fn a_sound_answer_passes() {
        assert_eq!(unsound("cat", 0.75, &shares(&[("cat", 0.75), ("dog", 0.25)])), None);
    }

    #[test]
    fn an_unsound_answer_is_named() {
        let cases = [
            (unsound("cat", 0.9, &shares(&[])), "no probabilities"),
            (unsound("cat", 1.5, &shares(&[("cat", 1.5), ("dog", -0.5)])), "not between 0 and 1"),
            (unsound("cat", f64::NAN, &shares(&[("cat", f64::NAN)])), "not between 0 and 1"),
            (unsound("cat", 0.5, &shares(&[("cat", 0.5), ("dog", 0.4)])), "sum to 0.9000"),
            (unsound("cow", 0.5, &shares(&[("cat", 0.5), ("dog", 0.5)])), "not among"),
            (unsound("cat", 0.25, &shares(&[("cat", 0.25), ("dog", 0.75)])), "more probable"),
            (unsound("cat", 0.6, &shares(&[("cat", 0.75), ("dog", 0.25)])), "the confidence is 0.6000"),
        ];
        for (found, expected) in cases {
            assert!(found.as_deref().is_some_and(|text| text.contains(expected)), "{found:?} lacks {expected:?}");
        }
    }
}
