//! The phases of the benchmark, each on a control plane of its own.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anneal_api::resources::{ModelDeployment, TrainingRun};
use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    fake,
    generate::{self, Course, Pace},
    latency::Lives,
    measured::{self, Burst, Controlled, Deployments, Jobs, Memory, Peer, Runs, Steady},
    observe,
    processes::{Controller, cpu, spent},
};

/// Runs of the namespace that must not wait for the large one.
const FEW: usize = 10;
/// How long the runs at a fixed rate arrive.
const STEADY_SECONDS: f64 = 30.0;
/// How long the operator is watched for writes that nothing asks for.
const IDLE: Duration = Duration::from_mins(1);
/// How long the control plane is left alone first: it is busy with its own start.
const CALM: Duration = Duration::from_secs(10);
/// How long memory is given to be given back, before it is looked at.
const SETTLE: Duration = Duration::from_secs(10);
/// Longest time that the operator may take after a restart to look at everything.
const RESTART: Duration = Duration::from_mins(5);
/// The operator's counter of ended runs.
const FINISHED: &str = "anneal_training_runs_finished_total";
/// The operator's counter of reconciles.
const RECONCILES: &str = "anneal_reconciles_total";

/// Longest time that so many runs or Jobs may take.
fn patience(count: usize) -> Duration {
    Duration::from_mins(2) + Duration::from_millis(200) * u32::try_from(count).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts of runs")]
fn burst(count: usize, lives: &Lives, cpu: BTreeMap<String, f64>) -> Burst {
    let done = lives.done();
    let seconds = done.last().map_or(f64::INFINITY, |point| point.0);
    Burst { count, per_second: count as f64 / seconds, done, cpu }
}

/// The bare Job controller, with the Jobs that the operator would make.
pub async fn jobs(count: usize, out: &Path) -> Result<()> {
    let client = Client::try_default().await?;
    generate::namespace(&client, "many").await?;
    let jobs = many(count, generate::job)?;
    sleep(CALM).await;
    let (since, before) = (Timestamp::now(), cpu()?);
    generate::create(&client, "many", jobs, Pace::Burst).await?;
    observe::jobs_finished(count, patience(count)).await?;
    let spent = spent(&before, &cpu()?);
    let burst = burst(count, &observe::lives("many", since)?, spent);
    eprintln!("          {count} bare Jobs: {:.1}/s", burst.per_second);
    measured::write(out, "jobs.json", &Jobs { burst })
}

/// JobSets of the same Jobs.
pub async fn peer(count: usize, program: &Path, out: &Path) -> Result<()> {
    let client = Client::try_default().await?;
    generate::namespace(&client, "many").await?;
    let jobsets = many(count, generate::jobset)?;
    let controller = Controller::jobset(program)?;
    controller.is_ready().await?;
    sleep(CALM).await;
    let (empty, _) = controller.memory()?;
    let begin = Begin::now(&controller)?;
    generate::create(&client, "many", jobsets, Pace::Burst).await?;
    observe::jobs_finished(count, patience(count)).await?;
    observe::all_completed(&client, "many", patience(count)).await?;
    let many = begin.end(&controller, count).await?;
    eprintln!("          {count} JobSets: {:.1}/s", many.burst.per_second);
    sleep(SETTLE).await;
    let (after, peak) = controller.memory()?;
    measured::write(out, "peer.json", &Peer { many, empty, after, peak, resident: controller.resident() })?;
    controller.stop()
}

/// The operator: a burst, runs at half of the bare Job controller's rate, deployments, a minute of rest, a restart. Without a
/// Job controller to compare with, its place is taken and the rate is half of the burst's.
pub async fn runs(count: usize, deployments: usize, program: &Path, out: &Path) -> Result<()> {
    let floor: Option<Jobs> = measured::read_if_any(out, "jobs.json")?;
    let client = Client::try_default().await?;
    for namespace in ["first", "many", "few", "steady", "models"] {
        generate::namespace(&client, namespace).await?;
    }
    let operator = Controller::operator(program)?;
    operator.leads().await?;
    sleep(CALM).await;
    let measure = measure(&client, &operator, (count, deployments), floor.as_ref(), out);
    let mut runs = if floor.is_some() {
        measure.await?
    } else {
        tokio::select! {
            runs = measure => runs?,
            ended = fake::jobs(client.clone()) => {
                ended?;
                bail!("the watches of Jobs and pods ended, which they never should");
            }
        }
    };
    operator.stop()?;

    let operator = Controller::operator(program)?;
    let leading = operator.leads().await?;
    let known = first(count) + count + FEW + runs.steady.count;
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    operator.reaches(RECONCILES, &["kind=\"trainingrun\"", "result=\"success\""], known as f64, RESTART).await?;
    operator.has_no_queue(RESTART).await?;
    let runs_known = Timestamp::now();
    let deployments_known = observe::all_looked_at(deployments, leading, RESTART).await?;
    runs.synced_seconds = runs_known.max(deployments_known).duration_since(leading).as_secs_f64();
    sleep(SETTLE).await;
    let (resident, peak) = operator.memory()?;
    runs.memory.restarted = resident;
    runs.memory.peak = runs.memory.peak.max(peak);
    operator.stop()?;
    measured::write(out, "runs.json", &runs)
}

/// All phases but the restart.
async fn measure(
    client: &Client,
    operator: &Controller,
    (count, deployments): (usize, usize),
    floor: Option<&Jobs>,
    out: &Path,
) -> Result<Runs> {
    let mut runs = Runs { faked: floor.is_none(), ..Runs::default() };
    runs.memory.empty = operator.memory()?.0;
    let few = many(first(count), |index| generate::run(index, Course::Good))?;
    generate::create(client, "first", few, Pace::Burst).await?;
    finished(operator, 0.0, first(count)).await?;
    sleep(SETTLE).await;
    runs.memory.first_runs = operator.memory()?.0;

    run_burst(client, operator, count, &mut runs).await?;
    sleep(SETTLE).await;
    (runs.memory.runs, runs.memory.runs_peak) = operator.memory()?;
    measured::write(out, "runs.json", &runs)?;

    let rate = floor.map_or(runs.many.burst.per_second, |floor| floor.burst.per_second);
    runs.steady = steady(client, operator, rate / 2.0).await?;
    sleep(SETTLE).await;
    runs.memory.steady = operator.memory()?.0;

    runs.deployments = roll_out(client, operator, deployments, &mut runs.memory).await?;
    sleep(SETTLE).await;
    runs.memory.deployments = operator.memory()?.0;
    measured::write(out, "runs.json", &runs)?;

    let since = Timestamp::now();
    sleep(IDLE).await;
    runs.idle_writes = observe::writes(since)?;
    runs.memory.peak = operator.memory()?.1;
    runs.resident = operator.resident();
    Ok(runs)
}

/// How many come first, so that whatever is taken once, however many there are, has been taken.
fn first(count: usize) -> usize {
    count.div_ceil(10)
}

fn many<K>(count: usize, one: impl Fn(usize) -> Result<K>) -> Result<Vec<K>> {
    (0..count).map(one).collect()
}

/// Waits until so many runs more than now have ended.
async fn finished(operator: &Controller, ended: f64, more: usize) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    operator.reaches(FINISHED, &[], ended + more as f64, patience(more)).await
}

