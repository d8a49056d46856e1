//! What was measured, as the phases write it down and the report reads it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Points of a curve.
pub type Curve = Vec<(f64, f64)>;

/// Times in seconds, of which the report shows three.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them are shorter.
    pub p50: f64,
    /// All but one in a hundred are shorter.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// Of these times.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let index = (seconds.len() * percent).div_ceil(100).max(1) - 1;
            seconds.get(index).copied().unwrap_or_default()
        };
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

/// Requests by verb and resource.
pub type Calls = BTreeMap<String, u64>;

/// Jobs or runs that came at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Burst {
    /// How many.
    pub count: usize,
    /// How many of them were done in a second, from the first creation to the last end.
    pub per_second: f64,
    /// Seconds since the first creation, and how many were done by then.
    pub done: Curve,
    /// Seconds of processor time, by program.
    pub cpu: BTreeMap<String, f64>,
}

/// The bare Job controller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Jobs {
    /// The burst.
    pub burst: Burst,
}

/// What a controller of custom resources did while objects came at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Controlled {
    /// The burst.
    pub burst: Burst,
    /// From an object's creation to its Job's.
    pub to_job: Latency,
    /// From the end of a Job to the object's own.
    pub job_to_status: Latency,
    /// Requests of the controller.
    pub calls: Calls,
    /// Those that failed, by status.
    pub refused: Calls,
    /// Bytes that the controller sent and received.
    pub bytes: (u64, u64),
}

/// Another controller of custom resources that make Jobs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    /// The burst.
    pub many: Controlled,
    /// Resident memory in kB before there was anything.
    pub empty: u64,
    /// Resident memory in kB after the burst.
    pub after: u64,
    /// The most at any time.
    pub peak: u64,
    /// Seconds since its start, and its resident memory in MB.
    pub resident: Curve,
}

/// The operator.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Runs {
    /// Whether Jobs were ended by the benchmark, and not by Kubernetes' Job controller.
    pub faked: bool,
    /// The burst.
    pub many: Controlled,
    /// From a run's creation to its Job's, in a namespace of ten runs that came in the middle of the burst.
    pub small_to_job: Latency,
    /// Reconciles of runs in the burst.
    pub reconciles: f64,
    /// Resident memory.
    pub memory: Memory,
    /// Runs that came at a fixed rate.
    pub steady: Steady,
    /// Deployments.
    pub deployments: Deployments,
    /// Writes of the operator in a minute in which nothing happened, Leases aside.
    pub idle_writes: Vec<String>,
    /// Seconds from taking the Lease until every run and deployment was looked at.
    pub synced_seconds: f64,
    /// Seconds since the operator's start, and its resident memory in MB.
    pub resident: Curve,
}

/// Resident memory of the operator in kB. What a run takes is told by what comes on top of the first tenth: whatever is taken
/// once, however many there are, has been taken by then.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Before there was anything.
    pub empty: u64,
    /// After the first tenth of the runs.
    pub first_runs: u64,
    /// After the burst.
    pub runs: u64,
    /// The most until then.
    pub runs_peak: u64,
    /// After the runs at a fixed rate.
    pub steady: u64,
    /// After the first tenth of the deployments.
    pub first_deployments: u64,
    /// After the deployments.
    pub deployments: u64,
    /// After a restart with all of them.
    pub restarted: u64,
    /// The most at any time.
    pub peak: u64,
}

/// Runs that came at a fixed rate, some of which failed, changed or paused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Steady {
    /// How many.
    pub count: usize,
    /// How many came in a second.
    pub per_second: f64,
    /// From a run's creation to its first Job's.
    pub to_job: Latency,
    /// From the end of a Job to the run's own.
    pub job_to_status: Latency,
}

/// Deployments, each of which was rolled out once, and one in ten twice.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Deployments {
    /// How many.
    pub count: usize,
    /// How many of them came first.
    pub first: usize,
    /// Seconds until all of them were stable.
    pub stable_seconds: f64,
    /// Seconds until those that changed were stable again.
    pub changed_seconds: f64,
    /// Requests of the operator.
    pub calls: Calls,
}

/// Writes what was measured.
pub fn write(out: &Path, name: &str, measured: &impl Serialize) -> Result<()> {
    let path = out.join(name);
    fs::write(&path, serde_json::to_string_pretty(measured)?).with_context(|| path.display().to_string())
}

/// Reads what was measured, if it was.
pub fn read_if_any<T: DeserializeOwned>(out: &Path, name: &str) -> Result<Option<T>> {
    if out.join(name).try_exists()? { read(out, name).map(Some) } else { Ok(None) }
}

/// Reads what was measured.
pub fn read<T: DeserializeOwned>(out: &Path, name: &str) -> Result<T> {
    let path = out.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}
