//! Runs that cannot go straight to their end.

use anneal_api::{
    failure::FailureClass,
    resources::{RunPhase, TrainingRun, TrainingRunStatus},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::batch::v1::Job;
use serde_json::json;

use crate::scenario::{GENERATED, PATIENCE, phase, until_succeeded};

#[tokio::test]
async fn a_run_waits_for_its_claim_and_goes_on_by_itself() -> Outcome {
    in_namespace(async |ns| {
        let mut run = ns.watch::<TrainingRun>("cats");
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        let waiting = run.until("it is Pending", 30, |run| phase(run) == Some(RunPhase::Pending)).await?;
        let conditions = waiting.status.map(|status| status.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").context("no condition Ready")?;
        ensure!(ready.status == "False" && ready.reason == "ClaimNotFound", "{ready:?}");
        ensure!(ready.message.contains("create PersistentVolumeClaim models"), "{}", ready.message);
        ensure!(ns.list::<Job>(GENERATED).await?.is_empty(), "a Job was created before its claim");

        ns.apply(&manifest::claim("models")).await?;
        until_succeeded(&mut run).await?;
        Ok(())
    })
    .await
}

/// Waits for a run to fail for good, and returns its status.
async fn until_failed(ns: &Namespace, name: &str) -> Result<TrainingRunStatus> {
    let over = |run: &TrainingRun| phase(run).is_some_and(RunPhase::is_terminal);
    let run = ns.watch::<TrainingRun>(name).until("the run is over", PATIENCE, over).await?;
    ensure!(phase(&run) == Some(RunPhase::Failed), "the run did not fail: {:?}", run.status);
    run.status.context("the run has no status")
}

fn failed_because(status: &TrainingRunStatus) -> &str {
    let failed = status.conditions.iter().find(|condition| condition.type_ == "Failed" && condition.status == "True");
    failed.map_or("nothing", |condition| condition.reason.as_str())
}

#[tokio::test]
async fn a_failing_image_is_tried_as_often_as_asked_and_every_attempt_is_kept() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        // Any image will do: this one exits with 1, and says nothing that Anneal understands.
        let broken = json!({
            "image": ns.cluster.operator.server_image,
            "args": ["predict", "--url", "http://127.0.0.1:1", "/nothing.jpg"]
        });
        let run = |name: &str, retries: i32| {
            manifest::training_run(name, json!({"podTemplate": broken, "maxRetries": retries}))
        };
        ns.apply(&run("once", 0)).await?;
        ns.apply(&run("twice", 1)).await?;

        let once = until_failed(ns, "once").await?;
        ensure!(once.attempts.len() == 1 && once.attempt == Some(1), "{:?}", once.attempts);
        ensure!(failed_because(&once) == "AppError", "{:?}", once.conditions);

        let twice = until_failed(ns, "twice").await?;
        let attempts: Vec<_> = twice.attempts.iter().map(|it| (it.number, it.class, it.exit_code)).collect();
        ensure!(
            attempts == [(1, Some(FailureClass::AppError), Some(1)), (2, Some(FailureClass::AppError), Some(1))],
            "{attempts:?}"
        );
        ensure!(twice.attempts.iter().all(|attempt| attempt.node.is_some()), "an attempt does not name its node");
        let runs = ns.table("trainingruns").await?;
        ensure!(runs.cell("twice", "PHASE")? == "Failed" && runs.cell("twice", "ATTEMPT")? == "2", "{runs:?}");
        ensure!(ns.list::<Job>(GENERATED).await?.len() == 3, "one Job an attempt are three");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_not_tried_again() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let spec = json!({"podTemplate": {"args": ["train", "--config", "/etc/anneal/missing.yaml"]}, "maxRetries": 3});
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let status = until_failed(ns, "cats").await?;
        ensure!(failed_because(&status) == "BadConfig", "{:?}", status.conditions);
        ensure!(status.attempts.len() == 1, "{:?}", status.attempts);
        ensure!(status.attempts[0].message.contains("missing.yaml"), "{:?}", status.attempts);
        ensure!(ns.list::<Job>(GENERATED).await?.len() == 1, "one attempt is one Job");
        Ok(())
    })
    .await
}
