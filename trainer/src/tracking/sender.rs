//! Sends the spool: in order, in batches, again and again until the server has taken each record.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

use super::{
    mlflow::{CallError, METRICS, Server},
    nap, spool,
    spool::{EVENTS, Event, Line, Metric, State},
};

/// Between two looks for new records; a record that comes is sent at once.
const IDLE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Records are left.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The server does not take them now.
    #[error("the tracking server {uri} does not take the records: {problem}; they stay on the volume")]
    Server {
        /// Its address.
        uri: String,
        /// What it says.
        problem: String,
    },
    /// A file of the run is not where it was; a later call may find it.
    #[error(
        "{}, which is to be sent, cannot be read: {source}; put it back, or take its line out of {EVENTS}", path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The spool cannot be read or its state not be written.
    #[error("the records cannot be read or marked as sent: {0}")]
    Spool(#[from] io::Error),
}

/// Sends on a thread of its own.
pub(super) struct Sender {
    dir: PathBuf,
    wake: SyncSender<()>,
    stop: Arc<AtomicBool>,
    finishing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    pub(super) fn start(dir: &Path, uri: &str) -> Self {
        let (wake, woken) = sync_channel(1);
        let (stop, finishing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, finished) = (stop.clone(), finishing.clone());
        let (own, address) = (dir.to_owned(), uri.to_owned());
        let send = move || match runtime() {
            Ok(runtime) => send(&runtime, &own, &address, &woken, &stopped, &finished),
            Err(error) => warn!("nothing is sent to {address}: {error}"),
        };
        let thread = thread::Builder::new().name("tracking".to_owned()).spawn(send).ok();
        Self { dir: dir.to_owned(), wake, stop, finishing, thread }
    }

    /// Something is there to be sent.
    pub(super) fn wake(&self) {
        // It is awake already where the channel is full.
        let _ = self.wake.try_send(());
    }

    /// Waits until all is sent, at most so long, and tells how many records are left.
    pub(super) fn finish(mut self, patience: Duration, waits: &dyn Fn()) -> usize {
        self.finishing.store(true, Ordering::Relaxed);
        self.wake();
        let until = Instant::now() + patience;
        let running = || self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        while running() && Instant::now() < until {
            waits();
            thread::sleep(Duration::from_millis(20));
        }
        self.stop.store(true, Ordering::Relaxed);
        // A call that hangs is given up with the process; what it was about is still in the spool.
        drop(self.thread.take());
        let sent = spool::read_state(&self.dir).sent;
        spool::read(&self.dir.join(EVENTS), sent).map_or(0, |(lines, _)| lines.len())
    }
}

/// What became of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// The server has them.
    pub(super) sent: usize,
    /// The server does not want them, now or ever.
    pub(super) refused: usize,
}

