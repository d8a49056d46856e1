//! Which trials are not worth their rest: the median rule, at milestones that double.

use anneal_api::resources::{EarlyStopping, Goal, Milestone, TrialStatus};

/// The newest milestone at or before `epoch`: the grace, or twice, four times … as many epochs.
pub fn milestone(grace: i32, epoch: i32) -> Option<i32> {
    let mut newest = Some(grace.max(1)).filter(|first| *first <= epoch)?;
    while let Some(next) = newest.checked_mul(2).filter(|next| *next <= epoch) {
        newest = next;
    }
    Some(newest)
}

/// Whether `a` is better than `b`.
pub fn is_better(goal: Goal, a: f64, b: f64) -> bool {
    match goal {
        Goal::Maximize => a > b,
        Goal::Minimize => a < b,
    }
}

/// Why a trial should be stopped: it is worse than the median of the others when they had come as far as it has.
pub fn verdict(rule: &EarlyStopping, goal: Goal, trial: &TrialStatus, all: &[TrialStatus]) -> Option<String> {
    let Milestone { epoch, value } = *trial.milestones.last()?;
    let at = |other: &TrialStatus| other.milestones.iter().find(|it| it.epoch == epoch).map(|it| it.value);
    let others: Vec<f64> = all.iter().filter(|other| other.number != trial.number).filter_map(at).collect();
    let enough = usize::try_from(rule.min_trials.max(1)).is_ok_and(|least| others.len() >= least);
    let median = median(others.clone()).filter(|_| enough)?;
    let side = match goal {
        Goal::Maximize => "below",
        Goal::Minimize => "above",
    };
    is_better(goal, median, value).then(|| {
        let count = others.len();
        format!("stopped early: {value} at epoch {epoch} is {side} {median}, the median of {count} other trials")
    })
}

/// The median; of an even number, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anneal_api::resources::{StoppingRule, TrialPhase};

    use super::*;

    const RULE: EarlyStopping = EarlyStopping { rule: StoppingRule::Median, grace_epochs: 2, min_trials: 3 };

    fn trial(number: i32, milestones: &[(i32, f64)]) -> TrialStatus {
        TrialStatus {
            number,
            run: format!("rates-{number}"),
            phase: TrialPhase::Running,
            parameters: BTreeMap::new(),
            value: None,
            milestones: milestones.iter().map(|&(epoch, value)| Milestone { epoch, value }).collect(),
            message: String::new(),
        }
    }

    #[test]
    fn milestones_double_from_the_grace_on() {
        let found: Vec<Option<i32>> = [0, 2, 3, 5, 6, 11, 12, 100].map(|epoch| milestone(3, epoch)).to_vec();
        assert_eq!(found, [None, None, Some(3), Some(3), Some(6), Some(6), Some(12), Some(96)]);
        assert_eq!(milestone(1, i32::MAX), Some(1 << 30));
    }

    #[test]
    fn a_trial_below_the_median_of_enough_others_is_stopped() {
        let all = [trial(1, &[(2, 0.9)]), trial(2, &[(2, 0.8)]), trial(3, &[(2, 0.7)]), trial(4, &[(2, 0.75)])];
        let message = verdict(&RULE, Goal::Maximize, &all[2], &all).expect("stopped");
        assert!(message.contains("0.7 at epoch 2 is below 0.8, the median of 3 other trials"), "{message}");
        assert_eq!(verdict(&RULE, Goal::Maximize, &all[1], &all), None);
        assert_eq!(verdict(&RULE, Goal::Maximize, &all[2], &all[..3]), None, "two others are too few");
        assert!(verdict(&RULE, Goal::Minimize, &all[0], &all).is_some());
    }

    #[test]
    fn trials_are_compared_at_the_same_epoch_only() {
        let all =
            [trial(1, &[(2, 0.5), (4, 0.6)]), trial(2, &[(2, 0.9)]), trial(3, &[(2, 0.9)]), trial(4, &[(2, 0.9)])];
        assert_eq!(verdict(&RULE, Goal::Maximize, &all[0], &all), None, "nobody else has come to epoch 4");
    }
}
