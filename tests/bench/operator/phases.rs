//! The phases of the benchmark, each on a control plane of its own.

use std::{path::Path, time::Duration};

use anneal_api::resources::{ModelDeployment, TrainingRun};
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    generate::{self, Course, Pace},
    latency::Lives,
    measured::{self, Burst, Deployments, Jobs, Memory, Runs, Steady},
    observe,
    processes::{Operator, cpu, spent},
};

/// Runs of the namespace that must not wait for the large one.
const FEW: usize = 10;
/// How long the runs at a fixed rate arrive.
const STEADY_SECONDS: f64 = 30.0;
/// How long the operator is watched for writes that nothing asks for.
const IDLE: Duration = Duration::from_mins(1);
/// How long the control plane is left alone first: it is busy with its own start.
const CALM: Duration = Duration::from_secs(10);
/// The operator's counter of ended runs.
const FINISHED: &str = "anneal_training_runs_finished_total";
/// The operator's counter of reconciles.
const RECONCILES: &str = "anneal_reconciles_total";

/// Longest time that so many runs or Jobs may take.
fn patience(count: usize) -> Duration {
    Duration::from_mins(2) + Duration::from_millis(200) * u32::try_from(count).unwrap_or(u32::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts of runs")]
fn burst(count: usize, lives: &Lives, cpu: std::collections::BTreeMap<String, f64>) -> Burst {
    let done = lives.done();
    let seconds = done.last().map_or(f64::INFINITY, |point| point.0);
    Burst { count, per_second: count as f64 / seconds, done, cpu }
}

/// The bare Job controller, with the Jobs that the operator would make.
pub async fn jobs(count: usize, out: &Path) -> Result<()> {
    let client = Client::try_default().await?;
    generate::namespace(&client, "many").await?;
    let jobs = (0..count).map(generate::job).collect::<Result<Vec<_>>>()?;
    sleep(CALM).await;
    let (since, before) = (Timestamp::now(), cpu()?);
    generate::create(&client, "many", jobs, Pace::Burst).await?;
    observe::jobs_finished(count, patience(count)).await?;
    let spent = spent(&before, &cpu()?);
    let burst = burst(count, &observe::lives("many", since)?, spent);
    eprintln!("          {count} bare Jobs: {:.1}/s", burst.per_second);
    measured::write(out, "jobs.json", &Jobs { burst })
}

/// The operator: a burst, runs at half of the bare Job controller's rate, deployments, a minute of rest, a restart.
pub async fn runs(count: usize, deployments: usize, program: &Path, out: &Path) -> Result<()> {
    let floor: Jobs = measured::read(out, "jobs.json").context("measure the bare Jobs first")?;
    let client = Client::try_default().await?;
    for namespace in ["many", "few", "steady", "models"] {
        generate::namespace(&client, namespace).await?;
    }
    let operator = Operator::start(program)?;
    operator.leads().await?;
    sleep(CALM).await;
    let mut runs = Runs { memory: Memory { empty: operator.memory()?.0, ..Memory::default() }, ..Runs::default() };

    run_burst(&client, &operator, count, &mut runs).await?;
    sleep(Duration::from_secs(10)).await;
    runs.memory.runs = operator.memory()?.0;
    measured::write(out, "runs.json", &runs)?;

    runs.steady = steady(&client, &operator, floor.burst.per_second / 2.0).await?;
    sleep(Duration::from_secs(10)).await;
    runs.memory.steady = operator.memory()?.0;

    runs.deployments = roll_out(&client, deployments).await?;
    sleep(Duration::from_secs(10)).await;
    runs.memory.deployments = operator.memory()?.0;
    measured::write(out, "runs.json", &runs)?;

    let since = Timestamp::now();
    sleep(IDLE).await;
    runs.idle_writes = observe::writes(since)?;
    runs.memory.peak = operator.memory()?.1;
    runs.resident = operator.resident();
    operator.stop()?;

    let operator = Operator::start(program)?;
    let leading = operator.leads().await?;
    let known = count + FEW + runs.steady.count;
    let success = "result=\"success\"";
    for (kind, count) in [("kind=\"trainingrun\"", known), ("kind=\"modeldeployment\"", deployments)] {
        #[expect(clippy::cast_precision_loss, reason = "counts of objects")]
        operator.reaches(RECONCILES, &[kind, success], count as f64, Duration::from_mins(5)).await?;
    }
    runs.synced_seconds = Timestamp::now().duration_since(leading).as_secs_f64();
    sleep(Duration::from_secs(5)).await;
    let (resident, peak) = operator.memory()?;
    runs.memory.restarted = resident;
    runs.memory.peak = runs.memory.peak.max(peak);
    operator.stop()?;
    measured::write(out, "runs.json", &runs)
}

async fn run_burst(client: &Client, operator: &Operator, count: usize, runs: &mut Runs) -> Result<()> {
    let many = (0..count).map(|index| generate::run(index, Course::Good)).collect::<Result<Vec<_>>>()?;
    let few = (0..FEW).map(|index| generate::run(index, Course::Good)).collect::<Result<Vec<_>>>()?;
    let ours = ["kind=\"trainingrun\""];
    let (since, before) = (Timestamp::now(), cpu()?);
    let (bytes, reconciled) = (operator.bytes(), operator.metric(RECONCILES, &ours).await?);
    generate::create(client, "many", many, Pace::Burst).await?;
    eprintln!("          {count} runs created in {:.1} s", Timestamp::now().duration_since(since).as_secs_f64());
    generate::create(client, "few", few, Pace::Burst).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    operator.reaches(FINISHED, &[], (count + FEW) as f64, patience(count)).await?;
    let spent = spent(&before, &cpu()?);
    // Its samples are taken once a second.
    sleep(Duration::from_secs(2)).await;
    let total = operator.bytes();
    runs.bytes = (total.0 - bytes.0, total.1 - bytes.1);
    runs.reconciles = operator.metric(RECONCILES, &ours).await? - reconciled;
    let lives = observe::lives("many", since)?;
    runs.burst = burst(count, &lives, spent);
    runs.burst_to_job = lives.to_job();
    runs.job_to_status = lives.job_to_status();
    runs.small_to_job = observe::lives("few", since)?.to_job();
    eprintln!("          {count} runs: {:.1}/s", runs.burst.per_second);
    (runs.calls, runs.refused) = (lives.calls, lives.refused);
    Ok(())
}

/// Runs that arrive one after the other; one in twenty fails, changes or is suspended for a while, each.
async fn steady(client: &Client, operator: &Operator, per_second: f64) -> Result<Steady> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of runs")]
    let count = (per_second * STEADY_SECONDS).ceil() as usize;
    let all = (0..count).map(|index| generate::run(index, Course::of(index))).collect::<Result<Vec<_>>>()?;
    let finished = operator.metric(FINISHED, &[]).await?;
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
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    operator.reaches(FINISHED, &[], finished + count as f64, patience(count)).await?;
    let lives = observe::lives("steady", since)?;
    eprintln!("          {count} runs at {per_second:.1}/s");
    Ok(Steady { count, per_second, to_job: lives.to_job(), job_to_status: lives.job_to_status() })
}

/// Deployments that come at once, and a new revision of one in ten.
async fn roll_out(client: &Client, count: usize) -> Result<Deployments> {
    let all = (0..count).map(generate::deployment).collect::<Result<Vec<_>>>()?;
    let (since, begin) = (Timestamp::now(), Instant::now());
    generate::create(client, "models", all, Pace::Burst).await?;
    observe::all_stable(client, "models", patience(10 * count)).await?;
    let stable_seconds = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for index in (0..count).step_by(10) {
        let spec = json!({"podTemplate": {"env": [{"name": "ROUND", "value": "2"}]}});
        generate::change::<ModelDeployment>(client, "models", &format!("model-{index:04}"), &spec).await?;
    }
    observe::all_stable(client, "models", patience(10 * count)).await?;
    eprintln!("          {count} deployments stable in {stable_seconds:.1} s");
    Ok(Deployments {
        count,
        stable_seconds,
        changed_seconds: begin.elapsed().as_secs_f64(),
        calls: observe::lives("models", since)?.calls,
    })
}