/// What a controller and the control plane had used when a burst began.
struct Begin {
    since: Timestamp,
    cpu: BTreeMap<String, f64>,
    bytes: (u64, u64),
}

impl Begin {
    fn now(controller: &Controller) -> Result<Self> {
        Ok(Self { since: Timestamp::now(), cpu: cpu()?, bytes: controller.bytes() })
    }

    /// What came of a burst of that many.
    async fn end(&self, controller: &Controller, count: usize) -> Result<Controlled> {
        let spent = spent(&self.cpu, &cpu()?);
        // Its samples are taken once a second.
        sleep(Duration::from_secs(2)).await;
        let total = controller.bytes();
        let lives = observe::lives("many", self.since)?;
        Ok(Controlled {
            burst: burst(count, &lives, spent),
            to_job: lives.to_job(),
            job_to_status: lives.job_to_status(),
            bytes: (total.0 - self.bytes.0, total.1 - self.bytes.1),
            calls: lives.calls,
            refused: lives.refused,
        })
    }
}

async fn run_burst(client: &Client, operator: &Controller, count: usize, runs: &mut Runs) -> Result<()> {
    let good = |index| generate::run(index, Course::Good);
    let (large, small) = (many(count, good)?, many(FEW, good)?);
    let ours = ["kind=\"trainingrun\""];
    let (begin, ended) = (Begin::now(operator)?, operator.metric(FINISHED, &[]).await?);
    let reconciled = operator.metric(RECONCILES, &ours).await?;
    generate::create(client, "many", large, Pace::Burst).await?;
    eprintln!("          {count} runs created in {:.1} s", Timestamp::now().duration_since(begin.since).as_secs_f64());
    generate::create(client, "few", small, Pace::Burst).await?;
    finished(operator, ended, count + FEW).await?;
    runs.reconciles = operator.metric(RECONCILES, &ours).await? - reconciled;
    runs.many = begin.end(operator, count).await?;
    runs.small_to_job = observe::lives("few", begin.since)?.to_job();
    eprintln!("          {count} runs: {:.1}/s", runs.many.burst.per_second);
    Ok(())
}

