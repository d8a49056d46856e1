//! What the API server refuses, and what it says.

mod changes;
mod explain;
mod runs;

use anneal_tests::{
    Namespace, Outcome, Result, bail, ensure, in_namespace,
    manifest::{cron_training_run, model_deployment, training_sweep},
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

async fn refused(ns: &Namespace, manifest: Value, sentence: &str) -> Result<()> {
    refused_by(ns, "apply", manifest, sentence).await
}

async fn refused_by(ns: &Namespace, verb: &str, manifest: Value, sentence: &str) -> Result<()> {
    let said = ns.refusal(verb, &manifest).await?;
    ensure!(said.contains(sentence), "expected {sentence:?}, kubectl said:\n{said}");
    Ok(())
}

/// Fails with every manifest that is taken, or refused with another sentence.
async fn all_refused(ns: &Namespace, cases: Vec<(Value, &str)>) -> Result<()> {
    // Each is a process of kubectl: a few at a time.
    let wrong: Vec<String> = stream::iter(cases)
        .map(|(manifest, sentence)| async move {
            let problem = refused(ns, manifest.clone(), sentence).await.err()?;
            Some(format!("{manifest}\n{problem:#}"))
        })
        .buffer_unordered(4)
        .filter_map(|problem| async move { problem })
        .collect()
        .await;
    if wrong.is_empty() { Ok(()) } else { bail!("{} manifests:\n{}", wrong.len(), wrong.join("\n\n")) }
}

/// Fails with the first manifest that is refused.
async fn all_taken(ns: &Namespace, manifests: Vec<Value>) -> Result<()> {
    for manifest in manifests {
        ns.would_take(&manifest).await?;
    }
    Ok(())
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
            (json!({"model": {}}), "name the model by trainingRunRef, by claimName with path and sha256, or by uri"),
            (json!({"model": {"trainingRunRef": {"name": "cats"}, "claimName": "models"}}), "one of the four"),
            (json!({"model": {"uri": "https://models/cats.pth"}}), "so do uri and sha256"),
            (
                json!({"model": {"uri": "https://me:secret@models/cats.pth", "sha256": digest}}),
                "credentials go into credentialsSecretRef",
            ),
            (
                json!({"model": {"trainingRunRef": {"name": "cats"}, "credentialsSecretRef": {"name": "bucket"}}}),
                "credentialsSecretRef is for the server",
            ),
            (
                json!({"model": {"claimName": "models", "path": "cats.pth"}}),
                "claimName, path and sha256 belong together",
            ),
            (json!({"model": of_run, "strategy": {"type": "Canary"}}), "strategy.type Canary needs strategy.canary"),
            (
                json!({"model": of_run, "strategy": {"type": "Canary", "canary": {
                    "parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 0}]
                }}}),
                "a step of setWeight 0 gives the candidate no requests",
            ),
            (
                json!({"model": of_run, "strategy": {"type": "Canary", "canary": {"parentRefs": [], "steps": []}}}),
                "should have at least 1 items",
            ),
            (
                json!({"model": of_run, "strategy": {"type": "Canary", "canary": {
                    "parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}], "shadow": {"minAgreement": 1.5}
                }}}),
                "should be less than or equal to 1",
            ),
            (
                json!({"model": of_run, "strategy": {"type": "Canary", "canary": {
                    "parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}], "shadow": {"percent": 10}
                }}}),
                "spec.strategy.canary.shadow.minAgreement: Required value",
            ),
            (json!({"model": file(&digest[1..])}), "spec.model.sha256"),
            (json!({"model": file(&digest.to_uppercase())}), "should match '^[0-9a-f]{64}$'"),
            (
                json!({"model": {"claimName": "models", "path": "../cats.pth", "sha256": digest}}),
                "path is relative to the claim's root and must not contain `..`",
            ),
            (json!({"model": of_run, "gate": {"soakSecond": 5}}), "unknown field \"spec.gate.soakSecond\""),
            (json!({"model": of_run, "gate": {"minAccuracy": 90}}), "spec.gate.minAccuracy"),
            (
                json!({"model": of_run, "feedback": {"maxDrift": 0.25, "action": "Rollback"}}),
                "feedback.action Rollback needs minAccuracy or maxCalibrationError",
            ),
            (
                json!({"model": of_run, "gate": {"smokeTest": {"cases": [{"name": "cat"}]}}}),
                "a case asks about either an image or tensors",
            ),
            (
                json!({"model": of_run, "gate": {"smokeTest": {"cases": [
                    {"name": "cat", "image": {"path": "cat.png", "inline": "aGk="}}
                ]}}}),
                "or by its path on the model's claim: one of the three",
            ),
            (
                json!({"model": of_run, "gate": {"smokeTest": {"cases": [{"name": "cat", "tensors": {"path": "/cat"}}]}}}),
                "path is relative to the root of the model's claim",
            ),
            (
                json!({"model": of_run, "gate": {"smokeTest": {"cases": [
                    {"name": "cat", "image": {"path": "a"}, "minProbability": 0.5, "probability": {"value": 0.9}}
                ]}}}),
                "give either minProbability or probability",
            ),
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
async fn a_sweep_that_makes_no_sense_is_refused_with_what_to_write() -> Outcome {
    in_namespace(async |ns| {
        let rates = json!([{"name": "hyperparameters.learningRate", "values": [0.001, 0.01]}]);
        let range = |range: Value| json!({"name": "hyperparameters.learningRate", "range": range});
        let drawn = |range_of: Value| json!({"search": "Random", "maxTrials": 3, "parameters": [range(range_of)]});
        let cases = [
            (json!({}), "spec.parameters: Required value"),
            (json!({"parameters": []}), "spec.parameters"),
            (
                json!({"parameters": [{"name": "hyperparameters.lerningRate", "values": [1]}]}),
                "\"hyperparameters.learningRate\"",
            ),
            (json!({"parameters": [{"name": "dataset.uri", "choices": ["synthetic://"]}]}), "supported values"),
            (
                json!({"parameters": [{"name": "hyperparameters.epochs"}]}),
                "exactly one of values (a list of numbers), choices (a list of words) and range",
            ),
            (
                json!({"parameters": [{"name": "hyperparameters.epochs", "values": [1], "choices": ["2"]}]}),
                "exactly one of values",
            ),
            (json!({"parameters": [{"name": "hyperparameters.epochs", "values": ["two"]}]}), "must be of type number"),
            (
                json!({"parameters": [
                    {"name": "hyperparameters.epochs", "values": [1]}, {"name": "hyperparameters.epochs", "values": [2]}
                ]}),
                "Duplicate value",
            ),
            (json!({"parameters": [range(json!({"min": 1, "max": 2}))]}), "search: Grid tries every combination"),
            (drawn(json!({"min": 2, "max": 1})), "range.min must be below range.max"),
            (drawn(json!({"min": 0, "max": 1, "scale": "Log"})), "range.min must be above 0 with scale: Log"),
            (json!({"search": "Random", "parameters": rates}), "search: Random needs maxTrials"),
            (json!({"search": "Bayesian", "parameters": rates}), "supported values: \"Grid\", \"Random\""),
            (json!({"maxTrials": 1000, "parameters": rates}), "should be less than or equal to 200"),
            (json!({"parallelism": 0, "parameters": rates}), "should be greater than or equal to 1"),
            (json!({"objective": {"metric": "F1"}, "parameters": rates}), "supported values: \"Accuracy\", \"Loss\""),
            (json!({"earlyStopping": {"rule": "Mean"}, "parameters": rates}), "supported values: \"Median\""),
            (json!({"template": null, "parameters": rates}), "spec.template: Required value"),
            (
                json!({"template": {"spec": {"model": {"architecture": "simple", "inputSize": 64}}}, "parameters": rates}),
                "model.inputSize must be 224 for architecture simple",
            ),
            (
                json!({"template": {"spec": {"ttlSecondsAfterFinished": 60}}, "parameters": rates}),
                "template.spec.ttlSecondsAfterFinished would delete trials that the sweep still compares",
            ),
            (json!({"template": {"spec": {"epochs": 3}}, "parameters": rates}), "unknown field \"spec.template.spec.epochs\""),
        ];
        for (spec, sentence) in cases {
            refused(ns, training_sweep("rates", spec), sentence).await?;
        }
        let name = "r".repeat(37);
        let long = training_sweep(&name, json!({"parameters": rates}));
        refused(ns, long, "metadata.name must be at most 36 characters").await?;

        let dotted = training_sweep("all.rates", json!({"parameters": rates}));
        refused(ns, dotted, "metadata.name must start with a letter and hold only a-z, 0-9 and -").await?;

        // Suspended, it costs nothing.
        let sweep = |spec: Value| {
            let mut all = json!({"suspend": true, "parameters": rates});
            for (key, value) in spec.as_object().into_iter().flatten() {
                all[key] = value.clone();
            }
            training_sweep("rates", all)
        };
        ns.apply(&sweep(json!({}))).await?;
        let changes = [
            (json!({"parameters": [range(json!({"min": 1, "max": 2}))]}), "parameters are immutable"),
            (json!({"seed": 7}), "search and seed are immutable"),
            (json!({"maxTrials": 7}), "maxTrials is immutable"),
            (json!({"objective": {"metric": "Loss"}}), "objective is immutable"),
            (
                json!({"template": {"spec": {"hyperparameters": {"epochs": 2}}}}),
                "model, initFrom, dataset, hyperparameters, output and numNodes of the template are immutable",
            ),
        ];
        for (spec, sentence) in changes {
            refused_by(ns, "replace", sweep(spec), sentence).await?;
        }
        ns.apply(&sweep(json!({"parallelism": 1}))).await
    })
    .await
}

#[tokio::test]
async fn a_schedule_that_makes_no_sense_is_refused_with_what_to_write() -> Outcome {
    in_namespace(async |ns| {
        let cases = [
            (json!({"schedule": "every day"}), "schedule must be five fields"),
            (json!({"schedule": "0 0 * * * *"}), "schedule must be five fields"),
            (json!({"schedule": "TZ=UTC 0 * * * *"}), "write the time zone under timeZone"),
            (json!({"schedule": "@fortnightly"}), "schedule must be five fields"),
            (json!({"schedule": null}), "spec.schedule: Required value"),
            (json!({"timeZone": "Europe/ Berlin"}), "spec.timeZone"),
            (json!({"concurrencyPolicy": "Queue"}), "supported values: \"Allow\", \"Forbid\", \"Replace\""),
            (json!({"startingDeadlineSeconds": 1}), "should be greater than or equal to 10"),
            (json!({"successfulRunsHistoryLimit": -1}), "should be greater than or equal to 0"),
            (json!({"template": {"spec": {"dataset": null}}}), "spec.template.spec.dataset: Required value"),
        ];
        for (spec, sentence) in cases {
            refused(ns, cron_training_run("nightly", spec), sentence).await?;
        }
        let long = cron_training_run(&"n".repeat(32), json!({}));
        refused(ns, long, "metadata.name must be at most 31 characters").await?;
        let yearly = |epochs: i32| {
            let template = json!({"spec": {"hyperparameters": {"epochs": epochs}}});
            cron_training_run(
                "nightly",
                json!({"schedule": "@yearly", "timeZone": "Europe/Berlin", "template": template}),
            )
        };
        ns.apply(&yearly(1)).await?;
        // What is trained next year may still change.
        ns.apply(&yearly(2)).await
    })
    .await
}

#[tokio::test]
async fn every_example_is_what_the_api_server_takes() -> Outcome {
    in_namespace(async |ns| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let said = ns.kubectl(&["apply", "--dry-run=server", "--filename", folder]).await?.ok()?;
        for kind in ["trainingrun", "modeldeployment", "trainingsweep", "crontrainingrun"] {
            ensure!(said.out.contains(&format!("{kind}.anneal.dev/")), "there is no {kind} among them:\n{}", said.out);
        }
        Ok(())
    })
    .await
}
