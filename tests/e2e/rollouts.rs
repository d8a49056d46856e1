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
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    scenario::{PATIENCE, is_observed, rollout, stable_revision, trained, until_stable},
    traffic::Traffic,
};

/// Rollouts where `ANNEAL_ROLLOUTS` says nothing: each kind is among them.
const ROLLOUTS: usize = 10;
/// Pods of the revision that serves.
const PODS: i64 = 2;

/// What becomes of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It gets the traffic and keeps it.
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

pub fn deployment(round: usize, kind: Kind) -> Value {
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
        // Its share of a machine that others use, too.
        "podTemplate": {
            "annotations": {"example.com/round": round.to_string()}, "resources": {"requests": {"cpu": "200m"}}
        }
    });
    manifest::model_deployment("cats", spec)
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
    async fn round(&mut self, ns: &Namespace, round: usize) -> Result<()> {
        let (kind, stable) = (Kind::of(round), self.stable(ns).await?);
        ns.apply(&deployment(round, kind)).await?;
        let (switches, done) = tokio::try_join!(
            switches(&mut self.service, kind, &stable),
            follow(&mut self.cats, &mut self.passed, &mut self.phases, kind, &stable)
        )?;
        self.switches.extend(switches);
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

/// Waits for the end of a rollout; notes who passed, and how long each phase took.
async fn follow(
    cats: &mut Watch<ModelDeployment>,
    passed: &mut BTreeSet<String>,
    phases: &mut BTreeMap<&'static str, Vec<f64>>,
    kind: Kind,
    before: &str,
) -> Result<ModelDeployment> {
    let mut last: Option<(DeploymentPhase, Timestamp)> = None;
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
        passed.extend(status.revisions.iter().filter(|it| it.promoted_time.is_some()).map(|it| it.revision.clone()));
        match kind {
            Kind::Good => {
                status.phase == Some(DeploymentPhase::Stable) && status.stable_revision.as_deref() != Some(before)
            }
            Kind::FailsGate | Kind::FailsSoak => status.phase == Some(DeploymentPhase::Degraded),
        }
    };
    cats.until(&format!("the rollout that is {kind:?} is over"), PATIENCE, over).await
}

/// Waits for the Service to move as a rollout of this kind moves it, and tells when it led where.
async fn switches(service: &mut Watch<Service>, kind: Kind, stable: &str) -> Result<Vec<(Timestamp, String)>> {
    let chosen = |service: &Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.and_then(|selector| selector.get(label::REVISION)).cloned().unwrap_or_default()
    };
    let mut found = Vec::new();
    let mut before = stable.to_owned();
    let expected = match kind {
        Kind::Good => 1,
        Kind::FailsGate => 0,
        Kind::FailsSoak => 2,
    };
    for _ in 0..expected {
        let moved = service.until("the Service has moved", PATIENCE, |it| chosen(it) != before).await?;
        before = chosen(&moved);
        found.push((Timestamp::now(), before.clone()));
    }
    ensure!(expected != 2 || before == stable, "the Service went back to {before}, not to {stable}");
    Ok(found)
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
        // A deletion's time is the end of the pod's grace.
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
        let end = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0 - grace);
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
        let traffic = Traffic::start(ns).await?;

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

        let all = traffic.told().await?;
        let newcomers = &all[1];
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
        for (at, seconds) in all.iter().flat_map(|told| &told.gaps) {
            println!("{seconds:.2} s without an answer until {at}");
        }
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
