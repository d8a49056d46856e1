//! Models at a server, for pods that share no volume.

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::{FileServer, Node, Outcome, ensure, in_namespace, manifest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    claims::volume_at,
    scenario::{PATIENCE, chosen_by, condition, is_observed, rollout, stable_revision, until_stable, until_succeeded},
};

const AUTHORIZATION: &str = "Bearer open-sesame";

#[tokio::test]
async fn a_model_at_a_server_is_fetched_with_credentials_and_another_file_gets_no_traffic() -> Outcome {
    in_namespace(async |ns| {
        let node = Node::first();
        let path = format!("/var/lib/{}", ns.name);
        node.run(&["mkdir", "--mode=0777", &path]).await?;
        volume_at(ns, &node, &path).await?;
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        let trained = until_succeeded(&mut ns.watch("cats")).await;
        let file = match &trained {
            Ok(result) => node.run(&["base64", "--wrap=0", &format!("{path}/{}", result.checkpoint)]).await,
            Err(_) => Ok(String::new()),
        };
        node.run(&["rm", "--recursive", &path]).await?;
        let (trained, file) = (trained?, BASE64_STANDARD.decode(file?.trim())?);
        let server = FileServer::start(file, AUTHORIZATION).await?;

        ns.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "models"},
            "stringData": {"ANNEAL_HTTP_AUTHORIZATION": AUTHORIZATION}
        }))
        .await?;
        let model = |sha256: &str| {
            json!({
                "model": {
                    "uri": format!("http://{}/cats.pth", server.address), "sha256": sha256,
                    "credentialsSecretRef": {"name": "models"}
                },
                "replicas": 1
            })
        };
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment("cats", model(trained.sha256.as_str()))).await?;
        let stable = until_stable(&mut cats).await?;
        let revision = chosen_by(ns, "cats").await?;
        ensure!(stable_revision(&stable) == Some(&revision), "the Service and the status differ");
        let pods: Vec<Pod> = ns.list(&format!("anneal.dev/revision={revision}")).await?;
        for spec in pods.iter().filter_map(|pod| pod.spec.as_ref()) {
            let claims = spec.volumes.iter().flatten().filter(|volume| volume.persistent_volume_claim.is_some());
            ensure!(claims.count() == 0, "a pod mounts a claim");
            let told = spec.containers.iter().any(|container| container.env_from.is_some());
            ensure!(!told, "the server is given the credentials of the fetch");
        }

        ns.apply(&manifest::model_deployment("cats", model(&"0".repeat(64)))).await?;
        let refused = cats
            .until("the other file is refused", PATIENCE, |it| {
                is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded)
            })
            .await?;
        let (reason, message) = condition(&refused, "Degraded").unwrap_or_default();
        ensure!(message.contains("SHA-256"), "{reason}: {message}");
        ensure!(chosen_by(ns, "cats").await? == revision, "the Service has moved");
        Ok(())
    })
    .await
}