/// Sends all that lies in a spool.
pub(super) fn send_all(dir: &Path, uri: Option<&str>) -> Result<Done, SendError> {
    let runtime = runtime()?;
    let mut all = Done::default();
    loop {
        let done = step(&runtime, dir, uri)?;
        if done == Done::default() {
            return Ok(all);
        }
        all = Done { sent: all.sent + done.sent, refused: all.refused + done.refused };
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn send(runtime: &Runtime, dir: &Path, uri: &str, woken: &Receiver<()>, stop: &AtomicBool, finishing: &AtomicBool) {
    let mut pause = FIRST_PAUSE;
    let mut healthy = true;
    while !stop.load(Ordering::Relaxed) {
        let last = finishing.load(Ordering::Relaxed);
        match step(runtime, dir, Some(uri)) {
            Ok(done) if done == Done::default() => {
                if last {
                    return;
                }
                if woken.recv_timeout(IDLE) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
            Ok(_) => {
                if !healthy {
                    info!("{uri} takes records again");
                }
                (pause, healthy) = (FIRST_PAUSE, true);
            }
            Err(error) => {
                if healthy {
                    warn!("{error}; training goes on, and they are sent later");
                }
                healthy = false;
                // At the end there is little time; before, a server that comes up again is to have some peace.
                let until = Instant::now() + if last { FIRST_PAUSE } else { pause };
                while Instant::now() < until
                    && (last || !finishing.load(Ordering::Relaxed))
                    && !stop.load(Ordering::Relaxed)
                {
                    nap((Instant::now() + Duration::from_millis(100)).min(until), stop);
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Sends the next record, or as many with metrics as go into one batch.
fn step(runtime: &Runtime, dir: &Path, uri: Option<&str>) -> Result<Done, SendError> {
    let mut state = spool::read_state(dir);
    if let Some(uri) = uri {
        uri.clone_into(&mut state.uri);
    }
    if state.key.is_empty() {
        state.key = fresh_key(dir);
        spool::write_state(dir, &state)?;
    }
    let (lines, _) = spool::read(&dir.join(EVENTS), state.sent)?;
    let Some(first) = lines.first() else { return Ok(Done::default()) };
    let (batch, metrics) = batch(&lines);
    let server = Server::new(&state.uri);
    let sent = server.and_then(|server| {
        runtime.block_on(async {
            match &first.event {
                _ if !metrics.is_empty() => server.metrics(run(&state)?, &metrics).await,
                Some(event) => call(&server, event, dir, &mut state).await,
                None => Err(CallError::Never("it is no record".to_owned())),
            }
        })
    });
    let done = match sent {
        Ok(()) => Done { sent: batch, refused: 0 },
        Err(CallError::Later(problem)) => return Err(SendError::Server { uri: state.uri, problem }),
        Err(CallError::File { path, source }) => return Err(SendError::File { path, source }),
        Err(CallError::Never(problem)) => {
            warn!("{} refuses a record, which is kept in refused.jsonl: {problem}", state.uri);
            for line in &lines[..batch] {
                spool::keep_refused(dir, &line.text, &problem)?;
            }
            Done { sent: 0, refused: batch }
        }
    };
    state.sent = lines[batch - 1].end;
    spool::write_state(dir, &state)?;
    Ok(done)
}

/// How many lines go together, and their metrics: only lines with metrics do.
fn batch(lines: &[Line]) -> (usize, Vec<Metric>) {
    let mut all = Vec::new();
    let mut count = 0;
    for line in lines {
        match &line.event {
            Some(Event::Metrics { metrics } | Event::Epoch { metrics, .. }) if all.len() + metrics.len() <= METRICS => {
                all.extend_from_slice(metrics);
                count += 1;
            }
            _ => break,
        }
    }
    (count.max(1), all)
}

async fn call(server: &Server, event: &Event, dir: &Path, state: &mut State) -> Result<(), CallError> {
    match event {
        Event::Begin { experiment, run_name, start_time } => {
            if let Some(run) = &state.run_id {
                return server.update(run, "RUNNING", None).await;
            }
            let run = server.run(experiment, run_name, *start_time, &state.key).await?;
            (state.run_id, state.artifact_uri) = (Some(run.id), run.artifact_uri);
            Ok(())
        }
        Event::Params { params } => server.params(run(state)?, params).await,
        Event::Tags { tags } => server.tags(run(state)?, tags).await,
        // Lines without metrics.
        Event::Metrics { .. } | Event::Epoch { .. } => Ok(()),
        Event::Artifact { file, path } => server.upload(&state.artifact_uri, &dir.join(file), path).await,
        Event::Register { name, alias, path } => {
            server.register(run(state)?, &state.artifact_uri, name, alias.as_deref(), path).await
        }
        Event::End { status, end_time } => server.update(run(state)?, status, Some(*end_time)).await,
    }
}

fn run(state: &State) -> Result<&str, CallError> {
    state.run_id.as_deref().ok_or_else(|| CallError::Never("no run was begun before it".to_owned()))
}

/// What no other run has: its directory, this process and the moment.
fn fresh_key(dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let digest = Sha256::digest(format!("{} {host} {} {now}", dir.display(), std::process::id()));
    anneal_api::Sha256::from_bytes(digest.into()).short(32).to_owned()
}
