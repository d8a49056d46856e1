//! What others do to a run: they collect its Job, forbid it one, hold it in a queue, delete it and make a namesake.

use anneal_api::{
    names::label,
    resources::{RunPhase, TrainingRun, TrainingRunStatus},
};
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{GENERATED, PATIENCE, phase, trained, until_succeeded, until_told};

fn status(run: &TrainingRun) -> TrainingRunStatus {
    run.status.clone().unwrap_or_default()
}

fn reason(run: &TrainingRun) -> String {
    let ready = status(run).conditions.into_iter().find(|condition| condition.type_ == "Ready");
    ready.map(|ready| ready.reason).unwrap_or_default()
}

fn has_trained(run: &TrainingRun) -> bool {
    status(run).progress.is_some_and(|progress| progress.reported.step > 0)
}

/// A run that takes long enough to be interrupted.
fn a_while() -> Value {
    let mut spec = manifest::well_trained(1);
    spec["hyperparameters"]["epochs"] = 12.into();
    spec["maxRetries"] = 0.into();
    spec
}

#[tokio::test]
async fn a_finished_run_never_trains_again_when_its_job_is_collected() -> Outcome {
    in_namespace(async |ns| {
        let jobs = ns.record::<Job>(GENERATED).await?;
        trained(ns, "cats", json!({})).await?;
        ns.kubectl(&["delete", "job", "cats-1"]).await?.ok()?;
        // Whatever changes of it afterwards makes the operator look again.
        ns.kubectl(&["label", "trainingrun", "cats", "looked=at"]).await?.ok()?;
        let patch = json!({"spec": {"maxRetries": 5}}).to_string();
        ns.kubectl(&["patch", "trainingrun", "cats", "--type=merge", "--patch", &patch]).await?.ok()?;
        let looked = |run: &TrainingRun| status(run).observed_generation == run.metadata.generation;
        let run = ns.watch::<TrainingRun>("cats").until("the change is observed", 30, looked).await?;
        ensure!(phase(&run) == Some(RunPhase::Succeeded), "{:?}", run.status);
        ensure!(jobs.names() == ["cats-1"], "it trained again: {:?}", jobs.names());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_that_may_not_be_made_is_told_with_an_event_and_made_once_it_may() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
            "spec": {"hard": {"count/jobs.batch": "0"}}
        }))
        .await?;
        ns.apply(&manifest::claim("models")).await?;
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        let told = |run: &TrainingRun| {
            let conditions = status(run).conditions;
            conditions.iter().any(|it| it.type_ == "Ready" && it.message.contains("exceeded quota"))
        };
        let refused = run.until("it says what keeps the Job from being made", 60, told).await?;
        ensure!(phase(&refused) == Some(RunPhase::Pending), "{:?}", refused.status);
        let event = until_told(ns, "TrainingRun", "Pending").await?;
        let is_warning = event.type_.as_deref() == Some("Warning");
        ensure!(is_warning && event.message.is_some_and(|it| it.contains("exceeded quota")), "it does not warn of it");
        ns.kubectl(&["delete", "resourcequota", "none"]).await?.ok()?;
        until_succeeded(&mut run).await?;
        ensure!(status(&ns.get("cats").await?).attempts.len() == 1, "what could not be made became an attempt");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_job_that_a_queue_holds_is_left_to_it_and_goes_on_from_its_checkpoint_when_it_is_let_go() -> Outcome {
    in_namespace(async |ns| {
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        ns.apply(&manifest::training_run("cats", a_while())).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        run.until("it has trained for a while", PATIENCE, has_trained).await?;
        let hold = async |held: bool| {
            let patch = json!({"spec": {"suspend": held}}).to_string();
            ns.kubectl(&["patch", "job", "cats-1", "--type=merge", "--patch", &patch]).await?.ok().map(|_| ())
        };
        hold(true).await?;
        let shown = |run: &TrainingRun| phase(run) == Some(RunPhase::Suspended) && reason(run) == "JobSuspended";
        run.until("it shows that somebody else holds its Job", PATIENCE, shown).await?;
        // The operator never takes it back.
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        let job: Job = ns.get("cats-1").await?;
        ensure!(job.spec.and_then(|spec| spec.suspend) == Some(true), "somebody let the Job go");

        hold(false).await?;
        let result = until_succeeded(&mut run).await?;
        ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
        let done = status(&ns.get("cats").await?);
        ensure!(done.attempts.len() == 1 && done.failures.is_empty(), "a preemption cost something: {done:?}");
        ensure!(jobs.names() == ["cats-1"], "{:?}", jobs.names());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_recreated_namesake_inherits_nothing() -> Outcome {
    in_namespace(async |ns| {
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        ns.apply(&manifest::training_run("cats", a_while())).await?;
        let first = ns.watch::<TrainingRun>("cats").until("the first one trains", PATIENCE, has_trained).await?;
        // Its Job and its pod are still there when the namesake comes.
        ns.kubectl(&["delete", "trainingrun", "cats"]).await?.ok()?;
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        let result = until_succeeded(&mut ns.watch("cats")).await?;
        ensure!(result.resumed_from_step.is_none() && result.epochs == 1, "it went on from the other's: {result:?}");
        let second: TrainingRun = ns.get("cats").await?;
        let (former, new) = (first.uid().context("no UID")?, second.uid().context("no UID")?);
        ensure!(former != new, "it was not made anew");
        ensure!(status(&second).attempts.len() == 1, "{:?}", second.status);
        let owners: Vec<Option<String>> =
            jobs.all().iter().map(|job| job.labels().get(label::RUN_UID).cloned()).collect();
        ensure!(jobs.names() == ["cats-1", "cats-1"], "{:?}", jobs.names());
        ensure!(owners.contains(&Some(former)) && owners.contains(&Some(new)), "{owners:?}");
        Ok(())
    })
    .await
}
