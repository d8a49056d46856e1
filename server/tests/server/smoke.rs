//! The smoke test against real servers.

use std::{fs, path::Path};

use anneal_api::{
    smoke::{Probability, SmokeCase, SmokeConfig, SmokeReport, Verdict},
    termination::TerminationMessage,
};
use tempfile::TempDir;

use crate::process::{Server, binary, dogs, finish, picture_file};

const REVISION: &str = "cats-2";

fn config(targets: &[String]) -> SmokeConfig {
    SmokeConfig {
        revision: REVISION.to_owned(),
        targets: targets.to_vec(),
        model: Some("cats".to_owned()),
        cases: Vec::new(),
        max_p95_milliseconds: None,
        timeout_seconds: 60,
    }
}

fn case(image: &Path, expected_class: &str) -> SmokeCase {
    let image = image.to_str().expect("text").to_owned();
    SmokeCase {
        name: "rex".to_owned(),
        image: Some(image),
        tensors: None,
        expected_class: Some(expected_class.to_owned()),
        min_probability: Some(0.5),
        probability: None,
    }
}

fn smoke(config: &SmokeConfig) -> (Option<i32>, SmokeReport, String) {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("smoke.json");
    fs::write(&path, serde_json::to_string(config).expect("JSON")).expect("a file");
    let mut command = binary();
    command.args(["smoke", "--config"]).arg(&path);
    let (output, message) = finish(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match message {
        Some(TerminationMessage::Smoke(report)) => (output.status.code(), report, text),
        other => panic!("{other:?} after {output:?}"),
    }
}

fn server() -> Server {
    Server::ready(dogs(), |command| {
        command.env("ANNEAL_REVISION", REVISION);
    })
}

#[test]
fn servers_that_say_what_is_expected_pass() {
    let image = picture_file();
    let servers = [server(), server()];
    let targets = servers.each_ref().map(Server::url);
    let config =
        SmokeConfig { cases: vec![case(image.path(), "dog")], max_p95_milliseconds: Some(60_000), ..config(&targets) };
    let (code, report, text) = smoke(&config);
    assert_eq!((code, report.verdict, report.failed), (Some(0), Verdict::Passed, 0), "{text}");
    assert_eq!(report.passed, 2 * 5 + 1, "{text}");
    assert!(report.p95_milliseconds.is_some_and(|p95| p95 > 0.0), "{text}");
    for word in ["TARGET", "PROBABILITY", "RESULT", "rex", "dog >= 0.5", "made-up image", "ImprovedCNN", &targets[1]] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn a_wrong_class_fails() {
    let image = picture_file();
    let server = server();
    let (code, report, text) =
        smoke(&SmokeConfig { cases: vec![case(image.path(), "cat")], ..config(&[server.url()]) });
    assert_eq!((code, report.verdict, report.failed), (Some(1), Verdict::Failed, 1), "{text}");
    assert!(report.message.contains(r#"the prediction is "dog" instead of "cat""#), "{}", report.message);
}

#[test]
fn tensors_and_golden_answers_are_asked_for() {
    let server = Server::ready(dogs(), |command| {
        command.env("ANNEAL_REVISION", REVISION).env("MODEL_NAME", "cats");
    });
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("grey.json");
    let grey = serde_json::json!({"inputs": [
        {"name": "image", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": vec![100; 2 * 32 * 32 * 3]}
    ]});
    fs::write(&path, grey.to_string()).expect("a file");
    let asked = |expected: &str, value: f64| SmokeCase {
        image: None,
        tensors: Some(path.to_str().expect("text").to_owned()),
        min_probability: None,
        probability: Some(Probability { value, tolerance: 0.1 }),
        ..case(&path, expected)
    };
    let (code, report, text) = smoke(&SmokeConfig { cases: vec![asked("dog", 1.0)], ..config(&[server.url()]) });
    assert_eq!((code, report.verdict), (Some(0), Verdict::Passed), "{text}");
    let (_, report, text) = smoke(&SmokeConfig { cases: vec![asked("cat", 1.0)], ..config(&[server.url()]) });
    assert!(report.message.contains(r#"the prediction is "dog" instead of "cat""#), "{text}");
    let (_, report, text) = smoke(&SmokeConfig { cases: vec![asked("dog", 0.5)], ..config(&[server.url()]) });
    assert!(report.verdict == Verdict::Failed && report.message.contains("not 0.5 ± 0.1"), "{text}");
}

#[test]
fn slow_answers_fail() {
    let server = server();
    let (code, report, text) = smoke(&SmokeConfig { max_p95_milliseconds: Some(0), ..config(&[server.url()]) });
    assert_eq!((code, report.verdict), (Some(1), Verdict::Failed), "{text}");
    assert!(report.message.contains("p95"), "{}", report.message);
}

#[test]
fn a_good_server_of_another_revision_fails() {
    let server = Server::ready(dogs(), |command| {
        command.env("ANNEAL_REVISION", "cats-1");
    });
    let (code, report, text) = smoke(&SmokeConfig { timeout_seconds: 1, ..config(&[server.url()]) });
    assert_eq!((code, report.verdict), (Some(1), Verdict::Failed), "{text}");
    assert!(report.message.contains("revision cats-1 answered instead of cats-2"), "{}", report.message);
}

#[test]
fn what_cannot_be_asked_is_inconclusive() {
    // Nothing listens on the discard port of a test machine.
    let (code, report, text) = smoke(&SmokeConfig { timeout_seconds: 1, ..config(&["http://127.0.0.1:9".to_owned()]) });
    assert_eq!((code, report.verdict, report.passed), (Some(2), Verdict::Inconclusive, 0), "{text}");
    assert!(report.message.contains("http://127.0.0.1:9/readyz gave no answer"), "{}", report.message);

    let server = server();
    let missing = Path::new("/nowhere/missing.png");
    let (code, report, text) = smoke(&SmokeConfig { cases: vec![case(missing, "dog")], ..config(&[server.url()]) });
    assert_eq!((code, report.verdict), (Some(2), Verdict::Inconclusive), "{text}");
    assert!(report.message.contains("missing.png cannot be read"), "{}", report.message);
}

#[test]
fn a_configuration_that_cannot_be_read_is_a_bad_configuration() {
    let mut command = binary();
    command.args(["smoke", "--config", "/nowhere/smoke.json"]);
    let (output, message) = finish(command);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        matches!(message, Some(TerminationMessage::Failure(failure)) if failure.message.contains("/nowhere/smoke.json"))
    );
}
