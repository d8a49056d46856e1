//! What a run begins with: the weights of another one.

use anneal_api::{
    failure::FailureClass,
    resources::{RunPhase, TrainingRun, TrainingRunStatus},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use crate::scenario::{PATIENCE, phase, trained, until_succeeded};

fn status(run: &TrainingRun) -> TrainingRunStatus {
    run.status.clone().unwrap_or_default()
}

fn reason(run: &TrainingRun) -> String {
    let ready = status(run).conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.map(|ready| ready.reason).unwrap_or_default()
}

async fn delete(ns: &Namespace, run: &str) -> Result<()> {
    ns.kubectl(&["delete", "trainingrun", run, "--timeout=60s"]).await?.ok().map(|_| ())
}

#[tokio::test]
async fn a_run_waits_for_another_ones_model_begins_with_it_and_keeps_its_claim_until_the_end() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        // More classes than the other one has: the last layer begins anew. Frozen layers are those of the other one.
        let mut spec = manifest::well_trained(1);
        spec["hyperparameters"]["epochs"] = 12.into();
        spec["initFrom"] = json!({"trainingRunRef": {"name": "base"}, "freeze": ["conv1", "bn1"]});
        // Less than both trainings take together, more than a pod takes to start beside other tests.
        spec["startDeadlineSeconds"] = 30.into();
        ns.apply(&manifest::training_run("more", spec)).await?;
        let mut more = ns.watch::<TrainingRun>("more");
        more.until("it says what it waits for", 30, |run| reason(run) == "InitRunNotFound").await?;

        let own = json!({"output": {
            "claimName": null, "whenDeleted": "Delete",
            "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
        }});
        let base = trained_apart(ns, "base", own).await?;
        let begun = more.until("it knows what to begin with", 60, |run| status(run).init_from.is_some()).await?;
        let init = status(&begun).init_from.context("nothing to begin with")?;
        ensure!(init.claim_name == "base-output" && init.sha256 == base.sha256, "{init:?}");
        more.until("it trains", PATIENCE, |run| phase(run) == Some(RunPhase::Running)).await?;

        // Whatever becomes of the other run: a retry would begin with the same file.
        delete(ns, "base").await?;
        let claim: PersistentVolumeClaim = ns.get("base-output").await?;
        ensure!(claim.metadata.deletion_timestamp.is_none(), "the claim went away under a run that begins with it");
        let result = until_succeeded(&mut more).await?;
        ensure!(result.sha256 != base.sha256 && result.epochs == 12, "{result:?}");
        Ok(())
    })
    .await
}

async fn trained_apart(
    ns: &Namespace,
    name: &str,
    spec: serde_json::Value,
) -> Result<anneal_api::termination::RunResult> {
    ns.apply(&manifest::training_run(name, spec)).await?;
    until_succeeded(&mut ns.watch(name)).await
}

#[tokio::test]
async fn a_checkpoint_that_is_not_the_one_that_was_named_is_never_begun_with() -> Outcome {
    in_namespace(async |ns| {
        let base = trained(ns, "base", json!({})).await?;
        let from =
            |sha256: &str| json!({"initFrom": {"claimName": "models", "path": base.checkpoint, "sha256": sha256}});
        ns.apply(&manifest::training_run("wrong", from(&"0123456789abcdef".repeat(4)))).await?;
        ns.apply(&manifest::training_run("right", from(&base.sha256.to_string()))).await?;
        let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
        let wrong = status(&ns.watch::<TrainingRun>("wrong").until("it is over", PATIENCE, over).await?);
        ensure!(
            wrong.attempts.len() == 1 && wrong.attempts[0].class == Some(FailureClass::DigestMismatch),
            "{wrong:?}"
        );
        until_succeeded(&mut ns.watch("right")).await?;
        Ok(())
    })
    .await
}
