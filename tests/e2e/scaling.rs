//! The number of pods follows the load.

use anneal_api::resources::ModelDeployment;
use anneal_tests::{Context as _, Outcome, in_namespace, manifest};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::scenario::{PATIENCE, stable_revision, trained, until_stable};

/// Seconds after which a cluster with the usual periods has taken a pod away again.
const SHRINKING: u64 = 420;

#[tokio::test]
async fn a_loaded_deployment_grows_and_shrinks_again() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "cats", json!({})).await?;
        let spec = json!({
            "model": {"trainingRunRef": {"name": "cats"}},
            "replicas": null,
            "autoscaling": {"minReplicas": 1, "maxReplicas": 4}
        });
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let stable = until_stable(&mut cats).await?;
        let name = format!("cats-{}", stable_revision(&stable).context("no revision is stable")?);
        let mut deployment = ns.watch::<Deployment>(&name);
        // Starting took more CPU than serving does; the autoscaler may have seen it.
        deployment.until("it has one replica", SHRINKING, |it| replicas(it) == (1, 1)).await?;

        let url = format!("http://cats.{}.svc", ns.name);
        let image = ns.cluster.operator.server_image.clone();
        ns.start("load", &image, &["load", "--url", &url, "--concurrency", "4", "--duration", "60s"], None).await?;
        deployment
            .until("it has grown, and the new pods are ready", PATIENCE, |it| replicas(it).0 > 1 && replicas(it).1 > 1)
            .await?;
        let said = ns.output("load").await?;
        eprintln!("{said}");
        deployment.until("it has shrunk to one replica", SHRINKING, |it| replicas(it) == (1, 1)).await?;
        Ok(())
    })
    .await
}

/// Replicas that are wanted, and those that are ready.
fn replicas(deployment: &Deployment) -> (i32, i32) {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    (wanted, deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0))
}
