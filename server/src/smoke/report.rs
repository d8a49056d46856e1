//! From checks to a verdict, its report and its table.

use anneal_api::{
    count,
    smoke::{SmokeConfig, SmokeReport, Verdict},
    termination::cut,
};

use super::{
    ask::Asked,
    check::{Check, Outcome},
};
use crate::{percentile::percentile, table};

/// Longest report message in bytes.
const MAX_MESSAGE: usize = 2048;

/// The verdict on what was asked, with the check on the time of all answers added.
pub(super) fn conclude(config: &SmokeConfig, asked: Asked) -> (Vec<Check>, SmokeReport) {
    let Asked { mut checks, mut times } = asked;
    let p95 = percentile(&mut times, 0.95);
    checks.extend(config.max_p95_milliseconds.zip(p95).map(|(most, p95)| time_check(f64::from(most), p95)));
    let verdict = verdict(&checks);
    let count = |outcome: fn(&Outcome) -> bool| {
        i32::try_from(checks.iter().filter(|check| outcome(&check.outcome)).count()).unwrap_or(i32::MAX)
    };
    let report = SmokeReport {
        verdict,
        passed: count(|outcome| *outcome == Outcome::Passed),
        failed: count(|outcome| matches!(outcome, Outcome::Failed(_))),
        p95_milliseconds: p95,
        message: cut(&message(verdict, &checks, config.targets.len()), MAX_MESSAGE),
    };
    (checks, report)
}

/// One wrong answer is a failure. Short of that, an answer that could not be had leaves the question open.
fn verdict(checks: &[Check]) -> Verdict {
    if checks.iter().any(|check| matches!(check.outcome, Outcome::Failed(_))) {
        Verdict::Failed
    } else if checks.is_empty() || checks.iter().any(|check| matches!(check.outcome, Outcome::Unknown(_))) {
        Verdict::Inconclusive
    } else {
        Verdict::Passed
    }
}

fn time_check(most: f64, p95: f64) -> Check {
    let check = Check {
        target: "all".to_owned(),
        case: "p95 of predictions".to_owned(),
        expected: format!("<= {most:.0} ms"),
        got: format!("{p95:.1} ms"),
        probability: None,
        milliseconds: Some(p95),
        outcome: Outcome::Passed,
    };
    if p95 <= most {
        return check;
    }
    let why = format!(
        "95 % of the predictions took up to {p95:.1} ms, more than {most:.0} ms; give the pods more CPU or allow more time"
    );
    Check { outcome: Outcome::Failed(why), ..check }
}

fn message(verdict: Verdict, checks: &[Check], targets: usize) -> String {
    let sentences = |wanted: fn(&Outcome) -> Option<&str>| {
        let lines = checks
            .iter()
            .filter_map(|check| Some(format!("{} {}: {}", check.target, check.case, wanted(&check.outcome)?)));
        lines.collect::<Vec<_>>().join("; ")
    };
    match verdict {
        Verdict::Passed => {
            format!("{} passed on {}", count::of(checks.len(), "check"), count::of(targets, "pod"))
        }
        Verdict::Failed => sentences(|outcome| if let Outcome::Failed(why) = outcome { Some(why) } else { None }),
        Verdict::Inconclusive if checks.is_empty() => {
            "there is no target to ask; give at least one in `targets`".to_owned()
        }
        Verdict::Inconclusive => {
            sentences(|outcome| if let Outcome::Unknown(why) = outcome { Some(why) } else { None })
        }
    }
}

/// The table of all checks, a sentence for each that did not pass, and the verdict.
pub(super) fn text(checks: &[Check], report: &SmokeReport) -> String {
    let rows: Vec<[String; 7]> = checks.iter().map(row).collect();
    let table = table::render(["TARGET", "CASE", "EXPECTED", "GOT", "PROBABILITY", "MS", "RESULT"], &rows);
    let p95 = report.p95_milliseconds.map_or(String::new(), |p95| format!(", p95 {p95:.1} ms"));
    let why = if report.verdict == Verdict::Passed {
        String::new()
    } else {
        format!("\n{}", report.message.replace("; http", "\nhttp"))
    };
    format!("{table}\n\n{}: {} passed, {} failed{p95}{why}\n", report.verdict.as_str(), report.passed, report.failed)
}

fn row(check: &Check) -> [String; 7] {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    [
        check.target.clone(),
        check.case.clone(),
        check.expected.clone(),
        check.got.clone(),
        number(check.probability, 4),
        number(check.milliseconds, 1),
        check.outcome.word().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: Outcome) -> Check {
        Check {
            outcome,
            got: "cat".to_owned(),
            ..Check::unknown("http://10.0.0.7:8000", "tabby", "cat", String::new())
        }
    }

    fn config(max_p95_milliseconds: Option<i32>) -> SmokeConfig {
        let targets = vec!["http://10.0.0.7:8000".to_owned()];
        SmokeConfig {
            revision: "r".to_owned(),
            model: None,
            targets,
            cases: vec![],
            max_p95_milliseconds,
            timeout_seconds: 5,
        }
    }

    fn conclude_on(outcomes: Vec<Outcome>, max_p95: Option<i32>) -> SmokeReport {
        let asked = Asked { checks: outcomes.into_iter().map(check).collect(), times: vec![10.0, 20.0, 30.0] };
        conclude(&config(max_p95), asked).1
    }

    #[test]
    fn a_wrong_answer_fails_even_where_others_could_not_be_had() {
        let report = conclude_on(
            vec![Outcome::Passed, Outcome::Unknown("gone".to_owned()), Outcome::Failed("is a dog".to_owned())],
            None,
        );
        assert_eq!((report.verdict, report.passed, report.failed), (Verdict::Failed, 1, 1));
        assert_eq!(report.message, "http://10.0.0.7:8000 tabby: is a dog");
    }

    #[test]
    fn what_could_not_be_asked_is_not_passed() {
        let report = conclude_on(vec![Outcome::Passed, Outcome::Unknown("gone".to_owned())], None);
        assert_eq!(report.verdict, Verdict::Inconclusive);
        assert!(report.message.contains("gone"));
        assert_eq!(conclude_on(vec![], None).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn slow_answers_fail_the_test() {
        assert_eq!(conclude_on(vec![Outcome::Passed], Some(30)).verdict, Verdict::Passed);
        let report = conclude_on(vec![Outcome::Passed], Some(29));
        assert_eq!((report.verdict, report.failed), (Verdict::Failed, 1));
        assert!(report.message.contains("30.0 ms, more than 29 ms"), "{}", report.message);
    }

    #[test]
    fn the_table_is_followed_by_the_verdict_and_the_reasons() {
        let (checks, report) = conclude(
            &config(None),
            Asked { checks: vec![check(Outcome::Failed("is a dog".to_owned()))], times: vec![] },
        );
        let text = text(&checks, &report);
        assert!(text.starts_with("TARGET                CASE   EXPECTED  GOT  PROBABILITY  MS  RESULT\n"), "{text}");
        assert!(text.ends_with("\n\nFailed: 0 passed, 1 failed\nhttp://10.0.0.7:8000 tabby: is a dog\n"), "{text}");
    }
}
