//! Trainers that mean no good, in pods on the cluster: each ends as its run says, the others train meanwhile, and the operator
//! lives on within its memory. What they answer byte by byte is in the operator's own tests.

use std::env;

use anneal_api::{
    failure::FailureClass,
    resources::{RunPhase, TrainingRun},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, phase, until_succeeded};

/// Seconds that a hostile trainer may run.
const ALLOWED: i64 = 45;
/// Memory that the operator may have had at its peak, in KiB: half of its limit.
const PEAK: u64 = 128 << 10;

/// Answers the operator, or leaves last words, as `MANNER` says.
const TRAINER: &str = r#"
import json, os, socket, sys, threading, time
manner = os.environ["MANNER"]
def last_words(text, code):
    with open("/dev/termination-log", "w") as file: file.write(text)
    sys.exit(code)
result = {"checkpoint": "models/x.pth", "sha256": "0" * 64, "bytes": 1, "classes": [], "seed": 0, "epochs": 1,
          "metrics": {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}, "dataset": {"digest": "", "images": 1, "skipped": 0}}
if manner == "shouts": last_words(json.dumps({"failure": {"class": "BadConfig", "message": "\x1b[2J\x07\r" + "é" * 1900}}, ensure_ascii=False), 78)
if manner == "pretends": last_words(json.dumps({"result": {**result, "classes": [""] * 1100}}, separators=(",", ":")), 0)
if manner == "climbs": last_words(json.dumps({"result": {**result, "checkpoint": "../../../etc/passwd"}}), 0)
if manner == "nests": last_words("[" * 4000, 78)
if manner == "overflows": last_words(json.dumps({"failure": {"class": "Diverged", "message": "", "step": -2**63, "checkpointStep": 2**63 - 1}}), 70)
progress = {"epoch": 1, "epochs": 2, "step": 3, "steps": 4, "lastUpdateTime": "2026-01-31T12:00:00Z"}
def answer(connection):
    connection.recv(4096)
    say = lambda text: connection.sendall(text if isinstance(text, bytes) else text.encode())
    ok = lambda body: say(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}")
    if manner == "floods":
        say("HTTP/1.1 200 OK\r\n\r\n")
        while True: say(b" " * 65536)
    if manner == "heads":
        say("HTTP/1.1 200 OK\r\n")
        while True: say("x: " + "x" * 4000 + "\r\n")
    if manner == "drips":
        for letter in "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + " " * 1000: say(letter); time.sleep(0.2)
    if manner == "redirects": say(f"HTTP/1.1 307 Elsewhere\r\nlocation: http://{socket.gethostbyname(socket.gethostname())}:9090/trap\r\ncontent-length: 0\r\n\r\n")
    if manner == "dates": ok(json.dumps({**progress, "lastUpdateTime": "-009999-01-02T01:59:59Z"}))
    if manner == "counts": ok(json.dumps({**progress, "step": -2**63, "epochs": -1}))
    time.sleep(600)
server = socket.create_server(("", 9090))
while True:
    connection, _ = server.accept()
    threading.Thread(target=lambda: answer(connection), daemon=True).start()
"#;

/// A run whose trainer behaves like this.
fn hostile(manner: &str) -> Result<Value> {
    let image =
        env::var("EXAMPLE_IMAGE").context("EXAMPLE_IMAGE is not set; run `make e2e`, which builds the image")?;
    let spec = json!({
        "maxRetries": 0,
        "activeDeadlineSeconds": ALLOWED,
        "podTemplate": {
            "image": image, "command": ["python3", "-c", TRAINER], "env": [{"name": "MANNER", "value": manner}],
            "terminationGracePeriodSeconds": 1,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}
        }
    });
    Ok(manifest::training_run(manner, spec))
}

/// Waits for the end of a run, and looks that nothing in what was recorded of it or told is too long, or moves a cursor.
async fn until_over(ns: &Namespace, manner: &str) -> Result<TrainingRun> {
    let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
    let run = ns.watch::<TrainingRun>(manner).until("it is over", PATIENCE, over).await?;
    let status = serde_json::to_value(&run.status)?;
    ensure!(status.to_string().len() < 16 << 10, "its status has {} bytes", status.to_string().len());
    for text in texts(&status) {
        ensure!(is_shown(text) && text.len() <= 4096, "the status of {manner} says {text:?}");
    }
    Ok(run)
}

/// All texts in a value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(all) => all.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn is_shown(text: &str) -> bool {
    text.chars().all(|letter| letter == '\n' || !letter.is_control())
}

#[tokio::test]
async fn trainers_that_mean_no_good_end_as_their_runs_say_and_disturb_nobody() -> Outcome {
    in_namespace(async |ns| {
        let restarts = ns.cluster.operator.restarts().await?;
        ns.apply(&manifest::claim("models")).await?;
        let listening = ["floods", "heads", "drips", "redirects", "dates", "counts"];
        for manner in listening.iter().chain(&["shouts", "pretends", "climbs", "nests", "overflows"]) {
            ns.apply(&hostile(manner)?).await?;
        }
        // While they are asked, another one trains to its end, and is heard.
        let trains = |run: &TrainingRun| phase(run) == Some(RunPhase::Running);
        ns.watch::<TrainingRun>("floods").until("the first one runs", PATIENCE, trains).await?;
        ns.apply(&manifest::training_run("cats", manifest::well_trained(1))).await?;
        let result = until_succeeded(&mut ns.watch("cats")).await?;
        ensure!(result.metrics.accuracy > 0.5, "{result:?}");

        for manner in listening {
            let run = until_over(ns, manner).await?;
            let status = run.status.context("no status")?;
            ensure!(status.attempts.len() == 1, "{manner}: {:?}", status.attempts);
            ensure!(status.attempts[0].class == Some(FailureClass::ActiveDeadline), "{manner}: {:?}", status.attempts);
            ensure!(status.progress.is_none(), "what {manner} answers was taken: {:?}", status.progress);
        }
        let class = async |manner: &str| -> Result<(Option<FailureClass>, TrainingRun)> {
            let run = until_over(ns, manner).await?;
            let attempts = run.status.as_ref().map(|status| status.attempts.as_slice()).unwrap_or_default();
            Ok((attempts.last().and_then(|attempt| attempt.class), run))
        };
        ensure!(class("shouts").await?.0 == Some(FailureClass::BadConfig), "what shouts said is not its class");
        ensure!(class("nests").await?.0 == Some(FailureClass::BadConfig), "the exit code of nests is not its class");
        ensure!(class("overflows").await?.0 == Some(FailureClass::Diverged), "what overflows said is not its class");
        for manner in ["pretends", "climbs"] {
            let (_, run) = class(manner).await?;
            let status = run.status.context("no status")?;
            ensure!(status.result.is_none(), "the result of {manner} was taken: {:?}", status.result);
        }

        for event in ns.list::<Event>("").await? {
            let note = event.note.unwrap_or_default();
            ensure!(is_shown(&note) && note.len() <= 1024, "an Event says {note:?}");
        }
        ensure!(ns.cluster.operator.restarts().await? == restarts, "the operator was restarted");
        match ns.cluster.operator.peak_memory().await? {
            Some(peak) => {
                println!("the operator had {peak} KiB at its peak");
                ensure!(peak <= PEAK, "the operator had {peak} KiB at its peak");
            }
            None => eprintln!("the operator runs on another machine; its memory is not looked at"),
        }
        Ok(())
    })
    .await
}
