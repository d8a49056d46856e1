//! What the API server refuses, and what it says.

use anneal_tests::{
    Namespace, Outcome, Result, ensure, in_namespace,
    manifest::{model_deployment, training_run},
};
use serde_json::{Value, json};

async fn refused(ns: &Namespace, manifest: Value, sentence: &str) -> Result<()> {
    refused_by(ns, "apply", manifest, sentence).await
}

async fn refused_by(ns: &Namespace, verb: &str, manifest: Value, sentence: &str) -> Result<()> {
    let said = ns.refusal(verb, &manifest).await?;
    ensure!(said.contains(sentence), "expected {sentence:?}, kubectl said:\n{said}");
    Ok(())
}

#[tokio::test]
async fn a_run_that_makes_no_sense_is_refused_with_what_to_write() -> Outcome {
    in_namespace(async |ns| {
        let run = |spec: Value| training_run("cats", spec);
        let cases = [
            (json!({"hyperparameters": {"epoch": 3}}), "unknown field \"spec.hyperparameters.epoch\""),
            (
                json!({"model": {"architecture": "simple", "inputSize": 64}}),
                "model.inputSize must be 224 for architecture simple",
            ),
            (json!({"model": {"architecture": "resnet"}}), "supported values: \"improved\", \"simple\""),
            (
                json!({"dataset": {"uri": "photos/cats"}}),
                "dataset.uri must be pvc://CLAIM/PATH, file:///PATH or synthetic://",
            ),
            (json!({"dataset": {"uri": "pvc://photos/../secret"}}), "dataset.uri must not contain a `..` part"),
            (json!({"hyperparameters": {"epochs": 0}}), "should be greater than or equal to 1"),
            (json!({"hyperparameters": {"learningRate": "fast"}}), "spec.hyperparameters.learningRate"),
            (json!({"output": null}), "spec.output: Required value"),
            (json!({"output": {"claimName": "My_Claim"}}), "spec.output.claimName"),
            (
                json!({"podTemplate": {"resources": {"limits": {"memory": "lots"}}}}),
                "spec.podTemplate.resources.limits.memory",
            ),
            (json!({"podTemplate": {"volumes": []}}), "unknown field \"spec.podTemplate.volumes\""),
            (json!({"maxRetries": 1000}), "should be less than or equal to 100"),
        ];
        for (spec, sentence) in cases {
            refused(ns, run(spec), sentence).await?;
        }
        let name = "c".repeat(41);
        refused(ns, training_run(&name, json!({})), "metadata.name must be at most 40 characters").await?;
        // The rest of each manifest is not to blame.
        ns.apply(&run(json!({}))).await
    })
    .await
}

#[tokio::test]
async fn a_deployment_that_makes_no_sense_is_refused_with_what_to_write() -> Outcome {
    in_namespace(async |ns| {
        let of_run = json!({"trainingRunRef": {"name": "cats"}});
        let digest = "0123456789abcdef".repeat(4);
        let file = |sha256: &str| json!({"claimName": "models", "path": "cats.pth", "sha256": sha256});
        let deployment = |spec: Value| model_deployment("cats", spec);
        let cases = [
            (json!({"model": of_run, "autoscaling": {}}), "set either replicas or autoscaling, not both"),
            (
                json!({"model": of_run, "replicas": null, "autoscaling": {"minReplicas": 5, "maxReplicas": 4}}),
                "autoscaling.minReplicas must not be above maxReplicas",
            ),
            (json!({"model": {}}), "name the model by either trainingRunRef or claimName with path and sha256"),
            (json!({"model": {"trainingRunRef": {"name": "cats"}, "claimName": "models"}}), "name the model by either"),
            (
                json!({"model": {"claimName": "models", "path": "cats.pth"}}),
                "claimName, path and sha256 belong together",
            ),
            (json!({"model": file(&digest[1..])}), "spec.model.sha256"),
            (json!({"model": file(&digest.to_uppercase())}), "should match '^[0-9a-f]{64}$'"),
            (
                json!({"model": {"claimName": "models", "path": "../cats.pth", "sha256": digest}}),
                "path is relative to the claim's root and must not contain `..`",
            ),
            (json!({"model": of_run, "gate": {"soakSecond": 5}}), "unknown field \"spec.gate.soakSecond\""),
            (json!({"model": of_run, "gate": {"minAccuracy": 90}}), "spec.gate.minAccuracy"),
            (json!({"model": of_run, "service": {"type": "Everywhere"}}), "supported values: \"ClusterIP\""),
        ];
        for (spec, sentence) in cases {
            refused(ns, deployment(spec), sentence).await?;
        }
        refused(ns, model_deployment("2cats", json!({"model": of_run})), "metadata.name must start with a letter")
            .await?;
        let name = "c".repeat(41);
        refused(ns, model_deployment(&name, json!({"model": of_run})), "metadata.name must be at most 40 characters")
            .await?;
        ns.apply(&deployment(json!({"model": of_run}))).await?;
        ns.apply(&model_deployment("file", json!({"model": file(&digest)}))).await
    })
    .await
}

#[tokio::test]
async fn what_a_run_was_trained_with_cannot_be_changed_afterwards() -> Outcome {
    in_namespace(async |ns| {
        // Without its claim the run waits, and so costs nothing.
        ns.apply(&training_run("cats", json!({}))).await?;
        let cases = [
            (json!({"hyperparameters": {"epochs": 2}}), "hyperparameters are immutable; create a new TrainingRun"),
            (json!({"hyperparameters": null}), "hyperparameters are immutable; create a new TrainingRun"),
            (json!({"model": {"inputSize": 64}}), "model is immutable; create a new TrainingRun"),
            (json!({"dataset": {"uri": "synthetic://"}}), "dataset is immutable; create a new TrainingRun"),
            (json!({"output": {"claimName": "other"}}), "output is immutable; create a new TrainingRun"),
        ];
        for (spec, sentence) in cases {
            refused_by(ns, "replace", training_run("cats", spec), sentence).await?;
        }
        // How often it is tried is not what it was trained with.
        ns.apply(&training_run("cats", json!({"maxRetries": 5}))).await
    })
    .await
}
