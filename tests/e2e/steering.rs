//! What people do to a rollout: approve, pin, scale, restart.

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, Watch, ensure, in_namespace, manifest};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::Pod,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, chosen_by, is_observed, rollout, stable_revision, trained, until_stable};

fn deployment(run: &str, spec: Value) -> Value {
    let mut all = manifest::model_deployment("cats", spec);
    all["spec"]["model"] = json!({"trainingRunRef": {"name": run}});
    all
}

async fn until_phase(cats: &mut Watch<ModelDeployment>, phase: DeploymentPhase) -> Result<ModelDeployment> {
    cats.until(&format!("it is {phase:?}"), PATIENCE, |it| is_observed(it) && rollout(it) == Some(phase)).await
}

/// Waits until another revision than `before` is stable, and returns its name.
async fn until_moved(cats: &mut Watch<ModelDeployment>, before: &str) -> Result<String> {
    let moved = |it: &ModelDeployment| {
        stable_revision(it).is_some_and(|stable| stable != before) && rollout(it) == Some(DeploymentPhase::Stable)
    };
    let done = cats.until("another revision is Stable", PATIENCE, moved).await?;
    stable_revision(&done).map(str::to_owned).context("no revision is stable")
}

async fn annotate(ns: &Namespace, annotation: &str) -> Result<()> {
    ns.kubectl(&["annotate", "modeldeployment", "cats", annotation]).await?.ok().map(|_| ())
}

#[tokio::test]
async fn a_rollout_waits_for_approval_is_pinned_back_restarted_and_scaled_by_hand() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first", json!({}))).await?;
        let first = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();

        // A person has the last word.
        let manual = json!({"gate": {"soakSeconds": 5, "approval": "Manual"}});
        ns.apply(&deployment("second", manual.clone())).await?;
        let waits = until_phase(&mut cats, DeploymentPhase::AwaitingApproval).await?;
        let candidate = waits.status.and_then(|status| status.candidate_revision).context("no candidate")?;
        ensure!(chosen_by(ns, "cats").await? == first, "the Service has moved without a word");
        annotate(ns, &format!("anneal.dev/approve={candidate}")).await?;
        let second = until_moved(&mut cats, &first).await?;
        ensure!(second == candidate, "{second} was promoted, {candidate} was approved");
        let left: ModelDeployment = ns.get("cats").await?;
        ensure!(!left.annotations().contains_key("anneal.dev/approve"), "the request was not consumed");

        // The way back is as it was written down, also when somebody deleted its Deployment.
        let written: ControllerRevision = ns.get(&format!("cats-{first}")).await?;
        ensure!(written.labels().get(label::REVISION) == Some(&first), "{written:?}");
        ns.kubectl(&["delete", "deployment", &format!("cats-{first}")]).await?.ok()?;
        ns.apply(&deployment("second", json!({"pinnedRevision": first}))).await?;
        let again = until_moved(&mut cats, &second).await?;
        ensure!(again == first, "{again} serves, {first} is pinned");

        // Every pod anew, through the gate.
        ns.apply(&deployment("first", json!({}))).await?;
        until_stable(&mut cats).await?;
        annotate(ns, "anneal.dev/restart=1").await?;
        let restarted = until_moved(&mut cats, &first).await?;
        ensure!(chosen_by(ns, "cats").await? == restarted, "the Service has not moved");

        // The number of pods is anybody's where no autoscaling is wanted.
        ns.kubectl(&["scale", "modeldeployment", "cats", "--replicas=2"]).await?.ok()?;
        let name = format!("cats-{restarted}");
        let two = |it: &Deployment| it.status.as_ref().and_then(|status| status.ready_replicas) == Some(2);
        ns.watch::<Deployment>(&name).until("it has two ready pods", PATIENCE, two).await?;
        cats.until("its scale says so, too", PATIENCE, |it| {
            it.status.as_ref().is_some_and(|status| status.replicas == Some(2))
        })
        .await?;
        let selector =
            ns.kubectl(&["get", "modeldeployment", "cats", "--output=jsonpath={.status.selector}"]).await?.ok()?.out;
        ensure!(ns.list::<Pod>(selector.trim()).await?.len() == 2, "{selector} does not choose the two pods");
        Ok(())
    })
    .await
}
