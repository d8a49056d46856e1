//! The processes of the controllers, and what those of the control plane use.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::measured::Curve;

/// Where the operator tells its metrics.
const METRICS: &str = "127.0.0.1:8080";
/// Where JobSet's manager says that it works, by its own default.
const READY: &str = "127.0.0.1:8081";
/// The kernel counts processor time in these.
const TICKS_PER_SECOND: f64 = 100.0;

/// Where the control plane keeps its files.
pub fn state() -> Result<PathBuf> {
    std::env::var_os("ANNEAL_BENCH_STATE")
        .map(PathBuf::from)
        .context("ANNEAL_BENCH_STATE is not set; run tests/bench/operator/run, which brings up a control plane")
}

/// What the samples of a process have shown.
#[derive(Default)]
struct Samples {
    resident: Curve,
    /// Bytes sent and received, by connection: one that was closed is remembered.
    connections: HashMap<String, (u64, u64)>,
}

/// A controller, as a process outside of the cluster with the rights that its own manifests give it.
pub struct Controller {
    child: Child,
    log: PathBuf,
    samples: Arc<Mutex<Samples>>,
    watcher: JoinHandle<()>,
}

impl Controller {
    /// Starts the operator.
    pub fn operator(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["--trainer-image", "trainer:1", "--server-image", "server:1", "--health-address", METRICS])
            .args(["--lease-name", "anneal", "--lease-namespace", "anneal-system"])
            .env("KUBECONFIG", state()?.join("operator.kubeconfig"))
            // As in a pod: it asks pods by their addresses, where nobody answers, and not through the API server.
            .env("KUBERNETES_SERVICE_HOST", "192.0.2.1");
        Self::start("operator", command)
    }

    /// Starts JobSet's manager.
    pub fn jobset(program: &Path) -> Result<Self> {
        let state = state()?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config={}", state.join("jobset/config.yaml").display()))
            .env("KUBECONFIG", state.join("jobset.kubeconfig"));
        Self::start("jobset", command)
    }

    fn start(name: &str, mut command: Command) -> Result<Self> {
        let log = state()?.join(format!("log/{name}.log"));
        let child = command.stderr(File::create(&log)?).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| command.get_program().display().to_string())?;
        let samples = Arc::<Mutex<Samples>>::default();
        let watcher = tokio::spawn(sample(child.id(), samples.clone()));
        Ok(Self { child, log, samples, watcher })
    }

    /// Waits until JobSet's manager works.
    pub async fn is_ready(&self) -> Result<()> {
        let begin = Instant::now();
        while !get(READY, "/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.0 200")) {
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            ensure!(
                begin.elapsed() < Duration::from_mins(1),
                "JobSet is not ready after a minute; its log:\n{}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Waits until the operator leads, and says since when.
    pub async fn leads(&self) -> Result<Timestamp> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_mins(1) {
            let log = fs::read_to_string(&self.log)?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = lines.into_iter().find(|line| line["message"] == "leading") {
                return Ok(line["timestamp"].as_str().unwrap_or_default().parse()?);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the operator did not lead within a minute; its log:\n{}", fs::read_to_string(&self.log)?)
    }

    /// The sum of a metric's series of the operator that hold all these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = get(METRICS, "/metrics").await.context("the operator does not tell its metrics")?;
        Ok(sum(&text, name, labels))
    }

    /// Waits until a counter has come to a value.
    pub async fn reaches(&self, name: &str, labels: &[&str], value: f64, within: Duration) -> Result<()> {
        self.until(name, labels, within, |now| now >= value).await
    }

    /// Waits until nothing waits for a reconcile.
    pub async fn has_no_queue(&self, within: Duration) -> Result<()> {
        self.until("anneal_queue_depth", &[], within, |now| now < 1.0).await
    }

    async fn until(&self, name: &str, labels: &[&str], within: Duration, is: impl Fn(f64) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = self.metric(name, labels).await?;
            if is(now) {
                return Ok(());
            }
            ensure!(begin.elapsed() < within, "{name} of the operator is still {now} after {within:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Resident memory now, and the most that there was, in kB.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
        };
        Ok((field("VmRSS"), field("VmHWM")))
    }

    /// Bytes that it sent and received.
    pub fn bytes(&self) -> (u64, u64) {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.connections.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// How its memory went.
    pub fn resident(&self) -> Curve {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).resident.clone()
    }

    /// Stops it as Kubernetes does.
    pub fn stop(mut self) -> Result<()> {
        self.watcher.abort();
        let sent = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(sent.success(), "{} ended by itself", self.log.display());
        let ended = self.child.wait()?;
        ensure!(ended.success(), "{} ended badly: {ended}", self.log.display());
        Ok(())
    }
}

/// What somebody who listens in plain HTTP answers, its head included.
async fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

async fn sample(process: u32, samples: Arc<Mutex<Samples>>) {
    let begin = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let Ok(statm) = fs::read_to_string(format!("/proc/{process}/statm")) else { return };
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
        let sockets = Command::new("ss").args(["-tinpOH"]).output().map(|output| output.stdout).unwrap_or_default();
        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.resident.push((begin.elapsed().as_secs_f64(), pages * 4096.0 / 1e6));
        let own = format!("pid={process},");
        for line in String::from_utf8_lossy(&sockets).lines().filter(|line| line.contains(&own)) {
            let count = |name: &str| {
                let found = line.split_whitespace().find_map(|field| field.strip_prefix(name)?.parse().ok());
                found.unwrap_or_default()
            };
            let connection: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
            samples.connections.insert(connection.join(" "), (count("bytes_sent:"), count("bytes_received:")));
        }
    }
}

/// Seconds of processor time, by program.
pub fn cpu() -> Result<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        // A process may end while it is looked at; what is not a process has no such file.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { continue };
        let ticks: f64 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        *all.entry(name.to_owned()).or_default() += ticks / TICKS_PER_SECOND;
    }
    Ok(all)
}

/// The processor time between two looks.
pub fn spent(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let since = |(name, time): (&String, &f64)| (name.clone(), time - before.get(name).copied().unwrap_or_default());
    after.iter().map(since).filter(|(_, time)| *time >= 0.1).collect()
}

/// The sum of a metric's series that hold all these labels, in Prometheus' text format.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let series = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    series
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
