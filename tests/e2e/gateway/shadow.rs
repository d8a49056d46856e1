//! Copies of requests for a candidate before its first share, through a real Envoy.

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{canary, gateway, none_failed, rule, until_step, weights};
use crate::{
    scenario::{PATIENCE, condition, is_observed, rollout, stable_revision, trained, until_stable, until_told},
    traffic::{Told, start, told_by},
};

/// Requests whose answers are compared.
const COMPARED: i64 = 100;

/// A deployment of a run's model whose candidates have to agree with what serves; `round` makes a revision of its own.
fn deployment(run: &str, round: &str) -> Value {
    let spec = json!({
        "model": {"trainingRunRef": {"name": run}},
        "gate": {"minAccuracy": 0.8, "soakSeconds": 5},
        "strategy": {"type": "Canary", "canary": {
            "parentRefs": [{"name": "edge"}],
            "shadow": {"minAgreement": 0.95, "minRequests": COMPARED, "timeoutSeconds": 120},
            "steps": [{"setWeight": 50, "pauseSeconds": 5}],
        }},
        "podTemplate": {"annotations": {"example.com/round": round}},
    });
    manifest::model_deployment("cats", spec)
}

/// Draws photos onto a claim on which cats are called dogs, and dogs cats: the folders are mounted crosswise.
async fn draw_swapped(ns: &Namespace) -> Result<()> {
    ns.apply(&manifest::claim("photos")).await?;
    let image = ns.cluster.operator.trainer_image.clone();
    let mounts: Vec<_> = ["train", "val", "test"]
        .iter()
        .flat_map(|split| [("cat", "dog"), ("dog", "cat")].map(|(drawn, called)| (split, drawn, called)))
        .map(|(split, drawn, called)| {
            json!({"name": "photos", "mountPath": format!("/photos/{split}/{drawn}"), "subPath": format!("{split}/{called}")})
        })
        .collect();
    let volume = json!({"name": "photos", "persistentVolumeClaim": {"claimName": "photos"}});
    let args = ["synthesize", "--output", "/photos", "--images", "400", "--size", "32"];
    ns.start_with("draw-swapped", &image, &args, &[volume], &mounts).await?;
    ns.output("draw-swapped").await.map(|_| ())
}

/// When callers first got an answer of the revision.
fn met(told: &Told, revision: &str) -> Option<Timestamp> {
    told.begun.iter().find(|(_, name)| name == revision).map(|(at, _)| *at)
}

#[tokio::test]
async fn a_candidate_that_agrees_is_promoted_and_one_that_disagrees_answers_nobody() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "first", manifest::well_trained(1)).await?;
        draw_swapped(ns).await?;
        let mut swapped = manifest::well_trained(1);
        manifest::merge(&mut swapped, json!({"dataset": {"uri": "pvc://photos"}}));
        trained(ns, "swapped", swapped).await?;
        for class in ["cat", "dog"] {
            ns.apply(&manifest::file(&format!("a-{class}"), "photo.png", &ns.draw(class).await?)).await?;
        }
        let address = gateway(ns).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first", "1")).await?;
        let first = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();
        cats.until("the Gateway takes the route", PATIENCE, |it| condition(it, "RouteAccepted").is_some()).await?;
        for class in ["cat", "dog"] {
            let (url, photos) = (format!("http://{address}"), format!("a-{class}"));
            start(ns, &format!("shows-{class}s"), &url, &["--image", "/files/photo.png"], Some(&photos)).await?;
        }
        let told = async || -> Result<_> { Ok([told_by(ns, "shows-cats").await?, told_by(ns, "shows-dogs").await?]) };

        // The same model in other pods.
        ns.apply(&deployment("first", "2")).await?;
        let (second, _) = until_step(&mut cats, 0).await?;
        let mirror = &rule(ns).await?["filters"][0]["requestMirror"]["backendRef"]["name"];
        ensure!(*mirror == format!("cats-{second}"), "copies go to {mirror}");
        ensure!(weights(ns).await?.into_keys().eq(["cats".to_owned()]), "{:?}", weights(ns).await?);
        let shares = |it: &ModelDeployment| canary(it).is_some_and(|it| it.step == Some(1));
        let sharing = cats.until("it gets a share", PATIENCE, shares).await?;
        let sharing = canary(&sharing).context("no canary")?;
        let compared = sharing.shadow.as_ref().context("nothing is told of the comparison")?;
        println!(
            "RESULT {}",
            json!({"bench": "shadow", "compared": compared.compared, "agreement": compared.agreement})
        );
        ensure!(compared.compared >= COMPARED && compared.agreement == Some(1.0), "{compared:?}");
        let decided = sharing.start_time.0;
        ensure!(stable_revision(&until_stable(&mut cats).await?) == Some(&second), "another revision is stable");
        for told in told().await? {
            none_failed("through the Gateway", &told)?;
            // Whole seconds are kept of the decision.
            let met = met(&told, &second).context("nobody met what was promoted")?;
            ensure!(met >= decided, "somebody met it {met}, before it was decided at {decided}");
        }

        // A model that is as accurate by its own photos, on which cats are called dogs.
        ns.apply(&deployment("swapped", "3")).await?;
        let (third, _) = until_step(&mut cats, 0).await?;
        let degraded = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded);
        let rejected = cats.until("it is Degraded", PATIENCE, degraded).await?;
        let (reason, message) = condition(&rejected, "Degraded").context("it is not Degraded")?;
        println!("{message}");
        ensure!(reason == "ShadowDisagrees" && message.contains("below"), "{reason}: {message}");
        ensure!(stable_revision(&rejected) == Some(&second), "another revision is stable");
        cats.until("nothing is copied any more", 60, |it| canary(it).is_none()).await?;
        ensure!(rule(ns).await?["filters"].as_array().is_none_or(Vec::is_empty), "{}", rule(ns).await?);
        for told in told().await? {
            none_failed("through the Gateway", &told)?;
            ensure!(met(&told, &third).is_none(), "somebody got its answers");
        }
        for reason in ["ShadowBegun", "ShadowAgreed", "ShadowDisagrees"] {
            until_told(ns, "ModelDeployment", reason).await?;
        }
        ensure!(first != second && second != third, "they are not three revisions");
        Ok(())
    })
    .await
}
