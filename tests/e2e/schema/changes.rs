//! What may be changed of a run afterwards, and what changes nothing.

use anneal_api::resources::TrainingRun;
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest::training_run};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::refused_by;

#[tokio::test]
async fn what_a_run_was_trained_with_cannot_be_changed_added_or_removed_afterwards() -> Outcome {
    in_namespace(async |ns| {
        // Without its claim the run waits, and so costs nothing.
        ns.apply(&training_run("plain", json!({}))).await?;
        let full = |spec: Value| {
            let mut all = json!({
                "initFrom": {"trainingRunRef": {"name": "other"}}, "numNodes": 2, "podTemplate": {"image": "trainer:1"},
                "output": {"claimName": null, "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
            });
            anneal_tests::manifest::merge(&mut all, spec);
            training_run("full", all)
        };
        ns.apply(&full(json!({}))).await?;
        let plain = |spec: Value| training_run("plain", spec);
        let cases = [
            (plain(json!({"hyperparameters": {"epochs": 2}})), "hyperparameters are immutable; create a new TrainingRun"),
            (plain(json!({"hyperparameters": null})), "hyperparameters are immutable"),
            (plain(json!({"hyperparameters": {"threads": null}})), "hyperparameters are immutable"),
            (plain(json!({"hyperparameters": {"augmentation": {"hue": 0}}})), "hyperparameters are immutable"),
            (plain(json!({"model": {"inputSize": 64}})), "model is immutable; create a new TrainingRun"),
            (plain(json!({"model": null})), "model is immutable"),
            (plain(json!({"dataset": {"uri": "synthetic://"}})), "dataset is immutable; create a new TrainingRun"),
            (plain(json!({"output": {"claimName": "other"}})), "output is immutable; create a new TrainingRun"),
            (plain(json!({"numNodes": 2, "podTemplate": {"image": "a"}})), "numNodes is immutable; create a new TrainingRun"),
            (plain(json!({"initFrom": {"trainingRunRef": {"name": "other"}}})), "initFrom is immutable; create a new TrainingRun"),
            (full(json!({"initFrom": null})), "initFrom is immutable"),
            (full(json!({"initFrom": {"freeze": ["conv1", "bn1"]}})), "initFrom is immutable"),
            (full(json!({"numNodes": null})), "numNodes is immutable"),
            (full(json!({"output": {"whenDeleted": "Delete"}})), "output is immutable"),
            (full(json!({"output": {"claimName": "a", "volumeClaimTemplate": null}})), "output is immutable"),
        ];
        for (manifest, sentence) in cases {
            refused_by(ns, "replace", manifest, sentence).await?;
        }
        // How often it is tried, and in which pods, is not what it was trained with.
        ns.apply(&plain(json!({"maxRetries": 5, "podTemplate": {"nodeSelector": {"disk": "fast"}}}))).await
    })
    .await
}

#[tokio::test]
async fn applying_the_same_manifest_again_changes_nothing() -> Outcome {
    in_namespace(async |ns| {
        let manifest = training_run("cats", json!({}));
        ns.apply(&manifest).await?;
        let waits = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| status.phase.is_some());
        let before = ns.watch::<TrainingRun>("cats").until("the operator has seen it", 30, waits).await?;
        for _ in 0..2 {
            ns.apply(&manifest).await?;
        }
        let after: TrainingRun = ns.get("cats").await?;
        let version = |run: &TrainingRun| run.resource_version().context("no resourceVersion");
        ensure!(after.metadata.generation == Some(1), "the generation moved to {:?}", after.metadata.generation);
        ensure!(
            version(&before)? == version(&after)?,
            "it was written again:\n{:?}\n{:?}",
            before.metadata,
            after.metadata
        );
        Ok(())
    })
    .await
}
