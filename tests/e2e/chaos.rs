//! A campaign: one fault after another is drawn from a seed and injected, while runs of several kinds train and a deployment
//! rolls out again and again under load. An observer with watches of its own looks that nothing ever holds that must not.
//!
//! `ANNEAL_FAULTS` says how many, `ANNEAL_SEED` which; `make chaos` and `scripts/soak chaos` have the long forms.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anneal_api::{
    failure::FailureClass,
    names::label,
    resources::{DeploymentPhase, ModelDeployment, RunPhase, TrainingRun},
};
use anneal_tests::{
    Asked, Context as _, Fate, Line, Namespace, Node, Object, Outcome, Program, Result, WatchFault, ensure,
    in_namespace, manifest,
};
use futures::future::{try_join, try_join_all, try_join3, try_join5};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, EvictParams},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::{Value, json};

use crate::{
    claims::SmallVolume,
    observer::Observer,
    rollouts::{self, Kind},
    scenario::{GENERATED, is_observed, phase, rollout, stable_revision, until_stable, until_succeeded},
    traffic::Traffic,
};

/// Faults where `ANNEAL_FAULTS` says nothing: about a minute.
const FAULTS: usize = 6;
/// Seconds after the last fault within which everything comes to its end.
const CONVERGENCE: u64 = 240;
/// Size of the volume that all runs write to: room for what three runs keep.
const VOLUME_MEBIBYTES: u32 = 400;
/// Runs that train side by side.
const SIDE_BY_SIDE: usize = 2;
/// Longest time after a fault until an operator works again: it notices a silent watch after 35 s, a silent list after 30 s,
/// and waits some seconds before it tries again.
const RECOVERY: Duration = Duration::from_mins(1);
/// Longest wait for a request that a fault is to hit, before it counts as missed.
const MISSED: Duration = Duration::from_secs(6);
/// Requests that the operator may make in a minute in the mean, Leases aside: a hot loop makes tens of thousands.
const MOST_REQUESTS_A_MINUTE: f64 = 6_000.0;

/// Numbers that follow from the seed.
struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    fn between(&mut self, least: u32, most: u32) -> u32 {
        least + self.below(most - least + 1)
    }

    fn seconds(&mut self, least: u32, most: u32) -> Duration {
        Duration::from_millis(u64::from(self.between(least * 1000, most * 1000)))
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The operator dies at one of its next writes, before or after.
    Kill { write: u32, after: bool },
    /// The next requests are refused.
    Refuse { requests: u32, status: u16 },
    /// The answers to the next writes are lost.
    LoseAnswers { writes: u32 },
    /// Nobody answers the next requests.
    Hang { requests: u32 },
    /// Every write takes so much longer.
    SlowWrites { pause: Duration, lasts: Duration },
    /// The API server cannot be reached.
    Outage { line: Line, lasts: Duration },
    /// Open watches end, or say nothing any more.
    Watches(WatchFault),
    /// Watches tell late.
    StaleWatches { lag: Duration, lasts: Duration },
    /// Somebody else takes the Lease, and holds it for its length.
    StealLease,
    /// The process stands still, longer than its Lease lasts, and goes on.
    Freeze { lasts: Duration },
    /// The clock of the operator that leads jumps by so many minutes, and back.
    JumpClock { minutes: i64, lasts: Duration },
    /// A pod of the revision that serves is deleted, or one that trains.
    DeletePod { serves: bool },
    /// A Deployment, Service or budget that the operator made is deleted.
    DeleteChild { which: u32 },
    /// The API server is killed and started again.
    RestartApiServer,
    /// etcd stands still by turns.
    SlowEtcd { pauses: u32 },
    /// The kubelet stands still.
    StopKubelet { lasts: Duration },
    /// The volume is full, under the runs that write to it and the pods that serve from it.
    FillVolume { lasts: Duration },
}

/// Each kind of fault as often as it is to come in so many: drawn until none is left, then shuffled anew.
const DECK: u32 = 36;

