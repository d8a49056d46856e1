//! The life of a serving process: listen, verify, load, warm up, serve, drain.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anneal_api::failure::FailureClass;
use anneal_model::preprocess::ImageLimits;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use warp::http::HeaderValue;

use crate::{
    engine::{Bounds, Engine, StartError},
    frame::Frame,
    last_words,
    life::{Life, Serving},
    listener::{self, Limits, Open, Serve},
    metrics::Metrics,
    model::{self, LoadError, Loaded, Wanted},
    options::ServeOptions,
    routes::{Context, UPLOAD_UNIT},
    tls::{self, ServerTls},
    token::{self, Tokens},
    traces::Traces,
    tune::{self, Setting},
    watched::{Watched, WatchedError},
};

/// Images of one forward pass at most, where nothing else is asked for or was found.
const BATCH: u16 = 4;

/// Why the process ends without having been asked to.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Access(#[from] WatchedError),
    #[error("{0}")]
    Start(String),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the checkpoint {}: {error}", checkpoint.display())]
    WarmUp { checkpoint: PathBuf, error: StartError },
    #[error(
        "the model's thread {0} ended by itself; its panic is in the log above. The process ends, so that it is restarted"
    )]
    WorkerDied(String),
}

impl Failed {
    fn class(&self) -> FailureClass {
        match self {
            Self::Config(_) | Self::Access(_) => FailureClass::BadConfig,
            Self::Load(error) => error.class(),
            Self::WarmUp { error: StartError::WarmUp(_), .. } => FailureClass::LoadFailed,
            Self::Start(_) | Self::WorkerDied(_) | Self::WarmUp { error: StartError::Thread(_), .. } => {
                FailureClass::AppError
            }
        }
    }
}

/// Serves until SIGTERM or SIGINT, and gives the process' exit code.
pub async fn run(options: ServeOptions) -> i32 {
    match serve(options).await {
        Ok(()) => 0,
        Err(failed) => last_words::failure(failed.class(), &failed.to_string()),
    }
}

async fn serve(options: ServeOptions) -> Result<(), Failed> {
    let checkpoint = checkpoint(&options)?;
    let setting = tune::recall(options.tuning.as_deref(), &checkpoint, options.precision);
    let wanted = wanted(&options, checkpoint, setting.as_ref());
    let bounds = bounds(&options, setting.as_ref());
    let revision = revision(&options)?;
    let (tls, tokens) = (tls(&options)?, tokens(&options)?);
    let mut stop = Stop::listen()?;
    let metrics =
        Metrics::new().map_err(|error| Failed::Start(format!("the metrics cannot be registered: {error}")))?;
    let life = Life::default();

    let listener = listen(&options).await?;
    let context = Context {
        life: life.clone(),
        metrics: metrics.clone(),
        uploads: Arc::new(Semaphore::new(upload_units(&options))),
        max_upload_bytes: options.max_upload_bytes,
        request_timeout: options.request_timeout,
    };
    let limits = Limits { connections: usize::from(options.max_connections), max_age: options.max_connection_age };
    let traces = traces().await?;
    let frame = Arc::new(Frame::new(context, revision, tokens).traced(traces.clone()));
    let server = Server::start(listener, Serve { frame, life: life.clone(), limits, tls });

    let (dead, mut deaths) = mpsc::unbounded_channel();
    let outcome = tokio::select! {
        outcome = load_and_watch(&options, wanted, bounds, &life, &metrics, dead, &mut deaths) => outcome,
        () = stop.asked() => Ok(()),
    };
    outcome?;
    let ended = tokio::select! {
        () = wind_down(&options, &life, server, &mut stop) => Ok(()),
        Some(name) = deaths.recv() => Err(Failed::WorkerDied(name)),
    };
    if let Some(traces) = traces {
        // It panics where the process is about to end anyway.
        let _ = tokio::task::spawn_blocking(move || traces.end()).await;
    }
    ended
}

/// Where spans go, set up on a thread that may block.
async fn traces() -> Result<Option<Traces>, Failed> {
    match tokio::task::spawn_blocking(Traces::from_environment).await {
        Ok(traces) => traces.map_err(Failed::Config),
        Err(error) => Err(Failed::Start(format!("traces cannot be set up: {error}"))),
    }
}

