//! The operator is killed again and again while runs of every kind are under way.
//! `make soak` has the long form: `ANNEAL_CRASHES=100 ANNEAL_RUNS=20`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anneal_api::{
    failure::FailureClass::{self, ActiveDeadline, AppError, BadConfig, Evicted, NodeLost, OOMKilled, Suspended},
    names::label,
    resources::{RunPhase, TrainingRun},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use futures::future::{try_join, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::EvictParams};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::scenario::{GENERATED, phase};

/// Seconds for what waits for an operator that is dead half of the time.
const PATIENCE: u64 = 400;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What is done to a run while it trains.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Nothing,
    Eviction,
    Suspension,
}

/// A run, and how it is to end.
struct Part {
    name: String,
    spec: Value,
    disturbance: Disturbance,
    phase: RunPhase,
    /// For each attempt how it may end; nothing where it succeeds.
    attempts: Vec<&'static [FailureClass]>,
}

/// The runs of the campaign, one kind after the other.
fn part(index: u64, server_image: &str) -> Part {
    let long = |epochs: i32, more: Value| {
        let mut spec = manifest::well_trained(1);
        manifest::merge(&mut spec, json!({"hyperparameters": {"epochs": epochs}, "maxRetries": 0}));
        manifest::merge(&mut spec, more);
        spec
    };
    let memory = json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "2", "memory": "48Mi"}});
    let broken = json!({"image": server_image, "args": ["predict", "--url", "http://127.0.0.1:1", "/nothing.jpg"]});
    let missing = json!(["train", "--config", "/etc/anneal/missing.yaml"]);
    let nothing = Disturbance::Nothing;
    let (spec, disturbance, attempts): (Value, Disturbance, Vec<&'static [FailureClass]>) = match index % 7 {
        0 => (json!({"maxRetries": 0}), nothing, vec![&[]]),
        1 => (json!({"podTemplate": broken, "maxRetries": 2}), nothing, vec![&[AppError]; 3]),
        // Whoever was away when the pod went cannot tell an eviction from another loss; neither costs a retry.
        2 => (long(12, json!({})), Disturbance::Eviction, vec![&[Evicted, NodeLost], &[]]),
        3 => (json!({"podTemplate": {"resources": memory}, "maxRetries": 1}), nothing, vec![&[OOMKilled]; 2]),
        4 => (
            long(1000, json!({"activeDeadlineSeconds": 45})),
            Disturbance::Suspension,
            vec![&[Suspended], &[ActiveDeadline]],
        ),
        5 => (json!({"podTemplate": {"args": missing}, "maxRetries": 2}), nothing, vec![&[BadConfig]]),
        _ => (long(1000, json!({"activeDeadlineSeconds": 20})), nothing, vec![&[ActiveDeadline]]),
    };
    let phase =
        if attempts.last().is_some_and(|last| last.is_empty()) { RunPhase::Succeeded } else { RunPhase::Failed };
    Part { name: format!("run-{index}"), spec, disturbance, phase, attempts }
}

impl Part {
    /// Lives through the run, from its manifest to its end.
    async fn play(self, ns: &Namespace) -> Result<usize> {
        let name = &self.name;
        ns.apply(&manifest::training_run(name, self.spec.clone())).await?;
        let mut run = ns.watch::<TrainingRun>(name);
        match self.disturbance {
            Disturbance::Nothing => {}
            Disturbance::Eviction => {
                let pod = until_running(ns, name).await?;
                until_heard(ns, &pod).await?;
                ns.api::<Pod>().evict(&pod, &EvictParams::default()).await?;
            }
            Disturbance::Suspension => {
                let pod = until_running(ns, name).await?;
                until_heard(ns, &pod).await?;
                self.suspend(ns, true).await?;
                let suspended = |run: &TrainingRun| phase(run) == Some(RunPhase::Suspended);
                run.until("it is suspended", PATIENCE, suspended).await?;
                self.suspend(ns, false).await?;
            }
        }
        let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
        let run = run.until("it is over", PATIENCE, over).await?;
        ensure!(phase(&run) == Some(self.phase), "{name} ended as {:?}", run.status);
        let recorded = run.status.context("no status")?.attempts;
        let as_expected = recorded.len() == self.attempts.len()
            && recorded.iter().zip(&self.attempts).zip(1..).all(|((attempt, classes), number)| {
                let class = attempt.class.map_or(classes.is_empty(), |class| classes.contains(&class));
                class && attempt.number == number
            });
        ensure!(as_expected, "{name} was to have the attempts {:?} and has {recorded:#?}", self.attempts);
        Ok(self.attempts.len())
    }

