//! What the cluster says while it is measured, at little cost to it.

use std::time::{Duration, Instant};

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::Audit;
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::{Api, Client, Config, api::ListParams};

use crate::{
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
    let api: Api<ModelDeployment> = Api::namespaced(client.clone(), namespace);
    let begin = Instant::now();
    loop {
        let all = api.list(&ListParams::default()).await?.items;
        let is_stable = |it: &&ModelDeployment| {
            let status = it.status.as_ref();
            status.is_some_and(|status| {
                status.phase == Some(DeploymentPhase::Stable) && status.observed_generation == it.metadata.generation
            })
        };
        let stable = all.iter().filter(is_stable).count();
        if stable == all.len() {
            return Ok(());
        }
        let other = all.iter().find(|it| !is_stable(it)).and_then(|it| serde_json::to_string(&it.status).ok());
        ensure!(
            begin.elapsed() < within,
            "{stable} of {} deployments are stable after {within:?}; another one: {}",
            all.len(),
            other.unwrap_or_default()
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