/// Loads the model and then waits for a thread's death, the only way in which serving ends by itself.
async fn load_and_watch(
    options: &ServeOptions,
    wanted: Wanted,
    bounds: Bounds,
    life: &Life,
    metrics: &Metrics,
    dead: mpsc::UnboundedSender<String>,
    deaths: &mut mpsc::UnboundedReceiver<String>,
) -> Result<(), Failed> {
    let checkpoint = wanted.checkpoint.clone();
    let Loaded { facts, predictors, took } = load(wanted).await?;
    life.starting("the model is being warmed up");
    metrics.loaded(
        facts.sha256.as_str(),
        facts.model_type,
        options.revision.as_deref().unwrap_or_default(),
        &facts.classes,
        took,
    );
    let engine =
        Engine::start(predictors, bounds, &dead).await.map_err(|error| Failed::WarmUp { checkpoint, error })?;
    tracing::info!(
        sha256 = facts.sha256.as_str(),
        model = facts.model_type,
        workers = facts.workers,
        seconds = took.as_secs_f64(),
        "the model is loaded; the server is ready"
    );
    let secret = options.feedback_key.as_deref().filter(|secret| !secret.is_empty());
    life.ready(Serving::new(facts, engine, secret));
    // `dead` is still held here, so there is a name or nothing.
    let name = deaths.recv().await.unwrap_or_default();
    Err(Failed::WorkerDied(name))
}

/// Loads the model on a thread of its own, so that a signal need not wait for it.
async fn load(wanted: Wanted) -> Result<Loaded, Failed> {
    let (sender, loaded) = oneshot::channel();
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            // Nobody waits any more once the process was asked to stop.
            let _ = sender.send(model::load(&wanted));
        })
        .map_err(|error| Failed::Start(format!("the loading thread cannot be started: {error}")))?;
    match loaded.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failed::WorkerDied("load".to_owned())),
    }
}

/// Refuses new clients, serves on while load balancers learn of it, then lets requests under way finish. A second
/// signal ends the wait.
async fn wind_down(options: &ServeOptions, life: &Life, server: Server, stop: &mut Stop) {
    life.stopping();
    tracing::info!(
        seconds = options.shutdown_delay.as_secs_f64(),
        "asked to stop; serving on until clients have moved"
    );
    let told = Instant::now();
    tokio::select! {
        () = until_nobody_comes(options, life) => {}
        () = stop.asked() => {}
    }
    let Some(open) = server.stop().await else { return };
    let waited = told.elapsed().saturating_sub(options.shutdown_delay);
    let rest = options.drain_timeout.saturating_sub(waited);
    if open.drain(rest).await {
        tracing::info!("all requests are answered; bye");
    } else {
        tracing::warn!(seconds = rest.as_secs_f64(), "some requests were not finished in time");
    }
}

/// Waits for the delay, and for half of it without a client: a node that is busy learns late that this pod takes
/// no more, and whom it still sends here would find nobody. That takes at most half of the time for requests under way.
async fn until_nobody_comes(options: &ServeOptions, life: &Life) {
    if options.shutdown_delay.is_zero() {
        return;
    }
    let quiet = options.shutdown_delay / 2;
    let mut end = Instant::now() + options.shutdown_delay;
    let latest = end + options.drain_timeout / 2;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(end.min(latest)) => break,
            () = life.asked_late() => end = end.max(Instant::now() + quiet),
        }
    }
    if end > latest {
        tracing::warn!("clients still come; those that come after this will find nobody here");
    }
}

/// The accept loop in its task.
struct Server {
    task: JoinHandle<Open>,
    stop: oneshot::Sender<()>,
}

impl Server {
    fn start(listener: TcpListener, with: Serve) -> Self {
        let (stop, stopped) = oneshot::channel();
        let stopped = async move {
            // Dropped or sent, it means the same.
            let _ = stopped.await;
        };
        Self { task: tokio::spawn(listener::accept(listener, with, stopped)), stop }
    }