impl Fault {
    /// The cards of a shuffled deck.
    fn shuffled(dice: &mut Dice) -> Vec<u32> {
        let mut cards: Vec<u32> = (0..DECK).collect();
        for last in (1..DECK).rev() {
            cards.swap(last as usize, dice.below(last + 1) as usize);
        }
        cards
    }

    /// The fault of a card.
    fn of(card: u32, dice: &mut Dice) -> Self {
        match card {
            0..=7 => Self::Kill { write: dice.between(1, 4), after: dice.below(2) == 1 },
            8..=11 => {
                let status = [409, 429, 500, 503, 504][dice.below(5) as usize];
                Self::Refuse { requests: dice.between(1, 12), status }
            }
            12..=13 => Self::LoseAnswers { writes: dice.between(1, 3) },
            14..=15 => Self::Hang { requests: dice.between(1, 4) },
            16..=17 => Self::SlowWrites { pause: dice.seconds(1, 3), lasts: dice.seconds(4, 8) },
            18 => Self::Outage { line: Line::Cut, lasts: dice.seconds(1, 12) },
            19 => Self::Outage { line: Line::Silent, lasts: dice.seconds(1, 12) },
            20 => Self::Watches(WatchFault::Mute),
            21 => Self::Watches(WatchFault::Break),
            22 => Self::Watches(WatchFault::Expire),
            23..=24 => Self::StaleWatches { lag: dice.seconds(1, 4), lasts: dice.seconds(4, 8) },
            25 => Self::StealLease,
            26 => Self::Freeze { lasts: dice.seconds(2, 20) },
            27 => {
                let minutes = [-1440, -60, -1, 1, 60, 1440][dice.below(6) as usize];
                Self::JumpClock { minutes, lasts: dice.seconds(2, 10) }
            }
            28 => Self::DeletePod { serves: true },
            29 => Self::DeletePod { serves: false },
            30 => Self::DeleteChild { which: dice.below(3) },
            31 => Self::RestartApiServer,
            32 => Self::SlowEtcd { pauses: dice.between(2, 6) },
            33 => Self::StopKubelet { lasts: dice.seconds(3, 12) },
            _ => Self::FillVolume { lasts: dice.seconds(3, 12) },
        }
    }

    /// The word under which it is counted.
    fn kind(self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
    }
}

/// What is broken, and what lives meanwhile.
struct World<'a> {
    ns: &'a Namespace,
    one: Program,
    two: Program,
    observer: Observer,
    volume: &'a SmallVolume,
    over: AtomicBool,
}

