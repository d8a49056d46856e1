//! The operator as a process of this machine, behind a [`Proxy`]: it is started again whenever it ends, as the kubelet would.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use crate::{Absence, Namespace, Proxy, processes};

/// Pause before the process is started again: the kubelet's own first one is longer.
const PAUSE: Duration = Duration::from_millis(300);

/// The file that says by how many seconds its clock is turned.
const CLOCK: &str = "clock";

/// The operator as a process of this machine.
pub struct Program {
    /// What is between it and the API server.
    pub proxy: Arc<Proxy>,
    /// Its name in the Lease.
    pub name: String,
    folder: TempDir,
    ends: Arc<AtomicUsize>,
    process: watch::Receiver<Option<u32>>,
    task: JoinHandle<()>,
}

impl Program {
    /// Starts the operator that stood aside as a process that works in the test's namespace alone. `name` is its name in
    /// the Lease, which it shares with others of the same test. Its clock is its own: see [`Self::turn_clock`].
    ///
    /// # Errors
    /// When it does not start, or there is no C compiler.
    pub async fn start(ns: &Namespace, absence: &Absence, name: &str) -> Result<Self> {
        let folder = TempDir::new().context("no temporary folder")?;
        let proxy = Arc::new(Proxy::start(&absence.token).await?);
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, &proxy.kubeconfig).context("the kubeconfig cannot be written")?;
        // Free a moment ago.
        let health = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).context("no port is free")?;
        let clock = compile_clock(folder.path()).await?;
        let operator = &ns.cluster.operator;
        let mut command = Command::new(&absence.program);
        command
            .env_clear()
            .env("KUBECONFIG", &kubeconfig)
            // As in a pod: pods are asked by their address, and not through the API server.
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("ANNEAL_TRAINER_IMAGE", &operator.trainer_image)
            .env("ANNEAL_SERVER_IMAGE", &operator.server_image)
            .env("ANNEAL_IMAGE_PULL_POLICY", "IfNotPresent")
            .env("ANNEAL_WATCH_NAMESPACE", &ns.name)
            .env("ANNEAL_LEASE_NAMESPACE", &operator.namespace)
            .env("ANNEAL_LEASE_NAME", &operator.lease)
            .env("ANNEAL_IDENTITY", name)
            .env("ANNEAL_HEALTH_ADDRESS", health.to_string())
            .env("LD_PRELOAD", clock)
            .env("ANNEAL_CLOCK", folder.path().join(CLOCK))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let log = folder.path().join("log");
        let (tell, process) = watch::channel(None);
        let ends = Arc::<AtomicUsize>::default();
        let first = spawn(&mut command, &log)?;
        let task = tokio::spawn(keep_running(first, command, log, proxy.clone(), tell, ends.clone()));
        Ok(Self { proxy, name: name.to_owned(), folder, ends, process, task })
    }

    /// How often it has ended.
    pub fn ends(&self) -> usize {
        self.ends.load(Ordering::Relaxed)
    }

    /// How many requests it has made since, those about Leases aside.
    pub fn asked(&self, since: Timestamp) -> usize {
        self.proxy.asked(since).iter().filter(|asked| !asked.is_lease()).count()
    }

    /// Sends it a signal where it runs.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        let process = *self.process.borrow();
        match process {
            Some(process) => processes::kill(process, signal).await,
            None => Ok(()),
        }
    }

    /// Turns its clock by so many seconds against the machine's, from now on. The time that has passed since the machine started
    /// stays as it is: no change of a clock moves it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn turn_clock(&self, seconds: i64) -> Result<()> {
        // At once: the process reads it all the time.
        let (clock, aside) = (self.folder.path().join(CLOCK), self.folder.path().join("clock.new"));
        let written = fs::write(&aside, seconds.to_string()).and_then(|()| fs::rename(&aside, &clock));
        written.context("the clock cannot be written")
    }

    /// What it has written, all its processes together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Program {
    /// Ends it, and leaves what it said where a test that failed can be understood from it.
    fn drop(&mut self) {
        self.task.abort();
        let kept = std::env::temp_dir().join(format!("anneal-{}-{}.log", self.name, std::process::id()));
        if fs::copy(self.log_file(), &kept).is_ok() {
            eprintln!("what {} wrote is in {}", self.name, kept.display());
        }
    }
}

/// Starts the process again whenever it ends, as the kubelet would.
async fn keep_running(
    mut child: Child,
    mut command: Command,
    log: PathBuf,
    proxy: Arc<Proxy>,
    tell: watch::Sender<Option<u32>>,
    ends: Arc<AtomicUsize>,
) {
    loop {
        tell.send_replace(child.id());
        proxy.serves(child.id());
        let end = child.wait().await;
        proxy.serves(None);
        tell.send_replace(None);
        ends.fetch_add(1, Ordering::Relaxed);
        note(&log, &end.map_or_else(|problem| problem.to_string(), |end| end.to_string()));
        tokio::time::sleep(PAUSE).await;
        child = match spawn(&mut command, &log) {
            Ok(child) => child,
            Err(problem) => return eprintln!("the operator does not start again: {problem:#}"),
        };
    }
}

/// Compiles the library that turns the clock of a process.
async fn compile_clock(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
    let done = compiler.output().await.context("cc cannot be run; apt-get install gcc libc6-dev")?;
    ensure!(done.status.success(), "{source} cannot be compiled:\n{}", String::from_utf8_lossy(&done.stderr));
    Ok(library)
}

fn spawn(command: &mut Command, log: &PathBuf) -> Result<Child> {
    let file: File = OpenOptions::new().create(true).append(true).open(log).context("the log cannot be written")?;
    command.stderr(file).spawn().context("the operator's program cannot be started")
}

/// Notes in the log how a process ended.
fn note(log: &PathBuf, end: &str) {
    let line = format!("--- {} it ended: {end}\n", Timestamp::now());
    if let Ok(mut file) = OpenOptions::new().append(true).open(log) {
        // Only for whoever reads it later.
        let _ = file.write_all(line.as_bytes());
    }
}
