//! From the start of the process to readiness, and every way in which it does not get there.

use std::{fs, path::Path, process::Command};

use anneal_api::{
    failure::{Failure, FailureClass},
    termination::TerminationMessage,
};
use anneal_model::{Checkpoint, Classifier, GoldenSet, preprocess::RgbImage};
use tempfile::TempDir;

use crate::{
    process::{Server, binary, checkpoint, dogs, eventually, finish, picture},
    wire::{get, predict},
};

fn refused(configure: impl FnOnce(&mut Command)) -> (Option<i32>, Failure) {
    let mut command = binary();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    configure(&mut command);
    let (output, message) = finish(command);
    match message {
        Some(TerminationMessage::Failure(failure)) => (output.status.code(), failure),
        other => panic!("{other:?} after {output:?}"),
    }
}

#[test]
fn a_missing_checkpoint_is_named() {
    let (code, failure) = refused(|command| {
        command.env("MODEL_PATH", "/nowhere/model.pth");
    });
    assert_eq!((code, failure.class), (Some(67), FailureClass::ModelNotFound));
    assert!(failure.message.contains("/nowhere/model.pth"), "{}", failure.message);
}

#[test]
fn another_file_than_the_declared_one_is_never_loaded() {
    let declared = "ab".repeat(32);
    let (code, failure) = refused(|command| {
        command.env("MODEL_PATH", dogs()).env("MODEL_SHA256", &declared);
    });
    assert_eq!((code, failure.class), (Some(68), FailureClass::DigestMismatch));
    let found = anneal_model::sha256_file(dogs()).expect("a digest").sha256;
    for part in [dogs().to_str().expect("text"), &declared, found.as_str()] {
        assert!(failure.message.contains(part), "{part} is not in {}", failure.message);
    }
    // The same file with its own digest is served.
    Server::ready(dogs(), |command| {
        command.env("MODEL_SHA256", found.as_str());
    });
}

#[test]
fn a_file_that_is_no_checkpoint_fails_to_load() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("model.pth");
    fs::write(&path, "not a checkpoint").expect("a file");
    let (code, failure) = refused(|command| {
        command.arg("--checkpoint").arg(&path);
    });
    assert_eq!((code, failure.class), (Some(69), FailureClass::LoadFailed));
}

#[test]
fn a_model_whose_outputs_are_no_numbers_never_becomes_ready() {
    let dir = TempDir::new().expect("a directory");
    let path = checkpoint(dir.path(), [f32::NAN, 0.0]);
    let (code, failure) = refused(|command| {
        command.arg("--checkpoint").arg(&path);
    });
    assert_eq!((code, failure.class), (Some(69), FailureClass::LoadFailed));
    assert!(failure.message.contains("not finite"), "{}", failure.message);
}

/// The checkpoint at `path` with the golden set of the one at `other`, beside it.
fn with_golden_set_of(path: &Path, other: &Path) -> std::path::PathBuf {
    let image =
        RgbImage::from_fn(32, 32, |x, y| [x * 7, y * 5, x * y].map(|v| u8::try_from(v % 256).expect("a byte")).into());
    let classifier = Classifier::load(other).expect("a classifier");
    let golden = GoldenSet::new(&classifier, vec![image]).expect("a golden set");
    let mut checkpoint = Checkpoint::load(path).expect("a checkpoint");
    checkpoint.extra.push(golden.into_entry().expect("tensors"));
    let target = path.with_extension("golden.pth");
    checkpoint.save(&target).expect("a file");
    target
}

#[test]
fn only_a_model_that_reproduces_its_golden_set_becomes_ready() {
    let dir = TempDir::new().expect("a directory");
    let [dogs, cats] = ["dogs", "cats"].map(|name| {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).expect("a directory");
        checkpoint(&dir, if name == "dogs" { [0.0, 2.0] } else { [2.0, 0.0] })
    });
    let server = Server::ready(&with_golden_set_of(&dogs, &dogs), |_| {});
    assert_eq!(server.ask(&get("/model/info")).json()["golden_set"], 1);

    let damaged = with_golden_set_of(&dogs, &cats);
    let (_, failure) = refused(|command| {
        command.env("MODEL_PATH", &damaged);
    });
    assert_eq!(failure.class, FailureClass::LoadFailed);
    assert!(failure.message.contains("golden set is not reproduced"), "{}", failure.message);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_bad_configuration() {
    for arguments in [&["--port", "x"][..], &[], &["serve", "--revision", "two\nlines", "--checkpoint", "m.pth"]] {
        let (code, failure) = refused_without_address(arguments);
        assert_eq!((code, failure), (Some(78), FailureClass::BadConfig), "{arguments:?}");
    }
}

fn refused_without_address(arguments: &[&str]) -> (Option<i32>, FailureClass) {
    let mut command = binary();
    command.args(arguments);
    match finish(command) {
        (output, Some(TerminationMessage::Failure(failure))) => (output.status.code(), failure.class),
        other => panic!("{other:?}"),
    }
}

/// Reading a named pipe blocks until somebody writes into it, so loading lasts as long as the test wants.
pub fn pipe(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("model.pth");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
    path
}

#[test]
fn a_server_that_loads_is_alive_but_not_ready() {
    let dir = TempDir::new().expect("a directory");
    let mut server = Server::start(&pipe(dir.path()), |command| {
        command.env("ANNEAL_REVISION", "cats-1");
    });
    assert_eq!(server.ask(&get("/livez")).status, 200);
    let ready = server.ask(&get("/readyz"));
    assert_eq!((ready.status, ready.header("x-anneal-revision")), (503, Some("cats-1")));
    assert_eq!(ready.json()["reason"], "the model is being loaded");
    let health = server.ask(&get("/health"));
    assert_eq!((health.status, &health.json()["status"]), (503, &"unhealthy".into()));
    let answer = server.ask(&predict("image/png", &picture()));
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(server.ask(&get("/model/info")).status, 503);

    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0), "a server that is told to stop while it loads has not failed");
}

#[test]
fn logs_are_json_and_probes_are_quiet() {
    let dir = TempDir::new().expect("a directory");
    let log = dir.path().join("log");
    let server = Server::ready(dogs(), |command| {
        command.env("LOG_LEVEL", "INFO").stderr(fs::File::create(&log).expect("a file"));
    });
    server.ask(&predict("image/png", &picture()));
    let line = eventually("the request is logged", || {
        let text = fs::read_to_string(&log).expect("a log");
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let requests: Vec<_> = lines.filter(|line| line["message"] == "request").collect();
        assert!(requests.iter().all(|line| line["path"] == "/predict"), "{text}");
        requests.into_iter().next()
    });
    assert_eq!((&line["status"], &line["method"]), (&200.into(), &"POST".into()));
    assert!(line["request_id"].is_string() && line["microseconds"].is_number(), "{line}");
}
