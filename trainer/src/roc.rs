//! Receiver operating characteristic: how many photos of a class are found for how many false alarms.

use crate::answers::Answers;

/// The curve of one class against all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Points (false positive rate, true positive rate) from (0, 0) to (1, 1).
    pub points: Vec<(f64, f64)>,
    /// Area under the curve.
    pub area: f64,
}

/// The curve of a class, or `None` where the photos are all of it, or none is.
pub fn curve(answers: &Answers, class: usize) -> Option<Curve> {
    let mut scored: Vec<(f64, bool)> =
        answers.iter().map(|answer| (answer.probability(class), answer.label == class)).collect();
    let positives = scored.iter().filter(|(_, positive)| *positive).count();
    let negatives = scored.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut found, mut alarms) = (0, 0);
    let mut points = vec![(0.0, 0.0)];
    // Photos of one score come together: no threshold parts them.
    for same in scored.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let right = same.iter().filter(|(_, positive)| *positive).count();
        found += right;
        alarms += same.len() - right;
        points.push((share(alarms, negatives), share(found, positives)));
    }
    let area = points.windows(2).map(|pair| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1)).sum();
    Some(Curve { points, area })
}

#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(of: &[(usize, f32)]) -> Answers {
        let mut answers = Answers::new(2);
        for &(label, p) in of {
            answers.extend(std::iter::once(label), &[(1.0 - p).ln(), p.ln()]);
        }
        answers
    }

    #[test]
    fn the_area_is_what_scikit_learn_gives() {
        // roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) is 0.75
        let curve = curve(&answers(&[(0, 0.1), (0, 0.4), (1, 0.35), (1, 0.8)]), 1).expect("both classes");
        assert!((curve.area - 0.75).abs() < 1e-9);
        assert_eq!(curve.points, [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]);
    }

    #[test]
    fn a_network_that_always_says_the_same_is_on_the_diagonal() {
        let curve = curve(&answers(&[(0, 0.5), (1, 0.5), (1, 0.5)]), 1).expect("both classes");
        assert_eq!(curve.points, [(0.0, 0.0), (1.0, 1.0)]);
        assert!((curve.area - 0.5).abs() < 1e-9);
    }

    #[test]
    fn one_class_has_no_curve() {
        assert_eq!(curve(&answers(&[(1, 0.9)]), 1), None);
    }
}
