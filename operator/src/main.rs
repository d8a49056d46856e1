//! `anneal-operator`: takes the Lease, then runs the controllers until it loses it or is told to stop.

mod memory;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anneal_operator::{
    api_server,
    check::{CheckError, check},
    context::{Context, Reach, Settings},
    cron_training_run, health,
    lease::{Lease, LeaseError},
    metrics::Metrics,
    model_deployment,
    options::Options,
    training_run, training_sweep,
};
use clap::Parser;
use kube::Config;
use tokio::{signal::unix::SignalKind, sync::watch};
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LOG_LEVEL")
                .unwrap_or_else(|_| "info,kube_client=warn,kube_runtime=warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => {
            error!(%problem, "no runtime could be started");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(operate(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(%problem, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no cluster is configured: {0}; set KUBECONFIG, or run in a pod with a service account")]
    Config(#[source] kube::config::InferConfigError),
    #[error("no client could be made: {0}")]
    Client(#[source] Box<kube::Error>),
    #[error("the metrics cannot be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the health port cannot be served: {0}")]
    Health(#[source] std::io::Error),
    #[error("the health port is no longer served")]
    HealthGone,
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("a controller ended, which it never should")]
    ControllerGone,
    #[error("the signals cannot be waited for: {0}")]
    Signal(#[source] std::io::Error),
}

async fn operate(options: Options) -> Result<(), Ended> {
    let config = Config::infer().await.map_err(Ended::Config)?;
    let inside = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let client = api_server::client(config.clone()).map_err(|problem| Ended::Client(Box::new(problem)))?;
    if options.check {
        let namespace = options.watch_namespace.as_ref().unwrap_or(&options.lease_namespace);
        check(&client, namespace).await?;
        info!(namespace, "the operator looks after runs");
        return Ok(());
    }
    let metrics = Metrics::new()?;
    let settings = Settings {
        trainer_image: options.trainer_image.clone(),
        server_image: options.server_image.clone(),
        image_pull_policy: options.image_pull_policy.clone(),
        failure_logs: options.failure_logs,
        reach: if inside { Reach::Address } else { Reach::Proxy },
    };
    let context = Arc::new(Context::new(client, settings, metrics.clone(), options.identity.clone()));

    let (ready, is_ready) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).map_err(Ended::Signal)?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt()).map_err(Ended::Signal)?;
    let mut health = tokio::spawn(health::serve(options.health_address, metrics, is_ready, ended(stopped)));

    let mut lease = tokio::select! {
        lease = Lease::prepare(&config, &options.lease_name, &options.lease_namespace, &options.identity) => lease?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        outcome = &mut health => return Err(unhealthy(outcome)),
    };
    // A replica that waits for the Lease is as healthy as one that has it.
    ready.send_replace(true);
    let outcome = tokio::select! {
        outcome = lead(&mut lease, &context, &options) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = &mut health => Err(unhealthy(outcome)),
    };
    // Whoever waits for the Lease need not wait until it runs out.
    match tokio::time::timeout(Duration::from_secs(5), lease.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => warn!(%problem, "the Lease could not be given back; it runs out by itself"),
        Err(_) => warn!("the Lease could not be given back in time; it runs out by itself"),
    }
    stop.send_replace(true);
    outcome
}

/// Why the health port is no longer served.
fn unhealthy(outcome: Result<std::io::Result<()>, tokio::task::JoinError>) -> Ended {
    match outcome {
        Ok(Err(problem)) => Ended::Health(problem),
        _ => Ended::HealthGone,
    }
}

/// Waits for the Lease, then runs the controllers for as long as it is held.
async fn lead(lease: &mut Lease, context: &Arc<Context>, options: &Options) -> Result<(), Ended> {
    info!(identity = options.identity, lease = options.lease_name, "waiting for the Lease");
    lease.acquired().await;
    info!(identity = options.identity, "leading");
    let namespace = options.watch_namespace.as_deref();
    tokio::select! {
        // The process ends with the Lease: a half-dead leader must not go on writing.
        problem = lease.lost() => Err(problem.into()),
        () = training_run::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerGone),
        () = training_sweep::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerGone),
        () = cron_training_run::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerGone),
        () = model_deployment::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerGone),
    }
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