impl World<'_> {
    fn programs(&self) -> [&Program; 2] {
        [&self.one, &self.two]
    }

    fn pass(&self) {
        for program in self.programs() {
            program.proxy.pass();
            program.proxy.line(Line::Open);
            program.proxy.lag(Duration::ZERO);
        }
    }

    /// Gives the next requests a fate, on whichever proxy they come, and waits until they had it. Whether that many came.
    async fn fate_of_next(
        &self,
        count: u32,
        fate: impl Fn(u32) -> Fate + Send + Sync + 'static,
        writes_only: bool,
    ) -> bool {
        let (met, fate) = (Arc::new(AtomicU32::new(0)), Arc::new(fate));
        for program in self.programs() {
            let (met, fate) = (met.clone(), fate.clone());
            program.proxy.decide(move |asked| {
                if asked.is_lease() || (writes_only && asked.write.is_none()) {
                    return Fate::Pass;
                }
                let number = met.fetch_add(1, Ordering::Relaxed);
                if number < count { fate(number) } else { Fate::Pass }
            });
        }
        let begin = Instant::now();
        while met.load(Ordering::Relaxed) < count && begin.elapsed() < MISSED {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        met.load(Ordering::Relaxed) >= count
    }

    /// Injects a fault and takes it back. Whether there was something to break.
    async fn inject(&self, fault: Fault, dice: &mut Dice) -> Result<bool> {
        match fault {
            Fault::Kill { write, after } => {
                let fate = if after { Fate::KillAfter } else { Fate::KillBefore };
                return Ok(self
                    .fate_of_next(write, move |n| if n + 1 == write { fate } else { Fate::Pass }, true)
                    .await);
            }
            Fault::Refuse { requests, status } => {
                return Ok(self.fate_of_next(requests, move |_| Fate::Refuse(status), status == 409).await);
            }
            Fault::LoseAnswers { writes } => return Ok(self.fate_of_next(writes, |_| Fate::LoseAnswer, true).await),
            Fault::Hang { requests } => return Ok(self.fate_of_next(requests, |_| Fate::Hang, false).await),
            Fault::SlowWrites { pause, lasts } => {
                for program in self.programs() {
                    program.proxy.decide(move |asked| if asked.is_read() { Fate::Pass } else { Fate::Delay(pause) });
                }
                tokio::time::sleep(lasts).await;
            }
            Fault::Outage { line, lasts } => {
                self.programs().into_iter().for_each(|it| it.proxy.line(line));
                tokio::time::sleep(lasts).await;
            }
            Fault::Watches(how) => self.programs().into_iter().for_each(|it| it.proxy.break_watches(how)),
            Fault::StaleWatches { lag, lasts } => {
                self.programs().into_iter().for_each(|it| it.proxy.lag(lag));
                tokio::time::sleep(lasts).await;
            }
            Fault::StealLease => self.ns.cluster.operator.steal_lease("thief").await?,
            Fault::Freeze { lasts } => {
                let frozen = self.leader().await?;
                frozen.signal("STOP").await?;
                tokio::time::sleep(lasts).await;
                frozen.signal("CONT").await?;
            }
            Fault::JumpClock { minutes, lasts } => {
                let leader = self.leader().await?;
                leader.turn_clock(60 * minutes)?;
                tokio::time::sleep(lasts).await;
                leader.turn_clock(0)?;
            }
            Fault::DeletePod { serves: true } => return self.delete_serving_pod().await,
            Fault::DeletePod { serves: false } => return self.evict_training_pod().await,
            Fault::DeleteChild { which } => return self.delete_child(which).await,
            Fault::RestartApiServer => {
                Node::first().kill("kube-apiserver").await?;
                Node::first().come_back().await?;
            }
            Fault::SlowEtcd { pauses } => {
                for _ in 0..pauses {
                    let pause = dice.seconds(0, 1);
                    self.pause("etcd", pause).await?;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            Fault::StopKubelet { lasts } => self.pause("kubelet", lasts).await?,
            Fault::FillVolume { lasts } => {
                self.volume.fill().await?;
                tokio::time::sleep(lasts).await;
                self.volume.clear().await?;
            }
        }
        Ok(true)
    }

    async fn leader(&self) -> Result<&Program> {
        let holder = self.ns.cluster.operator.holder().await?;
        Ok(self.programs().into_iter().find(|it| it.name == holder).unwrap_or(&self.one))
    }

    /// Lets a component of the control plane stand still.
    async fn pause(&self, component: &str, lasts: Duration) -> Result<()> {
        Node::first().pause(component, lasts).await?;
        tokio::time::sleep(lasts).await;
        Ok(())
    }

    /// Deletes a pod of the revision that serves, unless it is the only one that is ready.
    async fn delete_serving_pod(&self) -> Result<bool> {
        let cats: ModelDeployment = self.ns.get("cats").await?;
        let Some(revision) = stable_revision(&cats) else { return Ok(false) };
        let pods: Vec<Pod> = self.ns.list(&format!("{}={revision}", label::REVISION)).await?;
        let ready: Vec<&Pod> = pods.iter().filter(|pod| is_ready(pod)).collect();
        if ready.len() < 2 {
            return Ok(false);
        }
        self.delete::<Pod>(&ready[0].name_any()).await
    }

    async fn evict_training_pod(&self) -> Result<bool> {
        let pods: Vec<Pod> = self.ns.list(label::RUN).await?;
        let Some(pod) = pods.iter().find(|pod| is_ready(pod)) else { return Ok(false) };
        // It may end by itself at this moment.
        Ok(self.ns.api::<Pod>().evict(&pod.name_any(), &EvictParams::default()).await.is_ok())
    }

    /// Deletes something that the operator made, and without which the deployment serves for a while.
    async fn delete_child(&self, which: u32) -> Result<bool> {
        match which {
            0 => self.delete_one::<PodDisruptionBudget>(label::DEPLOYMENT).await,
            1 => self.delete_one::<HorizontalPodAutoscaler>(label::DEPLOYMENT).await,
            _ => self.delete_one::<Job>(label::REVISION).await,
        }
    }

    async fn delete_one<K: Object>(&self, labels: &str) -> Result<bool> {
        match self.ns.list::<K>(labels).await?.first() {
            Some(object) => self.delete::<K>(&object.name_any()).await,
            None => Ok(false),
        }
    }

    async fn delete<K: Object>(&self, name: &str) -> Result<bool> {
        match self.ns.api::<K>().delete(name, &DeleteParams::background()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
            other => other.map(|_| true).with_context(|| format!("{name} cannot be deleted")),
        }
    }

    /// Waits until one of the two works. That it takes too long is a violation.
    async fn recovered(&self, after: &str) {
        let (since, begin) = (Timestamp::now(), Instant::now());
        while self.programs().iter().all(|program| program.asked(since) == 0) {
            if begin.elapsed() > RECOVERY {
                return self.observer.note(&format!("no operator works within {RECOVERY:?} after {after}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One run after another, until the faults are over.
    async fn runs(&self, next: &AtomicUsize) -> Result<usize> {
        let mut done = 0;
        while !self.over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            self.run(number).await.with_context(|| format!("run-{number}"))?;
            done += 1;
        }
        Ok(done)
    }

    /// Lives through one run, and looks how it ends.
    async fn run(&self, number: usize) -> Result<()> {
        let name = format!("run-{number}");
        let broken = json!({
            "image": self.ns.cluster.operator.server_image,
            "args": ["predict", "--url", "http://127.0.0.1:1", "/nothing.jpg"]
        });
        let mut long = manifest::well_trained(1);
        manifest::merge(
            &mut long,
            json!({
                "hyperparameters": {"epochs": 8}, "tracking": {"mlflow": {"uri": "http://127.0.0.1:9"}}, "maxRetries": 5
            }),
        );
        let (spec, expected, class) = match number % 4 {
            0 => (long, RunPhase::Succeeded, None),
            1 => (json!({"podTemplate": broken, "maxRetries": 1}), RunPhase::Failed, Some(FailureClass::AppError)),
            2 => (json!({"maxRetries": 5}), RunPhase::Succeeded, None),
            _ => {
                let missing = json!(["train", "--config", "/etc/anneal/missing.yaml"]);
                (json!({"podTemplate": {"args": missing}}), RunPhase::Failed, Some(FailureClass::BadConfig))
            }
        };
        let mut run = self.ns.watch::<TrainingRun>(&name);
        self.apply(&manifest::training_run(&name, spec)).await?;
        let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
        let run = run.until("it is over", CONVERGENCE, over).await?;
        let attempts = run.status.as_ref().map(|status| status.attempts.clone()).unwrap_or_default();
        if phase(&run) != Some(expected) || attempts.last().is_none_or(|last| last.class != class) {
            self.observer.note(&format!("{name} was to end as {expected:?} by {class:?}: {:?}", run.status));
        }
        let numbers: Vec<_> = attempts.iter().map(|attempt| format!("{name}-{}", attempt.number)).collect();
        let jobs = self.observer.jobs_of(&run);
        if numbers != jobs {
            self.observer.note(&format!("{name} has the attempts {numbers:?} and had the Jobs {jobs:?}"));
        }
        self.volume.forget(&run).await
    }

    /// One rollout after another, until the faults are over.
    async fn rollouts(&self) -> Result<usize> {
        let mut cats = self.ns.watch::<ModelDeployment>("cats");
        let mut round = 0;
        while !self.over.load(Ordering::Relaxed) {
            round += 1;
            self.apply(&rollouts::deployment(round, Kind::Good)).await?;
            let annotated = |it: &ModelDeployment| {
                is_observed(it) && rollout(it) == Some(DeploymentPhase::Stable) && serves_round(it, round)
            };
            cats.until(&format!("rollout {round} is over"), CONVERGENCE, annotated).await?;
        }
        Ok(round)
    }

    /// As a user does who tries again while the API server is away.
    async fn apply(&self, manifest: &Value) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.ns.apply(manifest).await {
                Err(problem) if begin.elapsed() > Duration::from_mins(1) => return Err(problem),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits until nothing is written any more.
    async fn at_rest(&self) {
        let begin = Instant::now();
        loop {
            let since = Timestamp::now();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let writes: Vec<Asked> = self.programs().iter().flat_map(|it| it.proxy.writes(since)).collect();
            if writes.is_empty() {
                return;
            }
            if begin.elapsed() > Duration::from_mins(1) {
                let what: BTreeSet<String> = writes.iter().map(Asked::what).collect();
                return self.observer.note(&format!("it does not come to rest: {what:?}"));
            }
        }
    }

    /// Deletes what the users made, and looks that nothing is left of it but the files.
    async fn gone(&self) -> Result<()> {
        self.ns.kubectl(&["delete", "trainingruns,modeldeployments", "--all"]).await?.ok()?;
        try_join5(
            self.left_of::<Job>(),
            self.left_of::<Pod>(),
            self.left_of::<ConfigMap>(),
            self.left_of::<Deployment>(),
            self.left_of::<Service>(),
        )
        .await?;
        try_join3(
            self.left_of::<ControllerRevision>(),
            self.left_of::<PodDisruptionBudget>(),
            self.left_of::<HorizontalPodAutoscaler>(),
        )
        .await?;
        Ok(())
    }

    async fn left_of<K: Object>(&self) -> Result<()> {
        let gone = self.ns.until_all::<K>(GENERATED, "none is left", 90, <[K]>::is_empty).await;
        if let Err(problem) = gone {
            self.observer.note(&format!("orphans: {problem:#}"));
        }
        Ok(())
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the revision that serves is the one of this round.
fn serves_round(deployment: &ModelDeployment, round: usize) -> bool {
    let status = deployment.status.as_ref();
    let wanted = deployment.spec.pod_template.annotations.get("example.com/round");
    wanted == Some(&round.to_string()) && status.is_some_and(|status| status.candidate_revision.is_none())
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Injects one fault after the other, and says how many of each kind it were.
async fn break_all(world: &World<'_>, faults: usize, seed: u64) -> Result<BTreeMap<String, usize>> {
    let (mut dice, began) = (Dice(ChaCha8Rng::seed_from_u64(seed)), Instant::now());
    let mut kinds = BTreeMap::<String, usize>::new();
    let mut cards = Vec::new();
    let mut number = 0;
    while number < faults {
        if cards.is_empty() {
            cards = Fault::shuffled(&mut dice);
        }
        let fault = Fault::of(cards.pop().unwrap_or_default(), &mut dice);
        let told = format!("fault {} of {faults}: {fault:?}", number + 1);
        println!("{:>6.1} s  {told}", began.elapsed().as_secs_f64());
        let outcome = world.inject(fault, &mut dice).await;
        world.pass();
        if outcome.with_context(|| format!("{told}, ANNEAL_SEED={seed}"))? {
            number += 1;
            *kinds.entry(fault.kind()).or_default() += 1;
        } else {
            println!("          it met nothing, and does not count");
        }
        world.recovered(&told).await;
        tokio::time::sleep(dice.seconds(0, 2)).await;
    }
    world.over.store(true, Ordering::Relaxed);
    Ok(kinds)
}

#[tokio::test]
async fn whatever_breaks_nothing_that_must_not_be_is_ever_seen_and_everything_comes_to_its_end() -> Outcome {
    in_namespace(async |ns| {
        let volume = SmallVolume::make(ns, VOLUME_MEBIBYTES).await?;
        let outcome = campaign(ns, &volume).await;
        volume.remove().await?;
        outcome
    })
    .await
}

async fn campaign(ns: &Namespace, volume: &SmallVolume) -> Result<()> {
    let drawn = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs());
    let (faults, seed) = (number("ANNEAL_FAULTS", FAULTS), number("ANNEAL_SEED", drawn));
    println!("{faults} faults, ANNEAL_SEED={seed}");
    let absence = ns.cluster.operator.stand_aside().await?;
    let (one, two) = try_join(Program::start(ns, &absence, "one"), Program::start(ns, &absence, "two")).await?;
    let world = World { ns, one, two, observer: Observer::start(ns).await?, volume, over: AtomicBool::new(false) };
    for (name, seed) in [("first", 1), ("second", 2)] {
        ns.apply(&manifest::training_run(name, json!({"hyperparameters": {"seed": seed}}))).await?;
        until_succeeded(&mut ns.watch(name)).await?;
    }
    ns.apply(&manifest::file("smoke", "cat.png", &ns.draw("cat").await?)).await?;
    ns.apply(&rollouts::deployment(0, Kind::Good)).await?;
    until_stable(&mut ns.watch::<ModelDeployment>("cats")).await?;
    let traffic = Traffic::start(ns).await?;

    let (since, next) = (Timestamp::now(), AtomicUsize::new(0));
    let training = try_join_all((0..SIDE_BY_SIDE).map(|_| world.runs(&next)));
    let (kinds, runs, rollouts) = try_join3(break_all(&world, faults, seed), training, world.rollouts()).await?;
    let minutes = Timestamp::now().duration_since(since).as_secs_f64() / 60.0;
    world.at_rest().await;
    let told = traffic.told().await?;
    for revision in told.iter().flat_map(|told| told.begun.iter().map(|(_, revision)| revision)) {
        if !world.observer.may_answer(revision) {
            world.observer.note(&format!("{revision} answered and had not passed"));
        }
    }
    let asked = u32::try_from(world.programs().iter().map(|it| it.asked(since)).sum::<usize>())?;
    let a_minute = (f64::from(asked) / minutes).round();
    if a_minute > MOST_REQUESTS_A_MINUTE {
        world.observer.note(&format!("the operators made {a_minute} requests a minute"));
    }
    world.gone().await?;
    let (answers, failed) = told.iter().fold((0, 0), |(a, f), told| (a + told.answers, f + told.failures));
    let violations = world.observer.violations();
    for (kind, count) in &kinds {
        println!("{count:>4} {kind}");
    }
    println!(
        "RESULT {}",
        json!({
            "bench": "chaos", "faults": kinds.values().sum::<usize>(), "violations": violations.len(), "seed": seed,
            "objects": world.observer.objects(), "runs": runs.iter().sum::<usize>(), "rollouts": rollouts,
            "requests": answers + failed, "failed_requests": failed, "operator_requests_a_minute": a_minute,
            "operator_ended": world.one.ends() + world.two.ends(), "minutes": (minutes * 10.0).round() / 10.0
        })
    );
    ensure!(violations.is_empty(), "ANNEAL_SEED={seed}:\n{}", violations.join("\n"));
    let reasons: Vec<_> = told.iter().flat_map(|told| &told.reasons).collect();
    ensure!(failed == 0, "ANNEAL_SEED={seed}: {failed} of {} requests failed: {reasons:?}", answers + failed);
    Ok(())
}