/// Runs that arrive one after the other; one in twenty fails, changes or is suspended for a while, each.
async fn steady(client: &Client, operator: &Controller, per_second: f64) -> Result<Steady> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of runs")]
    let count = (per_second * STEADY_SECONDS).ceil() as usize;
    let all = many(count, |index| generate::run(index, Course::of(index)))?;
    let ended = operator.metric(FINISHED, &[]).await?;
    let (since, begin) = (Timestamp::now(), Instant::now());
    let disturb = stream::iter(0..count)
        .map(|index| async move {
            let name = format!("run-{index:05}");
            #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
            let created = begin + Duration::from_secs_f64(index as f64 / per_second);
            // Its trainer runs by then, and not for long enough to have ended.
            sleep_until(created + Duration::from_secs(3)).await;
            match Course::of(index) {
                Course::Changes => {
                    let spec = json!({"ttlSecondsAfterFinished": 86_400});
                    generate::change::<TrainingRun>(client, "steady", &name, &spec).await
                }
                Course::Pauses => {
                    generate::change::<TrainingRun>(client, "steady", &name, &json!({"suspend": true})).await?;
                    sleep(Duration::from_secs(2)).await;
                    generate::change::<TrainingRun>(client, "steady", &name, &json!({"suspend": false})).await
                }
                Course::Good | Course::Fails => Ok(()),
            }
        })
        .buffer_unordered(count.max(1))
        .try_for_each(|()| std::future::ready(Ok(())));
    tokio::try_join!(generate::create(client, "steady", all, Pace::PerSecond(per_second)), disturb)?;
    finished(operator, ended, count).await?;
    let lives = observe::lives("steady", since)?;
    eprintln!("          {count} runs at {per_second:.1}/s");
    Ok(Steady { count, per_second, to_job: lives.to_job(), job_to_status: lives.job_to_status() })
}

/// Deployments that come at once, after a first tenth of them, and a new revision of one in ten.
async fn roll_out(client: &Client, operator: &Controller, count: usize, memory: &mut Memory) -> Result<Deployments> {
    let (first, limit) = (first(count), patience(10 * count));
    let mut rest = many(count, generate::deployment)?;
    let few = rest.drain(..first).collect();
    let since = Timestamp::now();
    generate::create(client, "models", few, Pace::Burst).await?;
    observe::all_stable(client, "models", limit).await?;
    sleep(SETTLE).await;
    memory.first_deployments = operator.memory()?.0;

    let begin = Instant::now();
    generate::create(client, "models", rest, Pace::Burst).await?;
    observe::all_stable(client, "models", limit).await?;
    let stable_seconds = begin.elapsed().as_secs_f64();
    eprintln!("          {} deployments stable in {stable_seconds:.1} s", count - first);
    let begin = Instant::now();
    for index in (0..count).step_by(10) {
        let spec = json!({"podTemplate": {"env": [{"name": "ROUND", "value": "2"}]}});
        generate::change::<ModelDeployment>(client, "models", &format!("model-{index:04}"), &spec).await?;
    }
    observe::all_stable(client, "models", limit).await?;
    Ok(Deployments {
        count,
        first,
        stable_seconds,
        changed_seconds: begin.elapsed().as_secs_f64(),
        calls: observe::lives("models", since)?.calls,
    })
}
