//! `anneal-operator --check`: asks an installation to look after a run, as `helm test` does.

use std::time::{Duration, Instant};

use anneal_api::resources::TrainingRun;
use kube::Client;
use serde_json::json;

use crate::cluster::{self, ClusterError};

/// Name of the run that is made, and deleted again.
const RUN: &str = "anneal-check";
/// Enough for another replica to take the Lease over, and to list what there is.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(500);

/// The installation does not work.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The run cannot be made, read or deleted.
    #[error("{0}; are the definitions installed, and may this service account use them?")]
    Cluster(#[from] ClusterError),
    /// No operator did anything.
    #[error(
        "no operator looked after training run {namespace}/{RUN} within {} s; \
         `kubectl get pods,lease -A | grep anneal` and the operator's log say why",
        PATIENCE.as_secs()
    )]
    Ignored {
        /// Where the run was.
        namespace: String,
    },
    /// The run is not what the definitions want.
    #[error("the run is invalid: {0}")]
    Run(#[from] serde_json::Error),
}

/// Makes a suspended run, which costs nothing, waits until an operator has given it a status, and deletes it.
///
/// # Errors
/// [`CheckError`], with where to look.
pub async fn check(client: &Client, namespace: &str) -> Result<(), CheckError> {
    let run: TrainingRun = serde_json::from_value(json!({
        "metadata": {"name": RUN},
        "spec": {"suspend": true, "dataset": {"uri": "synthetic://"}, "output": {"claimName": RUN}}
    }))?;
    // One that a former check left has a status already.
    cluster::delete(client, namespace, &run).await?;
    let metadata = cluster::create(client, namespace, &run).await?;
    let seen = looked_after(client, namespace).await;
    cluster::delete(client, namespace, &TrainingRun { metadata, ..run }).await?;
    if seen? { Ok(()) } else { Err(CheckError::Ignored { namespace: namespace.to_owned() }) }
}

async fn looked_after(client: &Client, namespace: &str) -> Result<bool, ClusterError> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let run: Option<TrainingRun> = cluster::get(client, namespace, RUN).await?;
        if run.is_some_and(|run| run.status.is_some()) {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(false)
}
