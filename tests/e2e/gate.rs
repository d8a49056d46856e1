//! What a gate asks for, and what is in the way of it.

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::{Context as _, Node, Outcome, ensure, in_namespace, manifest};
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use crate::{
    claims::volume_at,
    scenario::{PATIENCE, condition, is_observed, rollout, trained, until_stable, until_succeeded},
};

/// What every pixel of a grey picture is.
fn grey() -> String {
    let tensor = json!({"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": vec![128; 32 * 32 * 3]});
    json!({"inputs": [tensor]}).to_string()
}

fn deployment(run: &str, case: &Value) -> Value {
    let spec = json!({"model": {"trainingRunRef": {"name": run}}, "gate": {"smokeTest": {"cases": [case]}}});
    manifest::model_deployment("cats", spec)
}

#[tokio::test]
async fn a_gate_asks_for_tensors_for_files_beside_the_model_and_for_golden_answers() -> Outcome {
    in_namespace(async |ns| {
        let (node, path) = (Node::first(), format!("/var/lib/{}", ns.name));
        node.run(&["mkdir", "--mode=0777", &path]).await?;
        let outcome = async {
            volume_at(ns, &node, &path).await?;
            ns.apply(&manifest::training_run("run", manifest::well_trained(1))).await?;
            until_succeeded(&mut ns.watch("run")).await?;
            let picture = ns.draw("cat").await?;
            let write = format!("echo {picture} | base64 --decode >{path}/cat.png && chmod 0644 {path}/cat.png");
            node.run(&["sh", "-c", &write]).await?;
            let mut cats = ns.watch::<ModelDeployment>("cats");
            // Beside the model, and in the spec itself.
            let cases = [
                json!({"name": "a cat", "image": {"path": "cat.png"}, "expectedClass": "cat"}),
                json!({"name": "grey", "tensors": {"inline": grey()}}),
            ];
            let mut both = deployment("run", &cases[0]);
            both["spec"]["gate"]["smokeTest"]["cases"] = json!(cases);
            ns.apply(&both).await?;
            until_stable(&mut cats).await?;

            // Another gate asks what serves only when it is another revision; a golden answer that is not given rejects it.
            let wrong = json!({
                "name": "golden", "image": {"path": "cat.png"}, "expectedClass": "cat",
                "probability": {"value": 0.0, "tolerance": 0.001}
            });
            let mut asked = deployment("run", &wrong);
            asked["spec"]["podTemplate"]["annotations"] = json!({"example.com/round": "2"});
            ns.apply(&asked).await?;
            let over = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded);
            let rejected = cats.until("it is Degraded", PATIENCE, over).await?;
            let (reason, message) = condition(&rejected, "Degraded").context("it is not Degraded")?;
            ensure!(reason == "SmokeTestFailed" && message.contains("not 0 ± 0.001"), "{reason}: {message}");
            Ok(())
        }
        .await;
        node.run(&["rm", "--recursive", &path]).await?;
        outcome
    })
    .await
}

#[tokio::test]
async fn a_full_quota_and_a_test_of_somebody_else_are_named_and_the_rollout_goes_on_without_them() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "run", json!({})).await?;
        ns.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}
        }))
        .await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        let spec = json!({"model": {"trainingRunRef": {"name": "run"}}});
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let stalled = |it: &ModelDeployment, reason: &str| condition(it, "Stalled").is_some_and(|(it, _)| it == reason);
        let full = cats.until("it says that the quota is full", PATIENCE, |it| stalled(it, "QuotaExceeded")).await?;
        let revision = full.status.and_then(|status| status.candidate_revision).context("no candidate")?;

        // Somebody else has the name of its test.
        let name = format!("cats-{revision}-smoke-1");
        let image = ns.cluster.operator.server_image.clone();
        let pod = json!({"restartPolicy": "Never", "containers": [{"name": "other", "image": image}]});
        ns.apply(&json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"suspend": true, "template": {"spec": pod}}
        }))
        .await?;
        let theirs: Job = ns.get(&name).await?;
        ns.kubectl(&["delete", "resourcequota", "none"]).await?.ok()?;
        cats.until("it says that the name is taken", PATIENCE, |it| stalled(it, "NameTaken")).await?;
        let left: Job = ns.get(&name).await?;
        ensure!(left.metadata.uid == theirs.metadata.uid, "somebody else's Job was replaced");
        ensure!(rollout(&ns.get("cats").await?) != Some(DeploymentPhase::Stable), "another's test let it through");
        ns.kubectl(&["delete", "job", &name]).await?.ok()?;
        until_stable(&mut cats).await?;
        Ok(())
    })
    .await
}
