//! The report: what was measured, and whether the limits are kept.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use serde_json::json;

use crate::{
    measured::{Burst, Calls, Controlled, Jobs, Latency, Peer, Runs, read, read_if_any},
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
    let is_write =
        |what: &str| !["get", "list", "watch"].iter().any(|verb| what.starts_with(verb)) && !what.ends_with(" events");
    calls.iter().filter(|(what, _)| is_write(what)).map(|(_, count)| count).sum()
}

/// Megabytes of what the kernel counts in kB.
fn megabytes(kb: u64) -> f64 {
    per(kb, 1) * 1.024 / 1e3
}

/// What was measured.
struct Measured {
    jobs: Option<Jobs>,
    peer: Option<Peer>,
    runs: Runs,
}

/// What the limits are about.
struct Figures {
    ratio: Option<f64>,
    peak_mb: f64,
    kb_per_run: f64,
    kb_per_deployment: f64,
    writes_per_run: f64,
    idle_writes: f64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    fn of(Measured { jobs, runs, .. }: &Measured) -> Self {
        let (memory, burst, deployments) = (&runs.memory, &runs.many.burst, &runs.deployments);
        let kb_each = |before: u64, after: u64, count| per(after.saturating_sub(before), count) * 1.024;
        Self {
            ratio: jobs.as_ref().map(|jobs| burst.per_second / jobs.burst.per_second),
            peak_mb: megabytes(memory.peak),
            kb_per_run: kb_each(memory.first_runs, memory.runs, burst.count),
            kb_per_deployment: kb_each(
                memory.first_deployments,
                memory.deployments,
                deployments.count - deployments.first,
            ),
            writes_per_run: per(writes(&runs.many.calls), burst.count),
            idle_writes: runs.idle_writes.len() as f64,
        }
    }
}

/// Prints the tables and the RESULT line, draws the plots, and says whether every limit is kept.
pub fn report(out: &Path) -> Result<bool> {
    let measured = Measured {
        jobs: read_if_any(out, "jobs.json")?,
        peer: read_if_any(out, "peer.json")?,
        runs: read(out, "runs.json")?,
    };
    let Measured { jobs, peer, runs } = &measured;
    fs::write(out.join("operator-burst.svg"), plots::done(jobs.as_ref(), peer.as_ref(), runs))?;
    fs::write(out.join("operator-memory.svg"), plots::resident(peer.as_ref(), runs))?;
    tables(&measured);
    let figures = Figures::of(&measured);
    let of_peer = |value: fn(&Peer) -> f64, digits| peer.as_ref().map(|peer| rounded(value(peer), digits));
    println!(
        "RESULT {}",
        json!({
            "bench": "operator", "runs": runs.many.burst.count, "deployments": runs.deployments.count, "faked": runs.faked,
            "runs_per_second": rounded(runs.many.burst.per_second, 1),
            "ratio_vs_jobs": figures.ratio.map(|ratio| rounded(ratio, 2)),
            "jobset_per_second": of_peer(|peer| peer.many.burst.per_second, 1),
            "jobset_p99_creation_to_job_seconds": of_peer(|peer| peer.many.to_job.p99, 3),
            "jobset_peak_rss_mb": of_peer(|peer| megabytes(peer.peak), 1),
            "p99_burst_creation_to_job_seconds": rounded(runs.many.to_job.p99, 3),
            "p99_creation_to_job_seconds": rounded(runs.steady.to_job.p99, 3),
            "p99_small_namespace_seconds": rounded(runs.small_to_job.p99, 3),
            "p99_job_to_status_seconds": rounded(runs.steady.job_to_status.p99, 3),
            "reconciles_per_run": rounded(runs.reconciles / per(runs.many.burst.count as u64, 1), 1),
            "peak_rss_mb": rounded(figures.peak_mb, 1), "kb_per_run": rounded(figures.kb_per_run, 1),
            "kb_per_deployment": rounded(figures.kb_per_deployment, 1),
            "writes_per_run": rounded(figures.writes_per_run, 2),
            "synced_seconds": rounded(runs.synced_seconds, 1), "idle_writes": figures.idle_writes,
        })
    );
    let limits = [
        ("share of the bare Job controller's rate", figures.ratio, Limit::Least(0.9)),
        ("p99 of creation to Job at half of that rate, in seconds", Some(runs.steady.to_job.p99), Limit::Most(1.0)),
        ("p99 of creation to Job in a small namespace, in seconds", Some(runs.small_to_job.p99), Limit::Most(1.0)),
        ("resident memory, in MB", Some(figures.peak_mb), Limit::Most(120.0)),
        ("memory of a run, in kB", Some(figures.kb_per_run), Limit::Most(6.0)),
        ("memory of a deployment, in kB", Some(figures.kb_per_deployment), Limit::Most(25.0)),
        ("writes per run", Some(figures.writes_per_run), Limit::Most(6.0)),
        ("synced after a restart, in seconds", Some(runs.synced_seconds), Limit::Most(20.0)),
        ("writes when idle", Some(figures.idle_writes), Limit::Most(0.0)),
    ];
    let mut kept = true;
    for (what, value, limit) in limits {
        if let Some(value) = value.filter(|value| !limit.is_kept(*value)) {
            println!("MISSED {what}: {value:.2}, and it is to be {}", limit.words());
            kept = false;
        }
    }
    Ok(kept)
}

