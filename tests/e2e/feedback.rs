//! What comes back of a model's predictions decides whether it keeps the traffic.

use anneal_api::resources::{DeploymentPhase, ModelDeployment, Performance};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, manifest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Request;
use serde_json::{Value, json};

use crate::scenario::{
    PATIENCE, chosen_by, condition, pods_of, rollout, stable_revision, trained, until_stable, until_told,
};

/// Predictions whose true class is sent, of each revision: as many as a verdict needs, so that none is made before all
/// are sent.
const COUNT: u8 = 20;

fn deployment(run: &str) -> Value {
    let spec = json!({
        "model": {"trainingRunRef": {"name": run}},
        "feedback": {"minAccuracy": 0.9, "minCount": COUNT, "action": "Rollback"}
    });
    manifest::model_deployment("cats", spec)
}

async fn post(ns: &Namespace, pod: &str, path: &str, kind: &str, body: Vec<u8>) -> Result<Value> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:8000/proxy{path}", ns.name);
    let request = Request::post(path).header("Content-Type", kind).body(body)?;
    Ok(serde_json::from_str(&ns.cluster.client.request_text(request).await?)?)
}

/// Asks a pod about a picture again and again, and sends what was right, or what was not.
async fn tell(ns: &Namespace, pod: &str, picture: &[u8], right: bool) -> Result<()> {
    let head =
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n";
    let part = [head.as_bytes(), picture, b"\r\n"].concat();
    let form = [part.repeat(usize::from(COUNT)), b"--b--\r\n".to_vec()].concat();
    let answer = post(ns, pod, "/predict", "multipart/form-data; boundary=b", form).await?;
    for said in answer["predictions"].as_array().context("no predictions")? {
        let predicted = said["prediction"].as_str().context("no class")?;
        let other = if predicted == "cat" { "dog" } else { "cat" };
        let told = json!({"id": said["id"], "class": if right { predicted } else { other }}).to_string();
        let counted = post(ns, pod, "/feedback", "application/json", told.into_bytes()).await?;
        ensure!(counted["counted"] == true, "{counted}");
    }
    Ok(())
}

fn performance(of: &ModelDeployment) -> Option<&Performance> {
    of.status.as_ref()?.performance.as_ref()
}

#[tokio::test]
async fn a_model_that_turns_out_worse_than_asked_gives_the_traffic_back_to_the_one_before() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        let picture = BASE64_STANDARD.decode(ns.draw("cat").await?)?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first")).await?;
        let first = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();

        ns.apply(&deployment("second")).await?;
        let moved = |it: &ModelDeployment| {
            rollout(it) == Some(DeploymentPhase::Stable) && stable_revision(it).is_some_and(|stable| stable != first)
        };
        let second = cats.until("the second model is Stable", PATIENCE, moved).await?;
        let second = stable_revision(&second).context("no revision is stable")?.to_owned();
        let pods = pods_of(ns, &second).await?;
        let pod = pods.first().context("no pod serves")?;
        tell(ns, pod, &picture, false).await?;

        let back = |it: &ModelDeployment| {
            rollout(it) == Some(DeploymentPhase::Degraded) && stable_revision(it) == Some(&first)
        };
        let back = cats.until("the first model serves again", PATIENCE, back).await?;
        ensure!(chosen_by(ns, "cats").await? == first, "the Service has not moved back");
        let (reason, message) = condition(&back, "Degraded").context("it is not Degraded")?;
        ensure!(
            reason == "PerformanceDegraded" && message.contains(&format!("over {COUNT} true classes is 0,")),
            "{reason}: {message}"
        );
        for reason in ["PerformanceDegraded", "RolledBack"] {
            until_told(ns, "ModelDeployment", reason).await?;
        }

        // And what is told of the one that serves now is about that one.
        let pods = pods_of(ns, &first).await?;
        tell(ns, pods.first().context("no pod serves")?, &picture, true).await?;
        let well =
            |it: &ModelDeployment| performance(it).is_some_and(|it| it.revision == first && it.accuracy == Some(1.0));
        let well = cats.until("it is told how well the first model does", PATIENCE, well).await?;
        let told = performance(&well).context("nothing is told")?;
        ensure!(
            told.feedback_count >= i64::from(COUNT) && told.calibration_error.is_some() && told.pods == 1,
            "{told:?}"
        );
        ensure!(condition(&well, "PerformanceDegraded").is_none(), "it is still said to do badly");
        ensure!(stable_revision(&well) == Some(&first), "it went back and forth");
        Ok(())
    })
    .await
}
