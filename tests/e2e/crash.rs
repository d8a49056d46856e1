//! The operator is killed in the middle: it comes to the same end, and does nothing twice.

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment, RunPhase, TrainingRun},
};
use anneal_tests::{Context as _, Outcome, ensure, in_namespace, manifest};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use serde_json::json;

use crate::scenario::{
    GENERATED, PATIENCE, chosen_by, phase, rollout, stable_revision, trained, until_stable, until_succeeded,
};

#[tokio::test]
async fn a_run_outlives_the_operator_and_no_second_job_is_made() -> Outcome {
    in_namespace(async |ns| {
        let operator = &ns.cluster.operator;
        let jobs = ns.record::<Job>(GENERATED).await?;
        ns.apply(&manifest::claim("models")).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        let mut spec = manifest::well_trained(1);
        // Longer than the operator is away.
        spec["hyperparameters"]["epochs"] = 12.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;

        // Between the Job and the status that tells of it, or right after.
        ns.until_all::<Job>(GENERATED, "the Job is there", PATIENCE, |jobs| !jobs.is_empty()).await?;
        let crash = Timestamp::now();
        operator.crash().await?;
        operator.until_led_again(crash).await?;
        let over =
            |run: &TrainingRun| phase(run) == Some(RunPhase::Running) || phase(run).is_some_and(RunPhase::is_terminal);
        let seen = run.until("the run is Running", PATIENCE, over).await?;
        if phase(&seen) == Some(RunPhase::Running) {
            operator.delete_leader().await?;
        }

        let result = until_succeeded(&mut run).await?;
        ensure!(result.epochs == 12, "{result:?}");
        let done: TrainingRun = ns.get("cats").await?;
        let attempts = done.status.map(|status| status.attempts).unwrap_or_default();
        ensure!(attempts.len() == 1 && attempts[0].class.is_none(), "{attempts:?}");
        ensure!(jobs.names() == ["cats-1"], "Jobs that were made: {:?}", jobs.names());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rollout_outlives_the_operator_and_nothing_is_made_twice() -> Outcome {
    in_namespace(async |ns| {
        let operator = &ns.cluster.operator;
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        let deployment =
            |run: &str| manifest::model_deployment("cats", json!({"model": {"trainingRunRef": {"name": run}}}));
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first")).await?;
        let old = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();

        let labels = format!("{GENERATED},{}=cats", label::DEPLOYMENT);
        let (jobs, deployments) = (ns.record::<Job>(&labels).await?, ns.record::<Deployment>(&labels).await?);
        let former = jobs.names();
        ns.apply(&deployment("second")).await?;
        let is_under_way =
            |it: &ModelDeployment| it.status.as_ref().is_some_and(|status| status.candidate_revision.is_some());
        cats.until("the rollout is under way", PATIENCE, is_under_way).await?;
        let crash = Timestamp::now();
        operator.crash().await?;
        operator.until_led_again(crash).await?;
        // Whatever comes next, unless all is done.
        let asks = |it: &ModelDeployment| {
            let moved = stable_revision(it).is_some_and(|stable| stable != old);
            moved || matches!(rollout(it), Some(DeploymentPhase::SmokeTesting | DeploymentPhase::Promoting))
        };
        cats.until("the candidate is asked, or promoted", PATIENCE, asks).await?;
        operator.delete_leader().await?;

        let moved = |it: &ModelDeployment| {
            stable_revision(it).is_some_and(|stable| stable != old) && rollout(it) == Some(DeploymentPhase::Stable)
        };
        let done = cats.until("the new revision is Stable", PATIENCE, moved).await?;
        let new = stable_revision(&done).context("no revision is stable")?.to_owned();
        ensure!(chosen_by(ns, "cats").await? == new, "the Service has not moved");
        let mut expected = vec![format!("cats-{old}"), format!("cats-{new}")];
        expected.sort();
        ensure!(deployments.names() == expected, "Deployments that were made: {:?}", deployments.names());
        let mut made = jobs.names();
        made.retain(|name| !former.contains(name));
        ensure!(made == [format!("cats-{new}-smoke-1")], "smoke tests that were made: {made:?}");
        Ok(())
    })
    .await
}
