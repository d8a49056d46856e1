//! What gets the traffic, and what never does.

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::scenario::{
    PATIENCE, chosen_by, condition, is_observed, pods_of, rollout, stable_revision, trained, until_stable,
};

/// How many ready endpoints a Service has.
async fn ready_endpoints(ns: &Namespace, service: &str) -> Result<usize> {
    let slices: Vec<EndpointSlice> = ns.list(&format!("kubernetes.io/service-name={service}")).await?;
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = |conditions: Option<&k8s_openapi::api::discovery::v1::EndpointConditions>| {
        conditions.is_some_and(|conditions| conditions.ready == Some(true))
    };
    Ok(endpoints.filter(|endpoint| ready(endpoint.conditions.as_ref())).count())
}

#[tokio::test]
async fn a_checkpoint_with_another_digest_never_gets_traffic() -> Outcome {
    in_namespace(async |ns| {
        let result = trained(ns, "cats", json!({})).await?;
        let wrong = "0".repeat(64);
        let spec = json!({"model": {"claimName": "models", "path": result.checkpoint, "sha256": wrong}});
        let mut deployment = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let mut had_traffic = false;
        let failed = deployment
            .until("it is Failed", PATIENCE, |it| {
                had_traffic |= stable_revision(it).is_some();
                rollout(it) == Some(DeploymentPhase::Failed)
            })
            .await?;
        ensure!(!had_traffic, "a revision had the traffic in between");
        let (reason, message) = condition(&failed, "Degraded").context("it is not Degraded")?;
        ensure!(reason == "DigestMismatch", "{reason}: {message}");
        ensure!(message.contains(&wrong[..8]), "the message does not name the digest: {message}");
        ensure!(chosen_by(ns, "cats").await? == "none", "the Service chooses {}", chosen_by(ns, "cats").await?);
        ensure!(ready_endpoints(ns, "cats").await? == 0, "the Service has endpoints");
        let row = ns.table("modeldeployments").await?;
        ensure!(row.cell("cats", "PHASE")? == "Failed" && row.cell("cats", "STABLE")?.is_empty(), "{row:?}");
        Ok(())
    })
    .await
}

/// A deployment of a run, that has to see `expected` in the picture of a cat.
fn deployment(run: &str, expected: &str) -> Value {
    manifest::model_deployment(
        "cats",
        json!({
            "model": {"trainingRunRef": {"name": run}},
            "gate": {"smokeTest": {"cases": [manifest::smoke_case("smoke", "cat.png", expected)]}}
        }),
    )
}

#[tokio::test]
async fn an_update_that_fails_its_gate_leaves_what_serves_untouched_and_a_good_one_is_promoted() -> Outcome {
    in_namespace(async |ns| {
        let (first, second) = (
            trained(ns, "first", manifest::well_trained(1)).await?,
            trained(ns, "second", manifest::well_trained(2)).await?,
        );
        ensure!(first.sha256 != second.sha256, "two seeds gave one checkpoint");
        ns.apply(&manifest::file("smoke", "cat.png", &ns.draw("cat").await?)).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first", "cat")).await?;
        let stable = until_stable(&mut cats).await?;
        let old = stable_revision(&stable).context("no revision is stable")?.to_owned();
        let pods = pods_of(ns, &old).await?;
        let answer = ns.predict("ask-1", "cats", "smoke", "cat.png").await?;

        // An update whose model does not see what is asked for.
        ns.apply(&deployment("second", "dog")).await?;
        let rejected = cats
            .until("it is Degraded", PATIENCE, |it| is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded))
            .await?;
        let (reason, message) = condition(&rejected, "Degraded").context("it is not Degraded")?;
        ensure!(reason == "SmokeTestFailed", "{reason}: {message}");
        ensure!(message.contains("\"cat\" instead of \"dog\""), "{message}");
        ensure!(condition(&rejected, "Available").is_some(), "it is not Available any more");
        ensure!(stable_revision(&rejected) == Some(&old), "another revision is stable");
        ensure!(chosen_by(ns, "cats").await? == old, "the Service has moved");
        ensure!(pods_of(ns, &old).await? == pods, "the pods of the stable revision changed");
        let again = ns.predict("ask-2", "cats", "smoke", "cat.png").await?;
        ensure!(without_time(&again) == without_time(&answer), "the answers changed:\n{answer}{again}");
        let row = ns.table("modeldeployments").await?;
        for (column, value) in [("PHASE", "Degraded"), ("STABLE", old.as_str()), ("SMOKE", "Failed"), ("READY", "1/1")]
        {
            ensure!(row.cell("cats", column)? == value, "{column} is not {value}: {row:?}");
        }

        // The same model under the right question.
        ns.apply(&deployment("second", "cat")).await?;
        let promoted = until_stable(&mut cats).await?;
        let new = stable_revision(&promoted).context("no revision is stable")?;
        ensure!(new != old, "the old revision is still stable");
        ensure!(chosen_by(ns, "cats").await? == new, "the Service has not moved");
        let revisions = promoted.status.as_ref().map(|status| status.revisions.clone()).unwrap_or_default();
        let digest = revisions.iter().find(|it| it.revision == new).map(|it| it.sha256.clone());
        ensure!(digest.as_ref() == Some(&second.sha256), "the status does not name the checkpoint: {revisions:?}");
        let retired = format!("{}={old}", label::REVISION);
        ns.until_all::<k8s_openapi::api::core::v1::Pod>(
            &retired,
            "the former revision is retired",
            PATIENCE,
            <[_]>::is_empty,
        )
        .await?;
        let answer = ns.predict("ask-3", "cats", "smoke", "cat.png").await?;
        ensure!(answer.contains(" cat "), "{answer}");
        Ok(())
    })
    .await
}

/// What `anneal-server predict` printed, without its last column, the time.
fn without_time(answer: &str) -> Vec<&str> {
    answer.lines().filter_map(|line| line.trim_end().rsplit_once(' ')).map(|(rest, _)| rest.trim_end()).collect()
}
