//! The learning rate of each optimiser step.

use anneal_api::hyperparameters::Schedule;

/// The learning rate of `step`, counted from 0, in a run of `steps`.
#[expect(clippy::cast_precision_loss, reason = "no run has 2^52 steps")]
pub fn learning_rate(schedule: Schedule, peak: f64, step: u64, steps: u64) -> f64 {
    match schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => {
            let warm_up = (steps / 10).max(1);
            if step < warm_up {
                return peak * (step + 1) as f64 / warm_up as f64;
            }
            let rest = steps.saturating_sub(warm_up).max(1);
            let done = (step - warm_up) as f64 / rest as f64;
            peak * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cosine_warms_up_over_a_tenth_and_comes_down_to_nearly_zero() {
        let at = |step| learning_rate(Schedule::Cosine, 0.1, step, 100);
        assert!((at(0) - 0.01).abs() < 1e-12);
        assert!((at(9) - 0.1).abs() < 1e-12);
        assert!((at(10) - 0.1).abs() < 1e-12);
        assert!((at(55) - 0.05).abs() < 1e-12);
        assert!(at(99) < 1e-4);
    }

    proptest! {
        #[test]
        fn no_step_leaves_the_range_between_zero_and_the_peak(peak in 1e-9..100.0, steps in 1_u64..100_000, at in 0.0..1.0) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let step = (steps as f64 * at) as u64;
            for schedule in [Schedule::Constant, Schedule::Cosine] {
                let rate = learning_rate(schedule, peak, step, steps);
                prop_assert!((0.0..=peak).contains(&rate), "{rate}");
            }
        }
    }
}
