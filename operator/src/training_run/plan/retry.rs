//! What follows a failure: by its class, the user's rules, and what was tried before. Everything is derived from the
//! recorded attempts, so that no restart of the operator shortens a pause or grants another try.

use std::time::Duration;

use anneal_api::{
    failure::FailureClass,
    resources::{Attempt, FailureCount, RetryAction, TrainingRunSpec, TrainingRunStatus},
};
use jiff::Timestamp;

/// First pause before a retry; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause before a retry.
pub const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// An attempt that ran for this long was no failure in a row: the pause starts again at its first length.
const GOOD_WHILE: Duration = Duration::from_mins(10);
/// How often a failure that is the cluster's and not the run's is tried again where no rule says otherwise: enough for
/// months on nodes that come and go, and an end to what will never work.
pub const FREE_RETRIES: i32 = 100;

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next attempt is due at this time.
    Retry(Timestamp),
    /// The run fails, and why no other attempt is made.
    Fail(&'static str),
}

/// What a failure of a class costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    /// It ends the run.
    None,
    /// One of `spec.maxRetries`.
    Shared,
    /// One of this many, which belong to the class alone.
    Own(i32),
}

/// Whether the cluster brings failures of this class about, so that they say nothing about the run.
pub fn is_infrastructure(class: FailureClass) -> bool {
    matches!(class, FailureClass::Evicted | FailureClass::Preempted | FailureClass::NodeLost)
}

fn budget(spec: &TrainingRunSpec, class: FailureClass) -> Budget {
    let rule = spec.retry_rules.iter().find(|rule| rule.class == class);
    let own = rule.and_then(|rule| rule.max_retries);
    match (rule.map(|rule| rule.action), own) {
        (Some(RetryAction::Fail), _) => Budget::None,
        (Some(RetryAction::Retry), Some(own)) => Budget::Own(own),
        _ if class == FailureClass::ActiveDeadline => Budget::None,
        (_, None) if is_infrastructure(class) => Budget::Own(FREE_RETRIES),
        (None, _) if ends_the_run(class) => Budget::None,
        _ => Budget::Shared,
    }
}

/// Whether a failure of this class ends the run where no rule says otherwise: the same would happen again, or has been
/// waited for long enough.
fn ends_the_run(class: FailureClass) -> bool {
    class.is_permanent()
        || matches!(class, FailureClass::ImagePull | FailureClass::Unschedulable | FailureClass::VolumeMissing)
}

/// What follows the newest attempt, which ended without a result.
pub fn verdict(spec: &TrainingRunSpec, status: &TrainingRunStatus, last: &Attempt) -> Verdict {
    let end = last.end_time.0;
    let Some(class) = last.class.filter(|class| *class != FailureClass::Suspended) else { return Verdict::Retry(end) };
    let used = |counts: &dyn Fn(FailureClass) -> bool| -> i32 {
        status.failures.iter().filter(|entry| counts(entry.class)).map(|entry| entry.count).sum()
    };
    match budget(spec, class) {
        Budget::None if spec.retry_rules.iter().any(|rule| rule.class == class) => {
            Verdict::Fail("; a retry rule says that it is not retried")
        }
        Budget::None => Verdict::Fail("; the same would happen again, so it is not retried"),
        // The failure itself is counted already.
        Budget::Own(limit) if used(&|other| other == class) > limit => {
            Verdict::Fail("; every retry of this class is used up")
        }
        Budget::Shared if spec.max_retries == 0 => Verdict::Fail("; spec.maxRetries is 0"),
        Budget::Shared if used(&|other| budget(spec, other) == Budget::Shared) > spec.max_retries => {
            Verdict::Fail("; every retry is used up")
        }
        Budget::Own(_) | Budget::Shared => {
            Verdict::Retry(end.checked_add(pause(in_a_row(&status.attempts))).unwrap_or(end))
        }
    }
}

/// Counts one failure.
pub fn count(failures: &mut Vec<FailureCount>, class: FailureClass) {
    match failures.iter_mut().find(|entry| entry.class == class) {
        Some(entry) => entry.count = entry.count.saturating_add(1),
        None => failures.push(FailureCount { class, count: 1 }),
    }
}

/// How many attempts failed one after the other up to the last, none of which ran for long.
fn in_a_row(attempts: &[Attempt]) -> u32 {
    let ran_long = |attempt: &Attempt| {
        attempt
            .start_time
            .as_ref()
            .is_some_and(|start| attempt.end_time.0.duration_since(start.0).unsigned_abs() >= GOOD_WHILE)
    };
    let failed = |attempt: &&Attempt| attempt.class.is_some_and(|class| class != FailureClass::Suspended);
    let row = attempts.iter().rev().take_while(failed).take_while(|attempt| !ran_long(attempt)).count();
    u32::try_from(row.max(1)).unwrap_or(u32::MAX)
}

