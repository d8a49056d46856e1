//! `anneal-operator`: takes the Lease, then runs the controllers until it loses it or is told to stop.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anneal_operator::{
    context::{Context, Reach, Settings},
    health,
    metrics::Metrics,
    model_deployment,
    options::Options,
    training_run,
};
use clap::Parser;
use kube::{Client, Config};
use kube_lease_manager::{LeaseCreateMode, LeaseManagerBuilder};
use tokio::{signal::unix::SignalKind, sync::watch};
use tracing::{error, info};

/// Name of the Lease of all replicas.
const LEASE: &str = "anneal-operator";
/// Seconds that a Lease lasts when its holder dies without a word.
const LEASE_SECONDS: u64 = 15;
/// Seconds before its end that the holder renews it.
const RENEW_BEFORE_SECONDS: u64 = 5;

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
    #[error("the Lease {LEASE} cannot be taken or kept: {0}; check the role for leases in coordination.k8s.io")]
    Lease(#[source] kube_lease_manager::LeaseManagerError),
    #[error("the Lease {LEASE} was lost; another replica has it, or the API server could not be reached in time")]
    LeaseLost,
    #[error("a controller ended, which it never should")]
    ControllerEnded,
    #[error("the signals cannot be waited for: {0}")]
    Signal(#[source] std::io::Error),
}

async fn operate(options: Options) -> Result<(), Ended> {
    let config = Config::infer().await.map_err(Ended::Config)?;
    let inside = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let client = Client::try_from(config).map_err(|problem| Ended::Client(Box::new(problem)))?;
    let metrics = Metrics::new()?;
    let settings = Settings {
        trainer_image: options.trainer_image.clone(),
        server_image: options.server_image.clone(),
        image_pull_policy: options.image_pull_policy.clone(),
        reach: if inside { Reach::Address } else { Reach::Proxy },
    };
    let context = Arc::new(Context::new(client.clone(), settings, metrics.clone(), options.identity.clone()));

    let (ready, is_ready) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let health = tokio::spawn(health::serve(options.health_address, metrics, is_ready, ended(stopped)));
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).map_err(Ended::Signal)?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt()).map_err(Ended::Signal)?;

    let lease = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(&options.lease_namespace)
        .with_identity(&options.identity)
        .with_field_manager(&options.identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(RENEW_BEFORE_SECONDS)
        .with_create_mode(LeaseCreateMode::AutoCreate)
        .build()
        .await
        .map_err(Ended::Lease)?;
    // A replica that waits for the Lease is as healthy as one that has it.
    ready.send_replace(true);
    info!(identity = options.identity, "waiting for the Lease");

    let outcome = tokio::select! {
        outcome = lead(&lease, &context, &options) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = health => match outcome {
            Ok(Err(problem)) => Err(Ended::Health(problem)),
            _ => Ok(()),
        },
    };
    // Whoever waits for the Lease need not wait until it runs out.
    if tokio::time::timeout(Duration::from_secs(5), lease.release()).await.is_err() {
        error!("the Lease could not be released in time; it runs out by itself");
    }
    stop.send_replace(true);
    outcome
}

/// Waits for the Lease, then runs the controllers for as long as it is held.
async fn lead(
    lease: &kube_lease_manager::LeaseManager,
    context: &Arc<Context>,
    options: &Options,
) -> Result<(), Ended> {
    while !lease.changed().await.map_err(Ended::Lease)? {}
    info!(identity = options.identity, "leading");
    let namespace = options.watch_namespace.as_deref();
    tokio::select! {
        // The process ends with the Lease: a half-dead leader must not go on writing.
        held = lease.changed() => match held {
            Ok(_) => Err(Ended::LeaseLost),
            Err(problem) => Err(Ended::Lease(problem)),
        },
        () = training_run::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerEnded),
        () = model_deployment::run(context.clone(), namespace, options.concurrency) => Err(Ended::ControllerEnded),
    }
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