    async fn stop(self) -> Option<Open> {
        let _ = self.stop.send(());
        self.task.await.ok()
    }
}

/// SIGTERM, which Kubernetes sends, and SIGINT, which a terminal sends.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self, Failed> {
        let listen = |kind| signal(kind).map_err(|error| Failed::Start(format!("signals cannot be received: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn checkpoint(options: &ServeOptions) -> Result<PathBuf, Failed> {
    let checkpoint = options.checkpoint.clone().filter(|path| *path != PathBuf::new());
    checkpoint
        .ok_or_else(|| Failed::Config("no checkpoint is named; give --checkpoint FILE or set MODEL_PATH".to_owned()))
}

fn bounds(options: &ServeOptions, setting: Option<&Setting>) -> Bounds {
    let batch = options.batch.or_else(|| setting.map(|it| it.batch)).unwrap_or(BATCH);
    Bounds { queue: usize::from(options.queue), batch: usize::from(batch) }
}

fn wanted(options: &ServeOptions, checkpoint: PathBuf, setting: Option<&Setting>) -> Wanted {
    let workers = options.workers.or_else(|| setting.map(|it| it.workers));
    Wanted {
        checkpoint,
        sha256: options.sha256.clone().and_then(|digest| digest.0),
        name: options.model_name.clone().filter(|name| !name.is_empty()),
        workers: workers.map_or_else(model::workers, usize::from),
        precision: options.precision.into(),
        decode: options.decode,
        images: ImageLimits { max_pixels: options.max_pixels, ..ImageLimits::default() },
    }
}

fn revision(options: &ServeOptions) -> Result<Option<HeaderValue>, Failed> {
    let Some(revision) = options.revision.as_deref().filter(|revision| !revision.is_empty()) else { return Ok(None) };
    let value = HeaderValue::from_str(revision);
    value.map(Some).map_err(|_| {
        Failed::Config(format!("the revision {revision:?} cannot be an HTTP header; use letters, digits and dashes"))
    })
}

/// TLS, kept fresh for as long as the process lives.
fn tls(options: &ServeOptions) -> Result<Option<Arc<ServerTls>>, Failed> {
    let (Some(certificate), Some(key)) = (&options.tls_cert, &options.tls_key) else { return Ok(None) };
    let tls = Arc::new(tls::server(certificate, key, options.tls_client_ca.as_deref())?);
    let kept = Arc::clone(&tls);
    tokio::spawn(async move { kept.keep_fresh().await });
    Ok(Some(tls))
}

/// The tokens that open the server, kept fresh likewise.
fn tokens(options: &ServeOptions) -> Result<Option<Arc<Watched<Tokens>>>, Failed> {
    let Some(file) = &options.token_file else { return Ok(None) };
    let tokens = Arc::new(token::read(file)?);
    let kept = Arc::clone(&tokens);
    tokio::spawn(async move { kept.keep_fresh().await });
    Ok(Some(tokens))
}

async fn listen(options: &ServeOptions) -> Result<TcpListener, Failed> {
    let wanted = || options.listen.map_or_else(|| format!("port {}", options.port), |address| address.to_string());
    let failed =
        |error| Failed::Start(format!("cannot listen on {}: {error}; choose another with --listen or PORT", wanted()));
    let listener = listener::bind(options.listen, options.port).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, port = address.port(), "listening");
    if let Some(file) = &options.port_file {
        write_port(file, address.port())?;
    }
    Ok(listener)
}

/// Whoever waits for the file never sees it half written.
fn write_port(file: &Path, port: u16) -> Result<(), Failed> {
    let temporary = file.with_extension("tmp");
    std::fs::write(&temporary, format!("{port}\n"))
        .and_then(|()| std::fs::rename(&temporary, file))
        .map_err(|error| Failed::Start(format!("the port cannot be written to {}: {error}", file.display())))
}

fn upload_units(options: &ServeOptions) -> usize {
    let bytes = options.max_uploads_bytes.max(options.max_upload_bytes);
    usize::try_from(bytes.div_ceil(UPLOAD_UNIT)).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS)
}
