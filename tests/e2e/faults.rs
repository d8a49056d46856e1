//! A rollout under load whose operator dies at its writes, or loses the API server: it comes to the right revision, no
//! request is lost, and nothing answers that has not passed.
//!
//! `FAULT_POINTS=all scripts/chaos` gives each write two rollouts of its own, killed before it and after it, and each phase
//! two outages of half a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anneal_api::{
    names::label,
    resources::{
        DeploymentPhase::{self, Loading, Promoting, ScalingUp, SmokeTesting, Soaking},
        ModelDeployment,
    },
};
use anneal_tests::{
    Asked, Context as _, Fate, Line, Namespace, Outcome, Program, Result, Watch, ensure, in_namespace, manifest,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    observer::Observer,
    rollouts::{self, Kind},
    scenario::{PATIENCE, chosen_by, is_observed, rollout, stable_revision, trained, until_stable},
    traffic::Traffic,
};

/// Length of an outage.
const OUTAGE: Duration = Duration::from_secs(30);
/// Longest time after an outage until the operator works again: a Lease's length and a start.
const RECOVERY: Duration = Duration::from_secs(25);

/// A deployment that serves under constant load, and an operator that can be broken.
struct Stage<'a> {
    ns: &'a Namespace,
    program: Program,
    observer: Observer,
    traffic: Traffic<'a>,
    cats: Watch<ModelDeployment>,
    round: usize,
    stable: String,
}

