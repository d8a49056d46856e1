//! How far a run is: told while it trains, not written too often, and acted on when it stands still.

use std::collections::BTreeSet;

use anneal_api::{
    failure::FailureClass,
    names::label,
    resources::{RunPhase, TrainingRun},
};
use anneal_tests::{Audit, Context as _, Outcome, ensure, in_namespace, manifest, signal};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, phase, until_succeeded};

fn training(epochs: i32, more: Value) -> Value {
    let mut spec = manifest::well_trained(1);
    manifest::merge(&mut spec, json!({"hyperparameters": {"epochs": epochs}}));
    manifest::merge(&mut spec, more);
    manifest::training_run("cats", spec)
}

fn tells(run: &TrainingRun) -> bool {
    let progress = run.status.as_ref().and_then(|status| status.progress.as_ref());
    phase(run) == Some(RunPhase::Running) && progress.is_some_and(|progress| progress.reported.step > 0)
}

#[tokio::test]
async fn a_run_tells_how_far_it_is_and_is_written_at_most_every_ten_seconds() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        ns.apply(&training(1000, json!({}))).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        run.until("it tells how far it is", PATIENCE, tells).await?;
        let begin = Timestamp::now();
        // The API server ends the watch, which kubectl takes for an error.
        let watched = ns.kubectl(&["get", "trainingrun", "cats", "--watch", "--request-timeout=45s"]).await?.out;
        let end = Timestamp::now();
        let rows: BTreeSet<&str> = watched.lines().filter(|line| line.contains("Running")).collect();
        ensure!(rows.len() >= 3, "`kubectl get --watch` shows too little:\n{watched}");

        let Some(audit) = Audit::of_cluster() else {
            eprintln!("ANNEAL_AUDIT_LOG names no audit log, so how often the run is written is not looked at");
            return Ok(());
        };
        let mut writes = audit.writes(&ns.cluster.operator.user, begin)?;
        writes.retain(|write| write.namespace == ns.name && write.name == "cats" && write.at < end);
        ensure!(writes.len() >= 2, "the audit log shows no writes: {writes:?}");
        let often = writes.windows(2).find(|two| two[1].at.duration_since(two[0].at) < SignedDuration::from_secs(9));
        ensure!(often.is_none(), "two writes within ten seconds: {often:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_trainer_that_stands_still_is_ended_and_its_successor_goes_on_from_the_checkpoint() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let spec = json!({
            "progressDeadlineSeconds": 30, "maxRetries": 1, "podTemplate": {"terminationGracePeriodSeconds": 5}
        });
        ns.apply(&training(20, spec)).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        let kept = |run: &TrainingRun| {
            let progress = run.status.as_ref().and_then(|status| status.progress.as_ref());
            progress.and_then(|progress| progress.reported.checkpoint_step).is_some_and(|step| step > 0)
        };
        run.until("it has a checkpoint", PATIENCE, kept).await?;
        let pods: Vec<Pod> = ns.list(&format!("{}=cats", label::RUN)).await?;
        if !signal(pods.first().context("no pod trains")?, "STOP").await? {
            eprintln!("the pod runs on another machine, so nobody can hold it up");
            return Ok(());
        }
        let result = until_succeeded(&mut run).await?;
        ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
        let done: TrainingRun = ns.get("cats").await?;
        let attempts = done.status.map(|status| status.attempts).unwrap_or_default();
        ensure!(attempts.len() == 2 && attempts[0].class == Some(FailureClass::Stalled), "{attempts:?}");
        Ok(())
    })
    .await
}
