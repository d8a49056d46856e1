//! What the process takes of its machine, under MLflow's names of system metrics.

use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    metrics, nap,
    spool::{Event, Spool},
};
use crate::machine;

/// Clock ticks a second that /proc counts in, on every Linux.
const TICKS: f64 = 100.0;
const MIB: f64 = 1_048_576.0;

/// Samples until it is dropped.
pub(super) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn start(spool: Arc<Mutex<Spool>>, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread =
            thread::Builder::new().name("system-metrics".to_owned()).spawn(move || sample(&spool, every, &stopped));
        Self { stop, thread: thread.ok() }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A sampler that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn sample(spool: &Mutex<Spool>, every: Duration, stop: &AtomicBool) {
    let cpus = machine::cpus();
    let limit = machine::memory();
    let mut before = (Instant::now(), cpu_seconds());
    let mut sample = 0;
    loop {
        nap(before.0 + every, stop);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let now = (Instant::now(), cpu_seconds());
        let mut values = Vec::new();
        if let (Some(then), Some(now_used)) = (before.1, now.1) {
            let share = (now_used - then) / (now.0 - before.0).as_secs_f64().max(1e-3) / cpus.max(1e-3);
            values.push(("system/cpu_utilization_percentage", share * 100.0));
        }
        if let Some(bytes) = resident_bytes() {
            values.push(("system/system_memory_usage_megabytes", bytes / MIB));
            #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
            values.extend(limit.map(|limit| ("system/system_memory_usage_percentage", bytes / limit as f64 * 100.0)));
        }
        if let Some((received, sent)) = network_bytes() {
            values.push(("system/network_receive_megabytes", received / MIB));
            values.push(("system/network_transmit_megabytes", sent / MIB));
        }
        before = now;
        // The disk is full: the training itself will say so.
        let _ = spool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(&Event::Metrics { metrics: metrics(values, sample) });
        sample += 1;
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process may hold spaces; it ends with the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
    Some((user + system) / TICKS)
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// Bytes that all interfaces but the loopback received and sent.
fn network_bytes() -> Option<(f64, f64)> {
    let table = fs::read_to_string("/proc/self/net/dev").ok()?;
    let rows = table.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    let numbers = rows.filter_map(|(_, row)| {
        let fields: Vec<f64> = row.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        Some((*fields.first()?, *fields.get(8)?))
    });
    Some(numbers.fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1)))
}