    async fn suspend(&self, ns: &Namespace, suspend: bool) -> Result<()> {
        let patch = json!({"spec": {"suspend": suspend}}).to_string();
        ns.kubectl(&["patch", "trainingrun", &self.name, "--type=merge", "--patch", &patch]).await?.ok().map(|_| ())
    }
}

/// Waits until a pod of the run trains, whoever leads meanwhile, and returns its name.
async fn until_running(ns: &Namespace, run: &str) -> Result<String> {
    let trains = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    let labels = format!("{}={run}", label::RUN);
    let pods = ns
        .until_all::<Pod>(&labels, &format!("{run} has a pod that runs"), PATIENCE, |all| all.iter().any(trains))
        .await?;
    pods.iter().find(|pod| trains(pod)).map(kube::ResourceExt::name_any).context("no pod runs")
}

/// Waits until the trainer would hear SIGTERM. The first process of a container does not get a signal that it has no handler
/// for, so one that comes while the program is still being loaded is lost, and a short training ends before its grace does.
async fn until_heard(ns: &Namespace, pod: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(PATIENCE);
    loop {
        let said = ns.kubectl(&["logs", pod]).await?.ok()?.out;
        if said.contains("progress is answered") {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the trainer in {pod} says nothing but {said:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Kills whoever leads at a random moment: by turns its process, as a fault of its own would, and its pod.
async fn crash(ns: &Namespace, number: u64) -> Result<()> {
    let operator = &ns.cluster.operator;
    // The clock's last digits are as good as a die.
    let moment = Timestamp::now().subsec_nanosecond().unsigned_abs() % 3000;
    tokio::time::sleep(Duration::from_millis(u64::from(moment))).await;
    let since = Timestamp::now();
    // The kubelet would make a process that is killed again and again wait longer and longer.
    if number.is_multiple_of(2) {
        operator.crash().await?;
    } else {
        operator.delete_leader().await?;
    }
    operator.until_led_again(since).await
}

#[tokio::test]
async fn however_often_the_operator_dies_each_run_ends_as_it_should() -> Outcome {
    in_namespace(async |ns| {
        let (crashes, runs) = (number("ANNEAL_CRASHES", 6), number("ANNEAL_RUNS", 7));
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        let (tell, past) = watch::channel(0);
        let crashing = async {
            for number in 1..=crashes {
                crash(ns, number).await?;
                eprintln!("crash {number} of {crashes}");
                tell.send_replace(number);
            }
            Ok(())
        };
        let playing = (0..runs).map(|index| {
            let mut past = past.clone();
            async move {
                // Spread over the campaign, so that each crash hits runs that are under way.
                past.wait_for(|done| *done >= index * crashes / runs).await?;
                part(index, &ns.cluster.operator.server_image).play(ns).await
            }
        });
        let ((), attempts) = try_join(crashing, try_join_all(playing)).await?;

        let mut made = BTreeMap::<String, usize>::new();
        for job in jobs.all() {
            *made.entry(job.name_any()).or_default() += 1;
        }
        ensure!(made.values().all(|times| *times == 1), "a Job was made twice: {made:?}");
        ensure!(made.len() == attempts.iter().sum::<usize>(), "each attempt has one Job: {made:?}");
        Ok(())
    })
    .await
}
