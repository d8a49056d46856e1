//! The learning rate of each optimiser step.

use anneal_api::hyperparameters::Schedule;

/// Where `OneCycle` is at its peak, and how far below it begins and ends.
const PEAK_AT: f64 = 0.3;
const BEGIN: f64 = 25.0;
const END: f64 = 1e4;
/// What is left after each decay of `Step`.
const GAMMA: f64 = 0.1;

/// The learning rate of `step`, counted from 0, in a run of `steps`. The schedule `Step` decays every `decay` steps.
#[expect(clippy::cast_precision_loss, reason = "no run has 2^52 steps")]
pub fn learning_rate(schedule: Schedule, peak: f64, step: u64, steps: u64, decay: u64) -> f64 {
    match schedule {
        Schedule::Constant => peak,
        Schedule::Step => {
            let decays = i32::try_from(step / decay.max(1)).unwrap_or(i32::MAX);
            peak * GAMMA.powi(decays)
        }
        Schedule::OneCycle => {
            let (begin, at, last) = (peak / BEGIN, step as f64, steps.saturating_sub(1) as f64);
            let top = PEAK_AT * steps as f64 - 1.0;
            if at <= top && top > 0.0 {
                return between(begin, peak, at / top);
            }
            between(peak, begin / END, ((at - top) / (last - top)).min(1.0))
        }
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

/// Half a cosine from one value to another.
fn between(from: f64, to: f64, share: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + (std::f64::consts::PI * share).cos())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cosine_warms_up_over_a_tenth_and_comes_down_to_nearly_zero() {
        let at = |step| learning_rate(Schedule::Cosine, 0.1, step, 100, 1);
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
            for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::Step, Schedule::OneCycle] {
                let rate = learning_rate(schedule, peak, step, steps, 7);
                prop_assert!((0.0..=peak * (1.0 + 1e-12)).contains(&rate), "{rate}");
            }
        }
    }
}