/// The pause after this many failures in a row: 10 s, doubled with each one, at most 5 min.
pub fn pause(in_a_row: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.pow(in_a_row.clamp(1, 10) - 1)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spec(retries: i32, rules: &serde_json::Value) -> TrainingRunSpec {
        serde_json::from_value(json!({
            "dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}, "maxRetries": retries,
            "retryRules": rules
        }))
        .expect("a spec")
    }

    fn after(spec: &TrainingRunSpec, classes: &[FailureClass]) -> Verdict {
        let mut status = TrainingRunStatus::default();
        for (number, class) in (1..).zip(classes) {
            count(&mut status.failures, *class);
            let time = Time(Timestamp::from_second(number * 1000).expect("in range"));
            status.attempts.push(
                serde_json::from_value(json!({"number": number, "endTime": time, "class": class})).expect("an attempt"),
            );
        }
        verdict(spec, &status, status.attempts.last().expect("one"))
    }

    fn is_retried(spec: &TrainingRunSpec, classes: &[FailureClass]) -> bool {
        matches!(after(spec, classes), Verdict::Retry(_))
    }

    #[test]
    fn the_pause_doubles_up_to_five_minutes() {
        let seconds: Vec<u64> = (1..=7).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_class_that_would_come_again_ends_the_run_unless_a_rule_says_otherwise() {
        use FailureClass::{Diverged, ImagePull, Unschedulable, VolumeMissing};
        for class in [Diverged, ImagePull, Unschedulable, VolumeMissing] {
            assert!(!is_retried(&spec(3, &json!([])), &[class]), "{class:?}");
            assert!(is_retried(&spec(3, &json!([{"class": class, "action": "Retry"}])), &[class]), "{class:?}");
        }
    }

    #[test]
    fn a_rule_can_end_the_run_at_the_first_failure_of_a_class() {
        let spec = spec(3, &json!([{"class": "OOMKilled", "action": "Fail"}]));
        assert_eq!(
            after(&spec, &[FailureClass::OOMKilled]),
            Verdict::Fail("; a retry rule says that it is not retried")
        );
        assert!(is_retried(&spec, &[FailureClass::AppError]));
    }

    #[test]
    fn a_class_with_a_limit_of_its_own_costs_nothing_of_the_others() {
        use FailureClass::{AppError, OOMKilled};
        let spec = spec(1, &json!([{"class": "OOMKilled", "action": "Retry", "maxRetries": 2}]));
        assert!(is_retried(&spec, &[OOMKilled, OOMKilled]));
        assert!(is_retried(&spec, &[OOMKilled, OOMKilled, AppError]));
        assert!(!is_retried(&spec, &[OOMKilled, OOMKilled, OOMKilled]));
        assert!(!is_retried(&spec, &[AppError, AppError]));
    }

    #[test]
    fn what_the_cluster_does_costs_nothing_and_still_has_an_end() {
        use FailureClass::{AppError, Evicted, NodeLost, Preempted};
        let spec = spec(1, &json!([]));
        assert!(is_retried(&spec, &[Evicted, Preempted, NodeLost, Evicted, AppError]));
        assert!(is_retried(&spec, &[Preempted; FREE_RETRIES as usize]));
        assert!(!is_retried(&spec, &[Preempted; FREE_RETRIES as usize + 1]));
    }

    #[test]
    fn an_attempt_that_ran_for_long_starts_the_pauses_anew() {
        let spec = spec(10, &json!([]));
        let mut status = TrainingRunStatus::default();
        for (number, start, end) in [(1, 0, 10), (2, 30, 40), (3, 100, 7300)] {
            count(&mut status.failures, FailureClass::AppError);
            let at = |second| Time(Timestamp::from_second(second).expect("in range"));
            let attempt = json!({"number": number, "startTime": at(start), "endTime": at(end), "class": "AppError"});
            status.attempts.push(serde_json::from_value(attempt).expect("an attempt"));
        }
        let last = status.attempts.last().expect("one");
        assert_eq!(verdict(&spec, &status, last), Verdict::Retry(Timestamp::from_second(7310).expect("in range")));
    }

    proptest! {
        /// Whatever the rules: a run comes to its end, and one more failure never turns a verdict from Fail to Retry.
        #[test]
        fn every_series_of_one_class_comes_to_an_end(index in 0..FailureClass::ALL.len(), retries in 0..100_i32) {
            let class = FailureClass::ALL[index];
            prop_assume!(class != FailureClass::Suspended);
            let spec = spec(retries, &json!([]));
            let ends: Vec<bool> = (1..=102_usize).map(|n| !is_retried(&spec, &vec![class; n])).collect();
            prop_assert!(ends[101], "{class:?} is tried for ever");
            prop_assert!(ends.windows(2).all(|pair| !pair[0] || pair[1]), "a budget grew");
        }
    }
}
