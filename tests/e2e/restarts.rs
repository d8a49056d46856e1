//! Pods come and go, and nobody notices.

use std::time::Duration;

use anneal_api::resources::ModelDeployment;
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::{
    scenario::{PATIENCE, pods_of, stable_revision, trained, until_stable},
    traffic::Traffic,
};

/// Requests that are sent meanwhile, at least; `ANNEAL_REQUESTS` says otherwise.
const REQUESTS: u64 = 600;

#[tokio::test]
async fn pods_that_are_stopped_and_replaced_one_after_another_fail_no_request() -> Outcome {
    in_namespace(async |ns| {
        let wanted = std::env::var("ANNEAL_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(REQUESTS);
        trained(ns, "cats", json!({})).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment(
            "cats",
            json!({"model": {"trainingRunRef": {"name": "cats"}}, "replicas": 2}),
        ))
        .await?;
        let stable = until_stable(&mut cats).await?;
        let revision = stable_revision(&stable).context("no revision is stable")?;
        let mut deployment = ns.watch::<Deployment>(&format!("cats-{revision}"));
        let traffic = Traffic::start(ns).await?;

        let mut stopped = 0;
        loop {
            for pod in pods_of(ns, revision).await? {
                // Returns when the pod is gone, which its server decides after it has answered everybody.
                ns.kubectl(&["delete", "pod", &pod]).await?.ok()?;
                deployment.until("another pod has taken its place", PATIENCE, |it| ready(it) == 2).await?;
                stopped += 1;
            }
            let told = traffic.told().await?;
            if told.iter().map(|told| told.answers).sum::<u64>() >= wanted {
                break;
            }
        }
        // The callers tell how it stands every two seconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let told = traffic.told().await?;
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
    })
    .await
}

fn ready(deployment: &Deployment) -> i32 {
    deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}
