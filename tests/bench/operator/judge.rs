//! The report: what was measured, and whether the limits are kept.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::json;

use crate::{
    measured::{Calls, Jobs, Latency, Runs, read},
    plots,
};

/// What must not be exceeded, or come to at least.
enum Limit {
    Most(f64),
    Least(f64),
}

impl Limit {
    fn is_kept(&self, value: f64) -> bool {
        match self {
            Self::Most(limit) => value <= *limit,
            Self::Least(limit) => value >= *limit,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Most(limit) => format!("at most {limit}"),
            Self::Least(limit) => format!("at least {limit}"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and kilobytes")]
fn per(amount: u64, count: usize) -> f64 {
    amount as f64 / count.max(1) as f64
}

fn rounded(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}

/// Writes to runs and their objects, Events aside.
fn writes(calls: &Calls) -> u64 {
    let is_write = |what: &str| !what.starts_with("get") && !what.starts_with("list") && !what.ends_with(" events");
    calls.iter().filter(|(what, _)| is_write(what)).map(|(_, count)| count).sum()
}

/// What the limits are about.
struct Figures {
    ratio: f64,
    peak_mb: f64,
    kb_per_run: f64,
    kb_per_deployment: f64,
    writes_per_run: f64,
    idle_writes: f64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    fn of(jobs: &Jobs, runs: &Runs) -> Self {
        let memory = &runs.memory;
        Self {
            ratio: runs.burst.per_second / jobs.burst.per_second,
            peak_mb: per(memory.peak, 1) * 1.024 / 1e3,
            kb_per_run: per(memory.runs.saturating_sub(memory.empty), runs.burst.count) * 1.024,
            kb_per_deployment: per(memory.deployments.saturating_sub(memory.steady), runs.deployments.count) * 1.024,
            writes_per_run: per(writes(&runs.calls), runs.burst.count),
            idle_writes: runs.idle_writes.len() as f64,
        }
    }
}

/// Prints the tables and the RESULT line, draws the plots, and says whether every limit is kept.
pub fn report(out: &Path) -> Result<bool> {
    let (jobs, runs): (Jobs, Runs) = (read(out, "jobs.json")?, read(out, "runs.json")?);
    fs::write(out.join("operator-burst.svg"), plots::done(&jobs, &runs))?;
    fs::write(out.join("operator-memory.svg"), plots::resident(&runs))?;
    tables(&jobs, &runs);
    let figures = Figures::of(&jobs, &runs);
    println!(
        "RESULT {}",
        json!({
            "bench": "operator", "runs": runs.burst.count, "deployments": runs.deployments.count,
            "runs_per_second": rounded(runs.burst.per_second, 1), "ratio_vs_jobs": rounded(figures.ratio, 2),
            "p99_creation_to_job_seconds": rounded(runs.steady.to_job.p99, 3),
            "p99_small_namespace_seconds": rounded(runs.small_to_job.p99, 3),
            "p99_job_to_status_seconds": rounded(runs.steady.job_to_status.p99, 3),
            "reconciles_per_run": rounded(runs.reconciles / per(runs.burst.count as u64, 1), 1),
            "peak_rss_mb": rounded(figures.peak_mb, 1), "kb_per_run": rounded(figures.kb_per_run, 1),
            "kb_per_deployment": rounded(figures.kb_per_deployment, 1),
            "writes_per_run": rounded(figures.writes_per_run, 2),
            "synced_seconds": rounded(runs.synced_seconds, 1), "idle_writes": figures.idle_writes,
        })
    );
    let limits = [
        ("share of the bare Job controller's rate", figures.ratio, Limit::Least(0.9)),
        ("p99 of creation to Job at half of that rate, in seconds", runs.steady.to_job.p99, Limit::Most(1.0)),
        ("p99 of creation to Job in a small namespace, in seconds", runs.small_to_job.p99, Limit::Most(1.0)),
        ("resident memory, in MB", figures.peak_mb, Limit::Most(120.0)),
        ("memory of a run, in kB", figures.kb_per_run, Limit::Most(6.0)),
        ("memory of a deployment, in kB", figures.kb_per_deployment, Limit::Most(25.0)),
        ("writes per run", figures.writes_per_run, Limit::Most(6.0)),
        ("synced after a restart, in seconds", runs.synced_seconds, Limit::Most(20.0)),
        ("writes when idle", figures.idle_writes, Limit::Most(0.0)),
    ];
    for (what, value, limit) in limits.iter().filter(|(_, value, limit)| !limit.is_kept(*value)) {
        println!("MISSED {what}: {value:.2}, and it is to be {}", limit.words());
    }
    Ok(limits.iter().all(|(_, value, limit)| limit.is_kept(*value)))
}

fn tables(jobs: &Jobs, runs: &Runs) {
    let (count, models) = (runs.burst.count, runs.deployments.count);
    println!("\n{:<62} {:>8} {:>8} {:>8}", "seconds", "p50", "p99", "most");
    latency("creation to Job, in the burst", &runs.burst_to_job);
    latency("creation to Job, ten runs of another namespace in the burst", &runs.small_to_job);
    latency("creation to Job, at the fixed rate", &runs.steady.to_job);
    latency("end of the Job to the run's, in the burst", &runs.job_to_status);
    latency("end of the Job to the run's, at the fixed rate", &runs.steady.job_to_status);
    calls("requests of the operator, per run of the burst", &runs.calls, count);
    println!("requests that failed: {:?}", runs.refused);
    calls("requests of the operator, per deployment", &runs.deployments.calls, models);
    println!("\nseconds of processor time per 1,000, bare Jobs and runs");
    for (program, time) in &runs.burst.cpu {
        let bare = jobs.burst.cpu.get(program).copied().unwrap_or_default();
        let (bare, time) = (bare / per(jobs.burst.count as u64, 1000), time / per(count as u64, 1000));
        println!("  {program:<20} {bare:>8.1} {time:>8.1}");
    }
    println!("\nbare Jobs {:.1}/s, runs {:.1}/s", jobs.burst.per_second, runs.burst.per_second);
    println!(
        "kB sent and received per run: {:.1}, {:.1}",
        per(runs.bytes.0, count) / 1e3,
        per(runs.bytes.1, count) / 1e3
    );
    println!(
        "deployments stable after {:.1} s, changed ones after {:.1} s",
        runs.deployments.stable_seconds, runs.deployments.changed_seconds
    );
    println!("resident kB: {:?}", runs.memory);
    for write in &runs.idle_writes {
        println!("idle write: {write}");
    }
}

fn latency(what: &str, latency: &Latency) {
    println!("{what:<62} {:>8.3} {:>8.3} {:>8.3}", latency.p50, latency.p99, latency.max);
}

fn calls(what: &str, calls: &Calls, count: usize) {
    println!("\n{what}");
    for (what, calls) in calls {
        println!("  {what:<34} {:>7.2}", per(*calls, count));
    }
}
