//! Training images that know nothing of Anneal's trainer. `scripts/test-images` builds them.

use std::env;

use anneal_api::resources::{RunPhase, TrainingRun};
use anneal_tests::{Context as _, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::ResourceExt as _;
use serde_json::json;

use crate::scenario::{GENERATED, PATIENCE, phase, until_succeeded};

fn image(variable: &str) -> Result<String> {
    env::var(variable).with_context(|| format!("{variable} is not set; run `make e2e`, which builds the image"))
}

#[tokio::test]
async fn the_example_of_an_image_of_ones_own_reports_progress_and_goes_on_after_its_pod_was_lost() -> Outcome {
    in_namespace(async |ns| {
        let text = include_str!("../../examples/custom-image/trainingrun.yaml");
        let mut run: serde_json::Value = serde_yaml::from_str(text).context("the example is no YAML")?;
        let slower = json!([{"name": "SECONDS_PER_STEP", "value": "0.3"}]);
        let template = json!({"image": image("EXAMPLE_IMAGE")?, "env": slower});
        manifest::merge(&mut run, json!({"spec": {"podTemplate": template}}));
        ns.apply(&run).await?;
        let mut watch = ns.watch::<TrainingRun>("line");
        let step = |run: &TrainingRun| {
            run.status.as_ref().and_then(|status| status.progress.as_ref()).map_or(0, |progress| progress.reported.step)
        };
        let seen = watch.until("it reports progress", PATIENCE, |run| step(run) > 0).await?;
        let before = step(&seen);
        let pods: Vec<Pod> = ns.list("anneal.dev/training-run=line").await?;
        for pod in &pods {
            ns.kubectl(&["delete", "pod", &pod.name_any(), "--wait=false"]).await?.ok()?;
        }
        let second =
            |run: &TrainingRun| run.status.as_ref().and_then(|status| status.attempt) == Some(2) && step(run) > 0;
        let again = watch.until("its second attempt reports progress", PATIENCE, second).await?;
        ensure!(step(&again) >= before, "it began anew: step {} after {before}", step(&again));
        let over = watch.until("it is over", PATIENCE, |run| phase(run).is_some_and(RunPhase::is_terminal)).await?;
        let said = over.status.context("no status")?;
        ensure!(said.result.is_none() && said.completion_time.is_some(), "{said:?}");
        ensure!(ns.table("trainingruns").await?.cell("line", "PHASE")? == "Succeeded");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn two_pods_train_one_model_together_and_begin_again_together_when_one_fails() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("models")).await?;
        // The claim is for one node.
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"anneal.dev/training-run": "together"}}
        }]}});
        let template = json!({
            "image": image("DISTRIBUTED_IMAGE")?, "affinity": near, "sharedMemorySize": "64Mi",
            "env": [{"name": "FAIL_ONCE", "value": "1"}, {"name": "OMP_NUM_THREADS", "value": "1"}]
        });
        ns.apply(&manifest::training_run("together", json!({"numNodes": 2, "podTemplate": template}))).await?;
        let mut watch = ns.watch::<TrainingRun>("together");
        let failed = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| !status.attempts.is_empty());
        watch.until("the first attempt has failed", PATIENCE, failed).await?;
        let result = until_succeeded(&mut watch).await?;
        ensure!(result.dataset.images == 512, "{result:?}");
        let jobs: Vec<Job> = ns.list(GENERATED).await?;
        ensure!(jobs.len() == 2, "two attempts are two Jobs");
        let of_second = "anneal.dev/training-run=together,anneal.dev/attempt=2";
        let pods: Vec<Pod> = ns.list(of_second).await?;
        ensure!(pods.len() == 2, "an attempt on two nodes has two pods");
        Ok(())
    })
    .await
}
