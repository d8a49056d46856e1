//! Rollout after rollout under constant load from inside the cluster: good ones, ones that the gate must stop, ones that
//! fail in the soak. Not one request is lost, and nothing answers that has not passed.
//!
//! `ANNEAL_ROLLOUTS` says how many; `make bench-rollout` makes a hundred.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment},
};
use anneal_tests::{Context as _, History, Namespace, Outcome, Result, Watch, ensure, in_namespace, manifest};
use jiff::Timestamp;
use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, is_observed, rollout, stable_revision, trained, until_stable};

/// Rollouts where `ANNEAL_ROLLOUTS` says nothing: each kind is among them.
const ROLLOUTS: usize = 10;
/// Requests a second of each of the two callers: together about half of what two pods on two cores give beside the
/// cluster itself.
const RATE: &str = "10";
/// Pods of the revision that serves.
const PODS: i64 = 2;

/// What becomes of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    /// A pod gives a wrong answer when it is asked.
    FailsGate,
    /// The answers are right, and come too late under traffic.
    FailsSoak,
}

impl Kind {
    fn of(round: usize) -> Self {
        match round % 5 {
            2 => Self::FailsGate,
            4 => Self::FailsSoak,
            _ => Self::Good,
        }
    }

    fn gate(self) -> Value {
        let class = if self == Self::FailsGate { json!("unicorn") } else { Value::Null };
        let mut case = manifest::smoke_case("smoke", "cat.png", "");
        case["expectedClass"] = class;
        let p95 = if self == Self::FailsSoak { 1 } else { 60_000 };
        json!({"soakSeconds": 5, "smokeTest": {"cases": [case]}, "soakTest": {"maxP95Milliseconds": p95}})
    }
}

fn deployment(round: usize, kind: Kind) -> Value {
    // Another annotation makes another revision, whichever the model is.
    let run = if round.is_multiple_of(2) { "first" } else { "second" };
    let spec = json!({
        "model": {"trainingRunRef": {"name": run}},
        "gate": kind.gate(),
        "replicas": null,
        "autoscaling": {
            "minReplicas": PODS, "maxReplicas": 4,
            "targetCPUUtilizationPercentage": 1000, "targetMemoryUtilizationPercentage": 1000
        },
        "podTemplate": {"annotations": {"example.com/round": round.to_string()}}
    });
    manifest::model_deployment("cats", spec)
}

/// What the callers told, line by line.
#[derive(Debug, Default)]
struct Told {
    answers: u64,
    failures: u64,
    reasons: BTreeMap<String, usize>,
    max_gap_seconds: f64,
    /// When each revision began to answer, after another one.
    begun: Vec<(Timestamp, String)>,
}

impl Told {
    fn read(log: &str) -> Result<Self> {
        let mut told = Self::default();
        for line in log.lines().filter(|line| line.starts_with('{')) {
            let line: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            match line["event"].as_str().unwrap_or_default() {
                "failed" => *told.reasons.entry(line["why"].as_str().unwrap_or_default().to_owned()).or_default() += 1,
                "revision" => {
                    let at = line["at"].as_str().context("a line without its time")?.parse()?;
                    told.begun.push((at, line["revision"].as_str().unwrap_or_default().to_owned()));
                }
                "count" => {
                    told.answers = line["answers"].as_u64().unwrap_or_default();
                    told.failures = line["failures"].as_u64().unwrap_or_default();
                    told.max_gap_seconds = line["maxGapSeconds"].as_f64().unwrap_or(f64::INFINITY);
                }
                _ => {}
            }
        }
        told.failures = told.failures.max(told.reasons.values().sum::<usize>() as u64);
        Ok(told)
    }

    /// Time from the switch of the Service until the revision first answered.
    fn switch_seconds(&self, revision: &str, switched: Timestamp) -> Option<f64> {
        let window = switched.checked_sub(jiff::SignedDuration::from_secs(2)).ok()?;
        let began = self.begun.iter().find(|(at, name)| name == revision && *at >= window)?.0;
        Some(began.duration_since(switched).as_secs_f64().max(0.0))
    }
}

/// The rollouts as the resource tells them.
struct Rollouts {
    cats: Watch<ModelDeployment>,
    service: Watch<Service>,
    /// Revisions that have passed.
    passed: BTreeSet<String>,
    /// When the Service was seen to lead to a revision.
    switches: Vec<(Timestamp, String)>,
    /// Seconds in each phase, one entry a visit.
    phases: BTreeMap<&'static str, Vec<f64>>,
}

