//! What the cluster says while it is measured, at little cost to it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::{Audit, Object};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::{Api, Client, Config, api::ListParams};

use crate::{
    generate::JobSet,
    latency::{Lives, OPERATOR},
    processes::sum,
};

/// The controller manager's own port, with its metrics.
const CONTROLLER_MANAGER: &str = "https://127.0.0.1:10257";

/// The audit log of the control plane.
fn audit() -> Result<Audit> {
    Audit::of_cluster().context("ANNEAL_AUDIT_LOG names no audit log")
}

/// What happened in a namespace since then.
pub fn lives(namespace: &str, since: Timestamp) -> Result<Lives> {
    let mut lives = Lives::default();
    audit()?.each(None, since, |request| {
        if request.namespace == namespace {
            lives.take(&request);
        }
    })?;
    Ok(lives)
}

/// What the operator wrote since then, Leases aside.
pub fn writes(since: Timestamp) -> Result<Vec<String>> {
    let mut writes = Vec::new();
    audit()?.each(Some(OPERATOR), since, |request| {
        let is_read = matches!(request.verb.as_str(), "get" | "list" | "watch");
        if !is_read && request.resource != "leases" {
            writes.push(request.to_string());
        }
    })?;
    Ok(writes)
}

/// Waits until the operator has looked at so many deployments since then, and says when it began with the last one.
pub async fn all_looked_at(deployments: usize, since: Timestamp, within: Duration) -> Result<Timestamp> {
    let begin = Instant::now();
    loop {
        let mut first = HashMap::new();
        audit()?.each(Some(OPERATOR), since, |request| {
            if request.verb == "get" && request.resource == "modeldeployments" {
                first.entry(request.name).or_insert(request.answered);
            }
        })?;
        if first.len() >= deployments {
            return Ok(first.into_values().max().unwrap_or(since));
        }
        ensure!(begin.elapsed() < within, "{} of {deployments} deployments were looked at in {within:?}", first.len());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Waits until Kubernetes' Job controller has counted so many ends of Jobs.
pub async fn jobs_finished(count: usize, within: Duration) -> Result<()> {
    let mut config = Config::infer().await?;
    config.cluster_url = CONTROLLER_MANAGER.parse()?;
    // It made its certificate itself.
    config.accept_invalid_certs = true;
    let client = Client::try_from(config)?;
    let begin = Instant::now();
    loop {
        let request = hyper::Request::get("/metrics").body(Vec::new())?;
        let text = client.request_text(request).await.context("the controller manager does not tell its metrics")?;
        let finished = sum(&text, "job_controller_jobs_finished_total", &[]);
        #[expect(clippy::cast_precision_loss, reason = "a count of Jobs")]
        if finished >= count as f64 {
            return Ok(());
        }
        ensure!(begin.elapsed() < within, "{finished} of {count} Jobs have ended after {within:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until every deployment of a namespace is stable as it is specified now.
pub async fn all_stable(client: &Client, namespace: &str, within: Duration) -> Result<()> {
    all::<ModelDeployment>(client, namespace, within, |it| {
        it.status.as_ref().is_some_and(|status| {
            status.phase == Some(DeploymentPhase::Stable) && status.observed_generation == it.metadata.generation
        })
    })
    .await
}

/// Waits until every JobSet of a namespace has completed.
pub async fn all_completed(client: &Client, namespace: &str, within: Duration) -> Result<()> {
    all::<JobSet>(client, namespace, within, |it| {
        it.status.as_ref().is_some_and(|status| status.terminal_state.as_deref() == Some("Completed"))
    })
    .await
}

/// Waits until every object of a namespace is as it should be.
async fn all<K: Object>(
    client: &Client,
    namespace: &str,
    within: Duration,
    is_done: impl Fn(&K) -> bool,
) -> Result<()> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let begin = Instant::now();
    loop {
        let asked = Instant::now();
        let all = api.list(&ListParams::default()).await?.items;
        let other = all.iter().find(|it| !is_done(it));
        let Some(other) = other else { return Ok(()) };
        ensure!(
            begin.elapsed() < within,
            "{} of {} are not done after {within:?}; one of them: {}",
            all.iter().filter(|it| !is_done(it)).count(),
            all.len(),
            serde_json::to_string(other)?
        );
        // To look takes no more than a tenth of the time.
        tokio::time::sleep(Duration::from_secs(2).max(10 * asked.elapsed())).await;
    }
}