fn tables(measured: &Measured) {
    let runs = &measured.runs;
    println!("\n{:<62} {:>8} {:>8} {:>8}", "seconds", "p50", "p99", "most");
    latency("creation to Job, in the burst", &runs.many.to_job);
    latency("creation to Job, ten runs of another namespace in the burst", &runs.small_to_job);
    latency("creation to Job, at the fixed rate", &runs.steady.to_job);
    latency("end of the Job to the run's, in the burst", &runs.many.job_to_status);
    latency("end of the Job to the run's, at the fixed rate", &runs.steady.job_to_status);
    if let Some(peer) = &measured.peer {
        latency("creation of a JobSet to its Job, in its burst", &peer.many.to_job);
        latency("end of the Job to the JobSet's, in its burst", &peer.many.job_to_status);
    }
    calls("requests of the operator, per run of the burst", &runs.many.calls, runs.many.burst.count);
    println!("requests that failed: {:?}", runs.many.refused);
    if let Some(peer) = &measured.peer {
        calls("requests of JobSet's manager, per JobSet of the burst", &peer.many.calls, peer.many.burst.count);
        println!("requests that failed: {:?}", peer.many.refused);
    }
    calls("requests of the operator, per deployment", &runs.deployments.calls, runs.deployments.count);
    side_by_side(measured);
    println!(
        "\ndeployments stable after {:.1} s, changed ones after {:.1} s",
        runs.deployments.stable_seconds, runs.deployments.changed_seconds
    );
    println!("resident kB: {:?}", runs.memory);
    for write in &runs.idle_writes {
        println!("idle write: {write}");
    }
}

/// The burst of bare Jobs, of JobSets and of runs.
fn side_by_side(Measured { jobs, peer, runs }: &Measured) {
    let (jobs, peer) = (jobs.as_ref(), peer.as_ref());
    println!("\n{:<40} {:>10} {:>10} {:>10}", "the burst", "bare Jobs", "JobSets", "runs");
    let bursts = [jobs.map(|it| &it.burst), peer.map(|it| &it.many.burst), Some(&runs.many.burst)];
    row("done in a second", bursts.map(|burst| Some(burst?.per_second)));
    let of_each = |value: fn(&Controlled) -> f64| [None, peer.map(|it| value(&it.many)), Some(value(&runs.many))];
    row("seconds from creation to Job, p99", of_each(|it| it.to_job.p99));
    row("writes of the controller for each", of_each(|it| per(writes(&it.calls), it.burst.count)));
    row("kB that it sent for each", of_each(|it| per(it.bytes.0, it.burst.count) / 1e3));
    row("kB that it received for each", of_each(|it| per(it.bytes.1, it.burst.count) / 1e3));
    let memory = &runs.memory;
    row("its memory before, MB", [None, peer.map(|it| megabytes(it.empty)), Some(megabytes(memory.empty))]);
    row("its memory after, MB", [None, peer.map(|it| megabytes(it.after)), Some(megabytes(memory.runs))]);
    row("the most until then, MB", [None, peer.map(|it| megabytes(it.peak)), Some(megabytes(memory.runs_peak))]);
    println!("seconds of processor time per 1,000");
    let programs: BTreeSet<&String> = bursts.iter().flatten().flat_map(|burst| burst.cpu.keys()).collect();
    for program in programs {
        let time = |burst: &Burst| Some(burst.cpu.get(program)? / per(burst.count as u64, 1000));
        row(&format!("  {program}"), bursts.map(|burst| time(burst?)));
    }
}

fn row(what: &str, values: [Option<f64>; 3]) {
    let [jobs, peer, runs] = values.map(|value| value.map_or_else(String::new, |value| format!("{value:.1}")));
    println!("{what:<40} {jobs:>10} {peer:>10} {runs:>10}");
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