impl<'a> Stage<'a> {
    async fn set(ns: &'a Namespace, program: Program) -> Result<Self> {
        let observer = Observer::start(ns).await?;
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        ns.apply(&manifest::file("smoke", "cat.png", &ns.draw("cat").await?)).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&rollouts::deployment(0, Kind::Good)).await?;
        let stable = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();
        let traffic = Traffic::start(ns).await?;
        Ok(Self { ns, program, observer, traffic, cats, round: 0, stable })
    }

    /// Applies the next revision.
    async fn update(&mut self) -> Result<Timestamp> {
        self.round += 1;
        let now = Timestamp::now();
        self.ns.apply(&rollouts::deployment(self.round, Kind::Good)).await?;
        Ok(now)
    }

    async fn until(&mut self, phase: DeploymentPhase) -> Result<()> {
        let stable = self.stable.clone();
        let sentence = format!("it is {phase:?}");
        let there = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(phase) || is_done(it, &stable);
        self.cats.until(&sentence, PATIENCE, there).await.map(|_| ())
    }

    /// Waits for the end of the rollout, and looks that it is the right one.
    async fn finished(&mut self) -> Result<()> {
        let stable = self.stable.clone();
        let done = self.cats.until("the new revision is Stable", PATIENCE, |it| is_done(it, &stable)).await?;
        stable_revision(&done).context("no revision is stable")?.clone_into(&mut self.stable);
        ensure!(chosen_by(self.ns, "cats").await? == self.stable, "the Service leads elsewhere");
        let retired = format!("{}={stable}", label::REVISION);
        self.ns
            .until_all::<Pod>(&retired, "the former revision is retired", PATIENCE, |pods| {
                pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_some())
            })
            .await
            .map(|_| ())
    }

    /// Waits until the operator works again.
    async fn recovered(&self, since: Timestamp, within: Duration) -> Result<f64> {
        let begin = Instant::now();
        let works = |asked: &Asked| asked.is_read() && asked.path.contains("modeldeployments");
        while !self.program.proxy.asked(since).iter().any(works) {
            ensure!(
                begin.elapsed() < within,
                "the operator does not work again within {within:?}; it said:\n{}",
                tail(&self.program.log(), 40)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// What the callers and the observer say in the end.
    async fn judged(&self, faults: usize) -> Result<()> {
        // The last pods that go still have requests under way, and the callers tell every two seconds.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let told = self.traffic.told().await?;
        let (answers, failed) = told.iter().fold((0, 0), |(a, f), told| (a + told.answers, f + told.failures));
        let revisions: BTreeSet<_> = told.iter().flat_map(|told| told.begun.iter().map(|(_, it)| it.clone())).collect();
        let ungated: Vec<_> = revisions.iter().filter(|revision| !self.observer.may_answer(revision)).collect();
        let violations = self.observer.violations();
        println!(
            "RESULT {}",
            json!({
                "bench": "fault-points", "rollouts": self.round, "faults": faults, "requests": answers + failed,
                "failed_requests": failed, "ungated_answers": ungated.len(), "violations": violations.len(),
                "operator_ended": self.program.ends()
            })
        );
        let reasons: Vec<_> = told.iter().flat_map(|told| &told.reasons).collect();
        ensure!(answers > 0, "nobody got an answer");
        ensure!(failed == 0, "{failed} of {} requests failed: {reasons:?}", answers + failed);
        ensure!(ungated.is_empty(), "these answered and had not passed: {ungated:?}");
        ensure!(violations.is_empty(), "{}", violations.join("\n"));
        Ok(())
    }
}

fn is_done(it: &ModelDeployment, former: &str) -> bool {
    is_observed(it)
        && rollout(it) == Some(DeploymentPhase::Stable)
        && stable_revision(it).is_some_and(|stable| stable != former)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[tokio::test]
async fn an_operator_that_dies_at_every_write_of_a_rollout_or_loses_the_api_server_loses_no_request() -> Outcome {
    in_namespace(async |ns| {
        let absence = ns.cluster.operator.stand_aside().await?;
        let mut stage = Stage::set(ns, Program::start(ns, &absence, "one").await?).await?;
        // Each write that is new is killed before it is done, and its second try after it.
        let tries = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
        let seen = tries.clone();
        stage.program.proxy.decide(move |asked| {
            if asked.write.is_none() {
                return Fate::Pass;
            }
            let mut tries = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let count = tries.entry(asked.what()).or_default();
            *count += 1;
            match count {
                1 => Fate::KillBefore,
                2 => Fate::KillAfter,
                _ => Fate::Pass,
            }
        });
        stage.update().await?;
        stage.finished().await?;
        stage.program.proxy.pass();
        let tries = tries.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (what, count) in &tries {
            println!("{count} tries: {what}");
        }
        let kills: usize = tries.values().map(|count| (*count).min(2)).sum();
        ensure!(kills > 20, "a rollout has more writes than {kills}");
        outage(&mut stage, SmokeTesting, Line::Silent).await?;
        stage.judged(kills + 1).await
    })
    .await
}

#[tokio::test]
#[ignore = "20 minutes; FAULT_POINTS=all scripts/chaos"]
async fn the_same_with_a_rollout_for_each_write_before_and_after_it() -> Outcome {
    in_namespace(async |ns| {
        let absence = ns.cluster.operator.stand_aside().await?;
        let mut stage = Stage::set(ns, Program::start(ns, &absence, "one").await?).await?;
        let begin = stage.update().await?;
        stage.finished().await?;
        let undisturbed = stage.program.proxy.writes(begin);
        for write in &undisturbed {
            println!("write {}: {}", write.write.unwrap_or_default(), write.what());
        }
        let first = undisturbed.first().and_then(|write| write.write).context("a rollout writes nothing")?;
        let count = undisturbed.last().and_then(|write| write.write).unwrap_or_default() - first + 1;
        let mut faults = 0;
        for point in 0..count {
            for fate in [Fate::KillBefore, Fate::KillAfter] {
                let came = killed(&mut stage, point, fate).await;
                faults += usize::from(came.with_context(|| format!("{fate:?} at write {point} of {count}"))?);
            }
        }
        stage.judged(faults).await
    })
    .await
}

#[tokio::test]
#[ignore = "10 minutes; FAULT_POINTS=all scripts/chaos"]
async fn an_operator_that_loses_the_api_server_in_any_phase_of_a_rollout_goes_on_and_loses_no_request() -> Outcome {
    in_namespace(async |ns| {
        let absence = ns.cluster.operator.stand_aside().await?;
        let mut stage = Stage::set(ns, Program::start(ns, &absence, "one").await?).await?;
        let mut faults = 0;
        for phase in [Loading, SmokeTesting, ScalingUp, Promoting, Soaking] {
            for line in [Line::Cut, Line::Silent] {
                outage(&mut stage, phase, line).await.with_context(|| format!("{line:?} while {phase:?}"))?;
                faults += 1;
            }
        }
        stage.judged(faults).await
    })
    .await
}

/// A rollout whose operator is killed at one of its writes, counted from its beginning. Whether that write came.
async fn killed(stage: &mut Stage<'_>, point: usize, fate: Fate) -> Result<bool> {
    let happened = Arc::new(Mutex::new(None::<usize>));
    let (first, happened_here) = (Arc::new(Mutex::new(None::<usize>)), happened.clone());
    stage.program.proxy.decide(move |asked| {
        let Some(number) = asked.write else { return Fate::Pass };
        let first = *first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(number);
        let mut happened = happened_here.lock().unwrap_or_else(PoisonError::into_inner);
        if number - first != point || happened.is_some() {
            return Fate::Pass;
        }
        *happened = Some(number);
        fate
    });
    stage.update().await?;
    stage.finished().await?;
    stage.program.proxy.pass();
    let happened = happened.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    Ok(happened)
}

/// A rollout that loses the API server for a while in one of its phases.
async fn outage(stage: &mut Stage<'_>, phase: DeploymentPhase, line: Line) -> Result<()> {
    stage.update().await?;
    stage.until(phase).await?;
    stage.program.proxy.line(line);
    tokio::time::sleep(OUTAGE).await;
    stage.program.proxy.line(Line::Open);
    let took = stage.recovered(Timestamp::now(), RECOVERY).await?;
    println!("{line:?} while {phase:?}: it works again after {took:.1} s");
    stage.finished().await
}
