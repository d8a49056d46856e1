//! The way that everything is made for: train, deploy, predict.

use anneal_api::resources::{ModelDeployment, RunPhase, TrainingRun};
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod, policy::v1::PodDisruptionBudget};
use serde_json::json;

use crate::scenario::{GENERATED, PATIENCE, all_have_requests_and_limits, phase, stable_revision, until_stable};

#[tokio::test]
async fn a_run_trains_and_its_model_answers_through_its_service() -> Outcome {
    in_namespace(async |ns| {
        let pods = ns.record::<Pod>(GENERATED).await?;

        // It trains, and says how far it is.
        ns.apply(&manifest::claim("models")).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        let mut spec = manifest::well_trained(1);
        // Long enough to be seen at it, also on an idle machine: the operator reads a pod's progress every ten seconds.
        spec["hyperparameters"]["epochs"] = 12.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;
        run.until("the run is Running", PATIENCE, |run| phase(run) == Some(RunPhase::Running)).await?;
        let told = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| status.progress.is_some());
        let seen = run.until("its progress is told", PATIENCE, told).await?;
        ensure!(
            phase(&seen) == Some(RunPhase::Running),
            "its progress was told only when it was over: {:?}",
            seen.status
        );
        ns.kubectl(&["wait", "trainingrun/cats", "--for=condition=Complete", "--timeout=180s"]).await?.ok()?;

        // It has published a model under the name of its digest.
        let done: TrainingRun = ns.get("cats").await?;
        let status = done.status.context("the run has no status")?;
        let result = status.result.context("the run has no result")?;
        ensure!(result.checkpoint == format!("models/{}", result.sha256.file_name()), "{}", result.checkpoint);
        ensure!(
            result.bytes > 1_000_000 && result.classes == ["cat", "dog"] && result.dataset.images == 400,
            "{result:?}"
        );
        ensure!(status.image_id.is_some_and(|id| !id.is_empty()), "the run does not say which image made its result");
        let runs = ns.table("trainingruns").await?;
        ensure!(runs.headings == ["NAME", "PHASE", "PROGRESS", "EPOCH", "LOSS", "BEST", "ATTEMPT", "AGE"], "{runs:?}");
        for (column, value) in [("PHASE", "Succeeded"), ("PROGRESS", "100%"), ("EPOCH", "12/12"), ("ATTEMPT", "1")] {
            ensure!(runs.cell("cats", column)? == value, "{column} is not {value}: {runs:?}");
        }
        for column in ["LOSS", "BEST"] {
            ensure!(runs.cell("cats", column)?.parse::<f64>().is_ok(), "{column} is no number: {runs:?}");
        }

        // Its model is deployed, once the pods have recognised a cat.
        ns.apply(&manifest::file("smoke", "cat.png", &ns.draw("cat").await?)).await?;
        let mut deployment = ns.watch::<ModelDeployment>("cats");
        let spec = json!({
            "model": {"trainingRunRef": {"name": "cats"}},
            "gate": {"minAccuracy": 0.6, "smokeTest": {"cases": [manifest::smoke_case("smoke", "cat.png", "cat")]}},
            // Two to ten replicas are the default.
            "replicas": null
        });
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let stable = until_stable(&mut deployment).await?;
        let revision = stable_revision(&stable).context("no revision is stable")?;
        let deployments = ns.table("modeldeployments").await?;
        ensure!(
            deployments.headings == ["NAME", "PHASE", "STABLE", "CANDIDATE", "SMOKE", "READY", "AGE"],
            "{deployments:?}"
        );
        for (column, value) in
            [("PHASE", "Stable"), ("STABLE", revision), ("CANDIDATE", ""), ("SMOKE", "Passed"), ("READY", "2/2")]
        {
            ensure!(deployments.cell("cats", column)? == value, "{column} is not {value}: {deployments:?}");
        }

        // Whoever asks the Service by its name gets an answer.
        let answer = ns.predict("ask", "cats", "smoke", "cat.png").await?;
        ensure!(answer.lines().any(|line| line.contains("cat.png") && line.contains(" cat ")), "{answer}");

        // It scales by itself, survives a drain, and every pod says what it needs.
        let scaler: HorizontalPodAutoscaler = ns.get("cats").await?;
        let scaler = scaler.spec.context("the autoscaler has no spec")?;
        ensure!((scaler.min_replicas, scaler.max_replicas) == (Some(2), 10), "{scaler:?}");
        let budgets: Vec<PodDisruptionBudget> = ns.list(GENERATED).await?;
        ensure!(budgets.len() == 1, "{budgets:?}");
        let pods = pods.all();
        ensure!(pods.len() >= 4, "a trainer, two servers and a smoke test are four pods, not {}", pods.len());
        all_have_requests_and_limits(&pods)
    })
    .await
}
