//! The operator is killed again and again while runs of every kind are under way.
//! `ANNEAL_CRASHES=100 ANNEAL_RUNS=20` is the long form.

use std::{collections::BTreeSet, time::Duration};

use anneal_api::resources::{RunPhase, TrainingRun};
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use crate::scenario::{GENERATED, PATIENCE, phase};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How a run is to end: its phase, and how many attempts it takes.
struct Expected {
    name: String,
    phase: RunPhase,
    attempts: usize,
}

/// Runs that succeed, that fail and are tried again, and that fail at once, in turns.
fn run(index: u64, server_image: &str) -> (Expected, Value) {
    let (phase, attempts, spec) = match index % 3 {
        0 => (RunPhase::Succeeded, 1, json!({"maxRetries": 0})),
        1 => {
            let broken =
                json!({"image": server_image, "args": ["predict", "--url", "http://127.0.0.1:1", "/nothing.jpg"]});
            (RunPhase::Failed, 3, json!({"podTemplate": broken, "maxRetries": 2}))
        }
        _ => {
            let args = json!(["train", "--config", "/etc/anneal/missing.yaml"]);
            (RunPhase::Failed, 1, json!({"podTemplate": {"args": args}, "maxRetries": 2}))
        }
    };
    let name = format!("run-{index}");
    let manifest = manifest::training_run(&name, spec);
    (Expected { name, phase, attempts }, manifest)
}

#[tokio::test]
async fn however_often_the_operator_dies_each_run_ends_as_it_should() -> Outcome {
    in_namespace(async |ns| {
        let (crashes, runs) = (number("ANNEAL_CRASHES", 4), number("ANNEAL_RUNS", 3));
        let operator = &ns.cluster.operator;
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        let mut expected = Vec::new();
        for index in 0..runs {
            let (outcome, manifest) = run(index, &operator.server_image);
            ns.apply(&manifest).await?;
            expected.push(outcome);
        }
        for crash in 0..crashes {
            // At any moment: the clock's last digits are as good as a die.
            let moment = Timestamp::now().subsec_nanosecond().unsigned_abs() % 3000;
            tokio::time::sleep(Duration::from_millis(u64::from(moment))).await;
            let since = Timestamp::now();
            operator.delete_leader().await?;
            operator.until_led_again(since).await?;
            eprintln!("crash {} of {crashes}", crash + 1);
        }
        for Expected { name, phase: wanted, attempts } in expected {
            let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
            let run = ns.watch::<TrainingRun>(&name).until("it is over", PATIENCE * 2, over).await?;
            ensure!(phase(&run) == Some(wanted), "{name} ended as {:?}", run.status);
            let recorded = run.status.context("no status")?.attempts;
            let numbers: Vec<i32> = recorded.iter().map(|attempt| attempt.number).collect();
            ensure!(numbers == (1..).take(attempts).collect::<Vec<i32>>(), "{name} has the attempts {numbers:?}");
        }
        let made = jobs.names();
        let distinct: BTreeSet<&String> = made.iter().collect();
        ensure!(distinct.len() == made.len(), "a Job was made twice: {made:?}");
        Ok(())
    })
    .await
}
