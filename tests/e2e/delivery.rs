//! From training to traffic without a hand: a deployment that follows labels.

use anneal_api::{
    resources::{DeploymentPhase, ModelDeployment, TrainingRun},
    termination::RunResult,
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use serde_json::{Value, json};

use crate::scenario::{
    PATIENCE, chosen_by, condition, is_observed, rollout, stable_revision, until_stable, until_succeeded,
};

/// Trains a run that the deployment follows.
async fn trained(ns: &Namespace, name: &str, spec: Value) -> Result<RunResult> {
    let mut run = manifest::training_run(name, spec);
    run["metadata"]["labels"] = json!({"app": "cats"});
    ns.apply(&run).await?;
    until_succeeded(&mut ns.watch::<TrainingRun>(name)).await
}

/// The digest of what has the traffic.
fn serves(deployment: &ModelDeployment) -> Option<String> {
    let stable = stable_revision(deployment)?;
    let revisions = &deployment.status.as_ref()?.revisions;
    Some(revisions.iter().find(|it| it.revision == stable)?.sha256.to_string())
}

#[tokio::test]
async fn the_newest_success_with_the_labels_is_delivered_unless_it_is_worse_than_what_serves() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        // The case carries its image along: no ConfigMap is needed.
        let cat = ns.draw("cat").await?;
        let spec = json!({
            "model": {"trainingRunSelector": {"matchLabels": {"app": "cats"}}},
            "gate": {
                "maxAccuracyDrop": 0.1,
                "smokeTest": {"cases": [{"name": "cat", "image": {"inline": cat}, "expectedClass": "cat"}]}
            }
        });
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let first = trained(ns, "first", manifest::well_trained(1)).await?;
        let stable = until_stable(&mut cats).await?;
        ensure!(serves(&stable) == Some(first.sha256.to_string()), "{:?}", stable.status);
        let name = stable_revision(&stable).context("no revision is stable")?.to_owned();

        // At such a rate nothing is learned.
        let idle = json!({
            "dataset": {"uri": "synthetic://?images=400&size=32"},
            "hyperparameters": {"learningRate": 1e-9, "batchSize": 16}
        });
        let worse = trained(ns, "worse", idle).await?;
        ensure!(worse.metrics.accuracy < first.metrics.accuracy - 0.1, "the bad run is too good: {:?}", worse.metrics);
        let refused = cats
            .until("the worse model is refused", PATIENCE, |it| {
                is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded)
            })
            .await?;
        let (reason, message) = condition(&refused, "Degraded").context("it is not Degraded")?;
        ensure!(reason == "BelowMinAccuracy" && message.contains("worse"), "{reason}: {message}");
        ensure!(serves(&refused) == Some(first.sha256.to_string()), "{:?}", refused.status);
        ensure!(chosen_by(ns, "cats").await? == name, "the Service has moved");

        let next = trained(ns, "next", manifest::well_trained(2)).await?;
        let delivered = cats
            .until("the better model is delivered", PATIENCE, |it| {
                serves(it) == Some(next.sha256.to_string()) && rollout(it) == Some(DeploymentPhase::Stable)
            })
            .await?;
        let revision = chosen_by(ns, "cats").await?;
        ensure!(stable_revision(&delivered) == Some(&revision), "the Service and the status differ");
        Ok(())
    })
    .await
}
