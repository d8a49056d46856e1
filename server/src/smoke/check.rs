//! One line of the smoke test: what was expected of a pod, what it said, and whether that is good enough.

use anneal_api::smoke::SmokeCase;

use crate::{
    client::{Answer, Predicted},
    prediction::unsound,
};

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// The pod gave a wrong answer; a sentence about it.
    Failed(String),
    /// No answer could be had; a sentence about why.
    Unknown(String),
}

impl Outcome {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What was expected of a target, and what came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Check {
    pub(super) target: String,
    pub(super) case: String,
    pub(super) expected: String,
    pub(super) got: String,
    pub(super) probability: Option<f64>,
    pub(super) milliseconds: Option<f64>,
    pub(super) outcome: Outcome,
}

impl Check {
    /// A check that nothing has been asked for yet.
    pub(super) fn unknown(target: &str, case: &str, expected: &str, why: String) -> Self {
        Self {
            target: target.to_owned(),
            case: case.to_owned(),
            expected: expected.to_owned(),
            got: "-".to_owned(),
            probability: None,
            milliseconds: None,
            outcome: Outcome::Unknown(why),
        }
    }

    /// The same check, judged.
    pub(super) fn judged(self, answer: &Answer, finding: Finding) -> Self {
        let outcome = finding.wrong.map_or(Outcome::Passed, Outcome::Failed);
        let milliseconds = Some(answer.took.as_secs_f64() * 1e3);
        Self { got: finding.got, probability: finding.probability, milliseconds, outcome, ..self }
    }
}

/// What an answer says, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Finding {
    got: String,
    probability: Option<f64>,
    wrong: Option<String>,
}

impl Finding {
    fn wrong(got: impl Into<String>, why: impl Into<String>) -> Self {
        Self { got: got.into(), probability: None, wrong: Some(why.into()) }
    }

    fn right(got: impl Into<String>) -> Self {
        Self { got: got.into(), ..Self::default() }
    }
}

/// Says whether another revision than the expected one answered, which proves nothing about the expected one.
pub(super) fn other_revision(answer: &Answer, expected: &str) -> Option<String> {
    match answer.revision.as_deref() {
        Some(revision) if revision == expected => None,
        Some(other) => Some(format!("revision {other} answered instead of {expected}")),
        None => Some(format!("the answer names no revision, expected is {expected}")),
    }
}

/// Judges an answer by its revision first, then by its content.
pub(super) fn judge(answer: &Answer, revision: &str, content: impl FnOnce(&Answer) -> Finding) -> Finding {
    match other_revision(answer, revision) {
        Some(why) => Finding::wrong(answer.revision.clone().unwrap_or_else(|| "no revision".to_owned()), why),
        None => content(answer),
    }
}

/// GET /health must say healthy.
pub(super) fn health(answer: &Answer) -> Finding {
    let status = string_field(answer, "status");
    match status.as_deref() {
        Some("healthy") if answer.status.is_success() => Finding::right("healthy"),
        _ => Finding::wrong(
            status.unwrap_or_else(|| answer.status.as_str().to_owned()),
            format!("/health is not healthy: {} ({})", answer.status, answer.detail()),
        ),
    }
}

/// GET /model/info must name the model's type.
pub(super) fn model_info(answer: &Answer) -> Finding {
    match string_field(answer, "model_type").filter(|name| !name.is_empty() && answer.status.is_success()) {
        Some(name) => Finding::right(name),
        None => Finding::wrong(
            answer.status.as_str(),
            format!("/model/info has no model_type: {} ({})", answer.status, answer.detail()),
        ),
    }
}

/// A prediction must be sound, and what the case expects.
pub(super) fn prediction(answer: &Answer, case: &SmokeCase) -> Finding {
    match answer.predicted() {
        Ok(predicted) => weighed(predicted, case),
        Err(why) => Finding::wrong(answer.status.as_str(), why),
    }
}

/// Each row of an inference must be sound, and what the case expects. The first one that is not is the one that counts.
pub(super) fn inference(answer: &Answer, case: &SmokeCase, classes: &[String]) -> Finding {
    let rows = match rows(answer, classes) {
        Ok(rows) => rows,
        Err(why) => return Finding::wrong(answer.status.as_str(), why),
    };
    let mut findings = rows.into_iter().map(|row| weighed(row, case));
    let none = || Finding::wrong("no row", "the output probabilities has no row; send at least one");
    let first = findings.next().unwrap_or_else(none);
    if first.wrong.is_some() { first } else { findings.find(|finding| finding.wrong.is_some()).unwrap_or(first) }
}