impl Rollouts {
    /// Waits for the end of a rollout.
    async fn follow(&mut self, kind: Kind, before: &str) -> Result<ModelDeployment> {
        let mut last: Option<(DeploymentPhase, Timestamp)> = None;
        let (passed, phases) = (&mut self.passed, &mut self.phases);
        let over = |it: &ModelDeployment| {
            let Some(status) = it.status.as_ref().filter(|_| is_observed(it)) else { return false };
            let now = Timestamp::now();
            if let Some(phase) = status.phase
                && last.is_none_or(|(former, _)| former != phase)
                && let Some((former, since)) = last.replace((phase, now))
            {
                phases.entry(former.as_str()).or_default().push(now.duration_since(since).as_secs_f64());
            }
            passed.extend(status.promotion.iter().map(|promotion| promotion.to.clone()));
            passed
                .extend(status.revisions.iter().filter(|it| it.promoted_time.is_some()).map(|it| it.revision.clone()));
            match kind {
                Kind::Good => {
                    status.phase == Some(DeploymentPhase::Stable) && status.stable_revision.as_deref() != Some(before)
                }
                Kind::FailsGate | Kind::FailsSoak => status.phase == Some(DeploymentPhase::Degraded),
            }
        };
        self.cats.until(&format!("the rollout that is {kind:?} is over"), PATIENCE, over).await
    }

    /// Waits for the Service to lead to another revision than before, and notes when.
    async fn switch(&mut self, before: &str) -> Result<String> {
        let chosen = |service: &Service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.and_then(|selector| selector.get(label::REVISION)).cloned().unwrap_or_default()
        };
        let moved = self.service.until("the Service has moved", PATIENCE, |it| chosen(it) != before).await?;
        let to = chosen(&moved);
        self.switches.push((Timestamp::now(), to.clone()));
        Ok(to)
    }

    async fn round(&mut self, ns: &Namespace, round: usize) -> Result<()> {
        let (kind, stable) = (Kind::of(round), self.stable(ns).await?);
        ns.apply(&deployment(round, kind)).await?;
        if kind != Kind::FailsGate {
            let to = self.switch(&stable).await?;
            if kind == Kind::FailsSoak {
                let back = self.switch(&to).await?;
                ensure!(back == stable, "the Service went back to {back}, not to {stable}");
            }
        }
        let done = self.follow(kind, &stable).await?;
        let status = done.status.unwrap_or_default();
        if kind != Kind::Good {
            let rejection = status.revisions.iter().filter_map(|entry| entry.rejection.as_ref()).next_back();
            let expected = if kind == Kind::FailsGate { "SmokeTestFailed" } else { "SoakFailed" };
            let reasons: Vec<_> =
                status.revisions.iter().filter_map(|entry| Some(entry.rejection.as_ref()?.reason.as_str())).collect();
            ensure!(rejection.is_some_and(|it| it.reason == expected), "rejected were {reasons:?}");
            ensure!(status.stable_revision.as_deref() == Some(&stable), "another revision is stable");
        }
        let scaler: HorizontalPodAutoscaler = ns.get("cats").await?;
        let target = scaler.spec.map(|spec| spec.scale_target_ref.name).unwrap_or_default();
        let live = status.stable_revision.unwrap_or_default();
        ensure!(target == format!("cats-{live}"), "the autoscaler sizes {target}, {live} serves");
        Ok(())
    }

    async fn stable(&self, ns: &Namespace) -> Result<String> {
        let cats: ModelDeployment = ns.get("cats").await?;
        stable_revision(&cats).map(str::to_owned).context("no revision is stable")
    }
}

async fn start_load(ns: &Namespace, pod: &str, more: &[&str]) -> Result<()> {
    let url = format!("http://cats.{}.svc", ns.name);
    let args = [
        "load",
        "--url",
        &url,
        "--concurrency",
        "2",
        "--rate",
        RATE,
        "--duration",
        "1h",
        "--journal",
        "--timeout",
        "10s",
    ];
    let image = ns.cluster.operator.server_image.clone();
    ns.start(pod, &image, &[&args, more].concat(), None).await?;
    ns.watch::<Pod>(pod)
        .until("it sends requests", PATIENCE, |pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        })
        .await?;
    Ok(())
}

