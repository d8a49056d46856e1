//! Pods come and go, and nobody notices.

use std::time::Duration;

use anneal_api::resources::ModelDeployment;
use anneal_tests::{Context as _, Namespace, Node, Outcome, Result, Watch, ensure, in_namespace, manifest};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::{
    scenario::{PATIENCE, pods_of, stable_revision, trained, until_stable},
    traffic::Traffic,
};

/// Requests that are sent meanwhile, at least; `ANNEAL_REQUESTS` says otherwise.
const REQUESTS: u64 = 600;
/// Time for which a node still sends requests to a pod that was told to stop, longer than the server's delay.
const LATE: Duration = Duration::from_secs(8);

#[tokio::test]
async fn pods_that_are_stopped_and_replaced_one_after_another_fail_no_request() -> Outcome {
    in_namespace(async |ns| {
        let wanted = std::env::var("ANNEAL_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(REQUESTS);
        let mut served = Served::start(ns).await?;
        let mut stopped = 0;
        loop {
            for pod in pods_of(ns, &served.revision).await? {
                served.replace(&pod).await?;
                stopped += 1;
            }
            let told = served.traffic.told().await?;
            if told.iter().map(|told| told.answers).sum::<u64>() >= wanted {
                break;
            }
        }
        served.nobody_noticed(stopped).await
    })
    .await
}

#[tokio::test]
async fn a_pod_that_is_stopped_before_its_node_learns_of_it_fails_no_request() -> Outcome {
    in_namespace(async |ns| {
        let mut served = Served::start(ns).await?;
        let pod = pods_of(ns, &served.revision).await?.pop().context("no pod serves")?;
        Node::first().pause("kube-proxy", LATE).await?;
        served.replace(&pod).await?;
        served.nobody_noticed(1).await
    })
    .await
}

/// A deployment of two pods with callers.
struct Served<'a> {
    ns: &'a Namespace,
    revision: String,
    deployment: Watch<Deployment>,
    traffic: Traffic<'a>,
}

impl<'a> Served<'a> {
    async fn start(ns: &'a Namespace) -> Result<Self> {
        trained(ns, "cats", json!({})).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment(
            "cats",
            json!({"model": {"trainingRunRef": {"name": "cats"}}, "replicas": 2}),
        ))
        .await?;
        let stable = until_stable(&mut cats).await?;
        let revision = stable_revision(&stable).context("no revision is stable")?.to_owned();
        let deployment = ns.watch(&format!("cats-{revision}"));
        Ok(Self { ns, revision, deployment, traffic: Traffic::start(ns).await? })
    }

    /// Stops a pod, and waits until it is gone and another one has taken its place.
    async fn replace(&mut self, pod: &str) -> Result<()> {
        // Returns when the pod is gone, which its server decides after it has answered everybody.
        self.ns.kubectl(&["delete", "pod", pod]).await?.ok()?;
        self.deployment.until("another pod has taken its place", PATIENCE, |it| ready(it) == 2).await?;
        Ok(())
    }

    /// Checks that every request was answered while these pods were stopped.
    async fn nobody_noticed(&self, stopped: usize) -> Result<()> {
        // The callers tell how it stands every two seconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let told = self.traffic.told().await?;
        let (answers, failed) = told.iter().fold((0, 0), |(a, f), told| (a + told.answers, f + told.failures));
        let gap = told.iter().map(|told| told.max_gap_seconds).fold(0.0, f64::max);
        println!(
            "RESULT {}",
            json!({
                "bench": "restart", "requests": answers + failed, "failed_requests": failed, "pods_stopped": stopped,
                "max_gap_seconds": gap
            })
        );
        let reasons: Vec<_> = told.iter().flat_map(|told| &told.reasons).collect();
        ensure!(failed == 0, "{failed} of {} requests failed: {reasons:?}", answers + failed);
        Ok(())
    }
}

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}
