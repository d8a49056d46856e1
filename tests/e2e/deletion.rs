//! What is left when a resource is deleted.

use anneal_api::resources::ModelDeployment;
use anneal_tests::{Namespace, Object, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use serde_json::json;

use crate::scenario::{GENERATED, PATIENCE, trained, until_stable};

/// Waits until the operator has none of a kind left; fails where it never had one.
async fn goes<K: Object>(ns: &Namespace) -> Result<()> {
    ns.until_all::<K>(GENERATED, "none is left", PATIENCE, <[K]>::is_empty).await.map(|_| ())
}

async fn exists<K: Object>(ns: &Namespace) -> Result<()> {
    ensure!(!ns.list::<K>(GENERATED).await?.is_empty(), "the operator made no {}", K::plural(&()));
    Ok(())
}

#[tokio::test]
async fn deleting_a_run_and_a_deployment_leaves_only_the_claim() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "cats", json!({})).await?;
        let spec = json!({
            "model": {"trainingRunRef": {"name": "cats"}}, "replicas": null, "autoscaling": {"minReplicas": 1}
        });
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        until_stable(&mut ns.watch::<ModelDeployment>("cats")).await?;
        exists::<Job>(ns).await?;
        exists::<Pod>(ns).await?;
        exists::<Deployment>(ns).await?;
        exists::<Service>(ns).await?;
        exists::<HorizontalPodAutoscaler>(ns).await?;
        exists::<PodDisruptionBudget>(ns).await?;

        ns.kubectl(&["delete", "trainingrun/cats", "modeldeployment/cats"]).await?.ok()?;
        goes::<Deployment>(ns).await?;
        goes::<Service>(ns).await?;
        goes::<HorizontalPodAutoscaler>(ns).await?;
        goes::<PodDisruptionBudget>(ns).await?;
        goes::<Job>(ns).await?;
        goes::<ConfigMap>(ns).await?;
        goes::<Pod>(ns).await?;
        ns.until_all::<ReplicaSet>("", "none is left", PATIENCE, <[_]>::is_empty).await?;
        let claim: PersistentVolumeClaim = ns.get("models").await?;
        ensure!(claim.metadata.deletion_timestamp.is_none(), "the claim is being deleted");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn deleting_a_run_while_it_trains_ends_its_pod() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let spec = json!({"hyperparameters": {"epochs": 1000}});
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let trains = |pods: &[Pod]| {
            let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
            pods.iter().any(|pod| phase(pod).as_deref() == Some("Running"))
        };
        ns.until_all::<Pod>(GENERATED, "the run trains", PATIENCE, trains).await?;
        ns.kubectl(&["delete", "trainingrun/cats"]).await?.ok()?;
        goes::<Pod>(ns).await?;
        goes::<Job>(ns).await
    })
    .await
}