async fn told_by(ns: &Namespace, pod: &str) -> Result<Told> {
    Told::read(&ns.kubectl(&["logs", pod]).await?.ok()?.out)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The most pods of the deployment that ran at one time, beyond those that serve.
fn extra_pods(pods: &History<Pod>) -> usize {
    let serves = |pod: &&Pod| pod.labels().contains_key(label::REVISION);
    let all: Vec<Pod> = pods.all();
    let life = |pod: &Pod| {
        let begin = pod.creation_timestamp().map(|time| time.0);
        let end = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        begin.map(|begin| (begin, end.unwrap_or(Timestamp::MAX)))
    };
    let lives: Vec<_> = all.iter().filter(serves).filter_map(life).collect();
    let at_once = |at: Timestamp| lives.iter().filter(|(begin, end)| *begin <= at && at < *end).count();
    let most = lives.iter().map(|(begin, _)| at_once(*begin)).max().unwrap_or_default();
    most.saturating_sub(usize::try_from(PODS).unwrap_or_default())
}

#[tokio::test]
async fn rollouts_under_load_lose_no_request_and_show_nothing_that_has_not_passed() -> Outcome {
    in_namespace(async |ns| {
        let count = std::env::var("ANNEAL_ROLLOUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROLLOUTS);
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        ns.apply(&manifest::file("smoke", "cat.png", &ns.draw("cat").await?)).await?;
        let pods = ns.record::<Pod>(&format!("{}=cats", label::DEPLOYMENT)).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment(0, Kind::Good)).await?;
        until_stable(&mut cats).await?;
        start_load(ns, "callers", &[]).await?;
        start_load(ns, "newcomers", &["--new-connections"]).await?;

        let service = ns.watch::<Service>("cats");
        let (passed, switches, phases) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        let mut rollouts = Rollouts { cats, service, passed, switches, phases };
        let stable: ModelDeployment = ns.get("cats").await?;
        rollouts.passed.extend(stable_revision(&stable).map(str::to_owned));
        for round in 1..=count {
            rollouts.round(ns, round).await.with_context(|| format!("round {round} of {count}"))?;
        }
        // The last pods that go still have requests under way.
        tokio::time::sleep(Duration::from_secs(10)).await;

        let (callers, newcomers) = (told_by(ns, "callers").await?, told_by(ns, "newcomers").await?);
        let all = [&callers, &newcomers];
        let failed: u64 = all.iter().map(|told| told.failures).sum();
        let answers: u64 = all.iter().map(|told| told.answers).sum();
        let gap = all.iter().map(|told| told.max_gap_seconds).fold(0.0, f64::max);
        let ungated: Vec<&String> = all
            .iter()
            .flat_map(|told| told.begun.iter().map(|(_, revision)| revision))
            .filter(|revision| !rollouts.passed.contains(*revision))
            .collect();
        let mut switches: Vec<f64> =
            rollouts.switches.iter().filter_map(|(at, to)| newcomers.switch_seconds(to, *at)).collect();
        let (p50, most) = (median(&mut switches), switches.last().copied().unwrap_or(f64::NAN));
        for (phase, seconds) in &mut rollouts.phases {
            println!("{phase}: {} times, median {:.1} s", seconds.len(), median(seconds));
        }
        println!(
            "RESULT {}",
            json!({
                "bench": "rollout", "rollouts": count, "requests": answers + failed, "failed_requests": failed,
                "ungated_answers": ungated.len(), "max_gap_seconds": gap, "p50_switch_seconds": p50,
                "max_switch_seconds": most, "extra_pods": extra_pods(&pods)
            })
        );
        let reasons: Vec<_> = all.iter().flat_map(|told| &told.reasons).collect();
        ensure!(failed == 0, "{failed} of {answers} requests failed: {reasons:?}");
        ensure!(ungated.is_empty(), "these answered and had not passed: {ungated:?}");
        ensure!(gap <= 1.0, "for {gap:.2} s nobody got an answer");
        ensure!(switches.len() == rollouts.switches.len(), "a revision that got the traffic never answered a newcomer");
        ensure!(p50 < 1.0 && most <= 3.0, "a switch took {p50:.2} s at the median and {most:.2} s at most");
        ensure!(rollout(&ns.get::<ModelDeployment>("cats").await?).is_some(), "it is gone");
        Ok(())
    })
    .await
}