/// The names of the classes by a model's metadata; a server that tells of none gives none.
pub(super) fn classes(answer: &Answer) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let classes = json.get("classes").and_then(serde_json::Value::as_array).into_iter().flatten();
    classes.filter_map(|class| class.as_str().map(str::to_owned)).collect()
}

/// The rows of the output `probabilities`. Classes without a name are called by their number.
fn rows(answer: &Answer, classes: &[String]) -> Result<Vec<Predicted>, String> {
    if !answer.status.is_success() {
        return Err(format!("the answer is {} ({})", answer.status, answer.detail()));
    }
    let json: serde_json::Value =
        serde_json::from_slice(&answer.body).map_err(|error| format!("the answer is no JSON: {error}"))?;
    let outputs = json["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let output = outputs.iter().find(|output| output["name"] == "probabilities");
    let output =
        output.ok_or("the answer has no output probabilities; leave `outputs` out of the tensors, or name it")?;
    let data = output["data"].as_array().ok_or("the output probabilities has no data; do not ask for binary data")?;
    // What is no finite number is null in JSON.
    let numbers: Option<Vec<f64>> = data.iter().map(serde_json::Value::as_f64).collect();
    let numbers = numbers.ok_or("a probability is no finite number")?;
    let width = output["shape"].as_array().and_then(|shape| shape.last()?.as_u64()).unwrap_or_default();
    let width = usize::try_from(width).ok().filter(|width| *width > 0);
    let width = width.ok_or("the output probabilities has no shape [rows, classes]")?;
    Ok(numbers.chunks(width).map(|row| predicted(row, classes)).collect())
}

fn predicted(row: &[f64], classes: &[String]) -> Predicted {
    let name = |class: usize| classes.get(class).cloned().unwrap_or_else(|| class.to_string());
    let most = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    let (class, confidence) = most.map_or((0, 0.0), |(class, confidence)| (class, *confidence));
    let probabilities = row.iter().enumerate().map(|(class, probability)| (name(class), *probability)).collect();
    Predicted { prediction: name(class), confidence, probabilities }
}

fn weighed(predicted: Predicted, case: &SmokeCase) -> Finding {
    let judged_class = case.expected_class.as_ref().unwrap_or(&predicted.prediction);
    let probability = predicted.probabilities.get(judged_class).copied();
    let wrong = unsound(&predicted.prediction, predicted.confidence, &predicted.probabilities).or_else(|| {
        if *judged_class != predicted.prediction {
            return Some(format!("the prediction is {:?} instead of {judged_class:?}", predicted.prediction));
        }
        let given = probability.unwrap_or(0.0);
        if let Some(least) = case.min_probability.filter(|least| given < *least) {
            return Some(format!("the probability of {judged_class:?} is {given:.4}, less than {least}"));
        }
        let expected = case.probability.filter(|it| (given - it.value).abs() > it.tolerance)?;
        let (value, tolerance) = (expected.value, expected.tolerance);
        Some(format!("the probability of {judged_class:?} is {given:.4}, not {value} ± {tolerance}"))
    });
    Finding { got: predicted.prediction, probability, wrong }
}

/// What the case expects, for the table.
pub(super) fn expectation(case: &SmokeCase) -> String {
    let class = case.expected_class.as_deref();
    match (class, case.min_probability, case.probability) {
        (class, Some(least), _) => format!("{} >= {least}", class.unwrap_or("any")),
        (class, None, Some(it)) => format!("{} {} ± {}", class.unwrap_or("any"), it.value, it.tolerance),
        (Some(class), None, None) => class.to_owned(),
        (None, None, None) => "a sound answer".to_owned(),
    }
}

fn string_field(answer: &Answer, field: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    json.get(field)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anneal_api::smoke::Probability;
    use warp::http::StatusCode;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            revision: Some("r2".to_owned()),
            body: body.to_owned().into(),
            took: Duration::from_millis(5),
        }
    }

    fn case(expected_class: Option<&str>, min_probability: Option<f64>) -> SmokeCase {
        SmokeCase {
            name: "c".to_owned(),
            image: Some("c.png".to_owned()),
            tensors: None,
            expected_class: expected_class.map(str::to_owned),
            min_probability,
            probability: None,
        }
    }

    const CAT: &str = r#"{"prediction":"cat","confidence":0.8,"probabilities":{"cat":0.8,"dog":0.2}}"#;

    #[test]
    fn an_answer_of_another_revision_fails_whatever_it_says() {
        let finding = judge(&answer(200, r#"{"status":"healthy"}"#), "r3", health);
        assert_eq!(finding.wrong.as_deref(), Some("revision r2 answered instead of r3"));
        let anonymous = Answer { revision: None, ..answer(200, CAT) };
        assert!(other_revision(&anonymous, "r3").is_some_and(|why| why.contains("names no revision")));
        assert_eq!(judge(&answer(200, r#"{"status":"healthy"}"#), "r2", health).wrong, None);
    }

    #[test]
    fn health_and_model_info_must_say_so() {
        assert!(health(&answer(200, r#"{"status":"unhealthy"}"#)).wrong.is_some());
        assert!(health(&answer(503, r#"{"status":"healthy"}"#)).wrong.is_some());
        assert!(health(&answer(200, "ok")).wrong.is_some());
        assert_eq!(model_info(&answer(200, r#"{"model_type":"ImprovedCNN"}"#)), Finding::right("ImprovedCNN"));
        assert!(model_info(&answer(200, "{}")).wrong.is_some());
    }

    #[test]
    fn a_case_is_judged_by_class_and_probability() {
        let found = |case: SmokeCase| prediction(&answer(200, CAT), &case).wrong;
        assert_eq!(found(case(Some("cat"), Some(0.75))), None);
        assert_eq!(found(case(None, None)), None);
        assert_eq!(found(case(Some("dog"), None)).as_deref(), Some(r#"the prediction is "cat" instead of "dog""#));
        assert_eq!(
            found(case(None, Some(0.9))).as_deref(),
            Some(r#"the probability of "cat" is 0.8000, less than 0.9"#)
        );
    }

    #[test]
    fn a_golden_answer_may_be_off_by_its_tolerance() {
        let golden = |value, tolerance| SmokeCase {
            probability: Some(Probability { value, tolerance }),
            ..case(Some("cat"), None)
        };
        let found = |case: SmokeCase| prediction(&answer(200, CAT), &case).wrong;
        assert_eq!(found(golden(0.81, 0.02)), None);
        assert_eq!(
            found(golden(0.83, 0.02)).as_deref(),
            Some(r#"the probability of "cat" is 0.8000, not 0.83 ± 0.02"#)
        );
        assert_eq!(expectation(&golden(0.83, 0.02)), "cat 0.83 ± 0.02");
    }

    #[test]
    fn every_row_of_an_inference_is_judged() {
        let classes = ["cat".to_owned(), "dog".to_owned()];
        let found = |data: &str, expected: Option<&str>| {
            let body = format!(r#"{{"outputs":[{{"name":"probabilities","shape":[2,2],"data":{data}}}]}}"#);
            inference(&answer(200, &body), &case(expected, None), &classes).wrong
        };
        assert_eq!(found("[0.9,0.1,0.8,0.2]", Some("cat")), None);
        assert_eq!(
            found("[0.9,0.1,0.3,0.7]", Some("cat")).as_deref(),
            Some(r#"the prediction is "dog" instead of "cat""#)
        );
        assert!(found("[0.9,0.1,null,0.7]", None).is_some_and(|why| why.contains("no finite number")));
        assert!(found("[0.9,0.1,0.9,0.7]", None).is_some_and(|why| why.contains("sum to")));
        assert!(found("[]", None).is_some_and(|why| why.contains("no row")));
        let refused = answer(400, r#"{"error":"no input"}"#);
        assert!(inference(&refused, &case(None, None), &classes).wrong.is_some_and(|why| why.contains("no input")));
        assert_eq!(super::classes(&answer(200, r#"{"classes":["cat","dog"]}"#)), classes);
    }

    #[test]
    fn an_answer_without_finite_numbers_fails() {
        let nan = answer(200, r#"{"prediction":"cat","confidence":null,"probabilities":{"cat":null}}"#);
        assert!(prediction(&nan, &case(None, None)).wrong.is_some_and(|why| why.contains("finite")));
        let error = prediction(&answer(500, r#"{"detail":"broken"}"#), &case(None, None));
        assert!(error.wrong.is_some_and(|why| why.contains("500") && why.contains("broken")));
    }
}
