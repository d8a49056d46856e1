//! The life of a run where a real pod is needed: killed, evicted, held up, suspended, late, and gone.

use anneal_api::{
    failure::FailureClass,
    names::label,
    resources::{RunPhase, TrainingRun, TrainingRunStatus},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, Watch, ensure, in_namespace, manifest};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt as _, api::EvictParams};
use serde_json::{Value, json};

use crate::scenario::{GENERATED, PATIENCE, phase, until_succeeded};

/// A run that trains for as long as the test looks at it.
fn long() -> Value {
    let mut spec = manifest::well_trained(1);
    spec["hyperparameters"]["epochs"] = 1000.into();
    spec
}

async fn patch(ns: &Namespace, name: &str, spec: &Value) -> Result<()> {
    let (name, patch) = (format!("trainingrun/{name}"), json!({"spec": spec}).to_string());
    ns.kubectl(&["patch", &name, "--type=merge", "--patch", &patch]).await?.ok().map(|_| ())
}

async fn until_phase(run: &mut Watch<TrainingRun>, wanted: RunPhase) -> Result<TrainingRunStatus> {
    let sentence = format!("it is {}", wanted.as_str());
    let run = run.until(&sentence, PATIENCE, |run| phase(run) == Some(wanted)).await?;
    run.status.context("the run has no status")
}

/// Waits until the trainer has told of a step behind which there is a checkpoint or not.
async fn until_trained(run: &mut Watch<TrainingRun>) -> Result<()> {
    let told = |run: &TrainingRun| {
        let progress = run.status.as_ref().and_then(|status| status.progress.as_ref());
        progress.is_some_and(|progress| progress.reported.step > 0)
    };
    run.until("it has trained for a while", PATIENCE, told).await.map(|_| ())
}

/// Whether a pod of the run has not ended.
async fn may_write(ns: &Namespace, run: &str) -> Result<bool> {
    let pods: Vec<Pod> = ns.list(&pods_of(run)).await?;
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
    Ok(pods.iter().any(|pod| !matches!(phase(pod).as_deref(), Some("Succeeded" | "Failed"))))
}

fn pods_of(name: &str) -> String {
    format!("{}={name}", label::RUN)
}

fn reason(status: &TrainingRunStatus) -> &str {
    status.conditions.iter().find(|it| it.type_ == "Ready").map_or("nothing", |it| it.reason.as_str())
}

#[tokio::test]
async fn a_container_that_is_killed_at_its_memory_limit_fails_with_that_class() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let memory = json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "2", "memory": "48Mi"}});
        let spec = json!({
            "podTemplate": {"resources": memory}, "retryRules": [{"class": "OOMKilled", "action": "Fail"}]
        });
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let status = until_phase(&mut ns.watch("cats"), RunPhase::Failed).await?;
        ensure!(status.attempts.len() == 1 && status.attempts[0].class == Some(FailureClass::OOMKilled), "{status:?}");
        ensure!(status.attempts[0].exit_code == Some(137), "{status:?}");
        ensure!(status.attempts[0].message.contains("limits.memory"), "{status:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_image_that_does_not_exist_fails_at_the_start_deadline_or_is_corrected_on_its_way() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let missing = json!({"image": "localhost/anneal-missing:1"});
        ns.apply(&manifest::training_run("wrong", json!({"podTemplate": missing, "startDeadlineSeconds": 20}))).await?;
        ns.apply(&manifest::training_run("mended", json!({"podTemplate": missing}))).await?;

        let mut mended = ns.watch::<TrainingRun>("mended");
        let named = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| reason(status) == "ImagePull");
        mended.until("it says that the image cannot be pulled", PATIENCE, named).await?;
        patch(ns, "mended", &json!({"podTemplate": {"image": null}})).await?;
        until_succeeded(&mut mended).await?;
        let done: TrainingRun = ns.get("mended").await?;
        let attempts = done.status.map(|status| status.attempts).unwrap_or_default();
        ensure!(attempts.len() == 1 && attempts[0].class.is_none(), "what never ran became an attempt: {attempts:?}");

        let status = until_phase(&mut ns.watch("wrong"), RunPhase::Failed).await?;
        ensure!(status.attempts[0].class == Some(FailureClass::ImagePull), "{status:?}");
        ensure!(!may_write(ns, "wrong").await?, "the run is over before its pod has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_evicted_run_goes_on_without_a_retry() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let mut spec = manifest::well_trained(1);
        spec["hyperparameters"]["epochs"] = 12.into();
        spec["maxRetries"] = 0.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        until_trained(&mut run).await?;
        let pods: Vec<Pod> = ns.list(&pods_of("cats")).await?;
        let pod = pods.first().context("no pod runs")?;
        ns.api::<Pod>().evict(&pod.name_any(), &EvictParams::default()).await?;

        let result = until_succeeded(&mut run).await?;
        ensure!(result.epochs == 12, "{result:?}");
        let done: TrainingRun = ns.get("cats").await?;
        let attempts = done.status.map(|status| status.attempts).unwrap_or_default();
        ensure!(attempts.len() == 2 && attempts[0].class == Some(FailureClass::Evicted), "{attempts:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_suspended_run_goes_on_from_its_checkpoint() -> Outcome {
    in_namespace(async |ns| {
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        let mut spec = manifest::well_trained(1);
        spec["hyperparameters"]["epochs"] = 12.into();
        spec["maxRetries"] = 0.into();
        spec["suspend"] = true.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        until_phase(&mut run, RunPhase::Suspended).await?;
        ensure!(jobs.all().is_empty(), "a suspended run made a Job");

        patch(ns, "cats", &json!({"suspend": false})).await?;
        until_trained(&mut run).await?;
        patch(ns, "cats", &json!({"suspend": true})).await?;
        let status = until_phase(&mut run, RunPhase::Suspended).await?;
        let attempt = status.attempts.first().context("no attempt is recorded")?;
        ensure!(attempt.class == Some(FailureClass::Suspended), "{attempt:?}");
        let checkpoint = attempt.checkpoint_step.context("the pod did not say where its checkpoint is")?;
        ensure!(checkpoint > 0 && attempt.steps_lost == Some(0), "{attempt:?}");
        ensure!(!may_write(ns, "cats").await?, "a suspended run has a pod that may still write");

        patch(ns, "cats", &json!({"suspend": false})).await?;
        let result = until_succeeded(&mut run).await?;
        ensure!(
            result.resumed_from_step == Some(checkpoint),
            "it went on from {:?}, not {checkpoint}",
            result.resumed_from_step
        );
        ensure!(jobs.names() == ["cats-1", "cats-2"], "{:?}", jobs.names());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails_once_its_pod_has_ended() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let mut spec = long();
        spec["activeDeadlineSeconds"] = 20.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let status = until_phase(&mut ns.watch("cats"), RunPhase::Failed).await?;
        ensure!(reason(&status) == "ActiveDeadline", "{status:?}");
        ensure!(!may_write(ns, "cats").await?, "the run is over before its pod has ended");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_finished_run_is_deleted_on_time() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        ns.apply(&manifest::training_run("cats", json!({"ttlSecondsAfterFinished": 5}))).await?;
        until_succeeded(&mut run).await?;
        run.until_gone(30).await?;
        ns.until_all::<Job>(GENERATED, "none is left", PATIENCE, <[Job]>::is_empty).await?;
        Ok(())
    })
    .await
}
