//! The number of pods follows the load.

use anneal_api::resources::{DeploymentPhase, ModelDeployment};
use anneal_tests::{Context as _, Namespace, Outcome, Result, Watch, ensure, in_namespace, manifest};
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, is_observed, rollout, stable_revision, trained, until_stable};

/// Seconds after which a cluster with the usual periods has taken a pod away again.
const SHRINKING: u64 = 420;

#[tokio::test]
async fn a_loaded_deployment_grows_and_shrinks_again() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "cats", json!({})).await?;
        let spec = json!({
            "model": {"trainingRunRef": {"name": "cats"}},
            "replicas": null,
            "autoscaling": {"minReplicas": 1, "maxReplicas": 4}
        });
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&manifest::model_deployment("cats", spec)).await?;
        let stable = until_stable(&mut cats).await?;
        let name = format!("cats-{}", stable_revision(&stable).context("no revision is stable")?);
        let mut deployment = ns.watch::<Deployment>(&name);
        // Starting took more CPU than serving does; the autoscaler may have seen it.
        deployment.until("it has one replica", SHRINKING, |it| replicas(it) == (1, 1)).await?;

        let url = format!("http://cats.{}.svc", ns.name);
        let image = ns.cluster.operator.server_image.clone();
        ns.start("load", &image, &["load", "--url", &url, "--concurrency", "4", "--duration", "60s"], None).await?;
        deployment
            .until("it has grown, and the new pods are ready", PATIENCE, |it| replicas(it).0 > 1 && replicas(it).1 > 1)
            .await?;
        let said = ns.output("load").await?;
        eprintln!("{said}");
        deployment.until("it has shrunk to one replica", SHRINKING, |it| replicas(it) == (1, 1)).await?;
        Ok(())
    })
    .await
}

fn deployment(autoscaling: &Value, round: &str) -> Value {
    let spec = json!({
        "model": {"trainingRunRef": {"name": "cats"}},
        "gate": {"soakSeconds": 20},
        "replicas": null,
        "autoscaling": autoscaling,
        // Another annotation makes another revision.
        "podTemplate": {"annotations": {"example.com/round": round}}
    });
    manifest::model_deployment("cats", spec)
}

/// Watches the Deployment of the revision that has the traffic.
async fn of_stable(ns: &Namespace) -> Result<Watch<Deployment>> {
    let cats: ModelDeployment = ns.get("cats").await?;
    Ok(ns.watch(&format!("cats-{}", stable_revision(&cats).context("no revision is stable")?)))
}

/// How often the number changes its direction.
fn turns(numbers: &[i32]) -> usize {
    let steps: Vec<bool> = numbers.windows(2).filter(|pair| pair[0] != pair[1]).map(|pair| pair[1] > pair[0]).collect();
    steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[tokio::test]
async fn amid_a_rollout_under_load_the_number_of_pods_only_grows_and_shrinks_once_afterwards() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "cats", json!({})).await?;
        let autoscaling = json!({"minReplicas": 1, "maxReplicas": 4});
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment(&autoscaling, "1")).await?;
        until_stable(&mut cats).await?;
        let mut first = of_stable(ns).await?;
        let url = format!("http://cats.{}.svc", ns.name);
        let image = ns.cluster.operator.server_image.clone();
        ns.start("load", &image, &["load", "--url", &url, "--concurrency", "4", "--duration", "150s"], None).await?;
        let grown = |it: &Deployment| replicas(it).0 > 1 && replicas(it).1 > 1;
        let before = replicas(&first.until("it has grown, and the new pods are ready", PATIENCE, grown).await?).0;

        ns.apply(&deployment(&autoscaling, "2")).await?;
        let soaks = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Soaking);
        cats.until("it soaks", PATIENCE, soaks).await?;
        let mut second = of_stable(ns).await?;
        let (mut numbers, mut seen) = (Vec::new(), 0);
        let begins = replicas(&second.until("it is there", PATIENCE, |_| true).await?).0;
        ensure!(begins >= before, "{before} pods had the traffic, {begins} got it");
        until_stable(&mut cats).await?;
        let ends = second.until("the soak is over", PATIENCE, |it| {
            seen = replicas(it).0;
            true
        });
        ends.await?;
        ensure!(seen >= begins, "a pod was taken away before the soak had ended: {begins}, then {seen}");

        let said = ns.output("load").await?;
        eprintln!("{said}");
        let shrunk = second.until("it has shrunk to one replica", SHRINKING, |it| {
            numbers.push(replicas(it).0);
            replicas(it) == (1, 1)
        });
        shrunk.await?;
        numbers.insert(0, begins);
        // Once, when the load ends; what runs beside this test may cost the pods a pod's worth of the processor for a moment before.
        ensure!(turns(&numbers) <= 3, "the number of pods went up and down: {numbers:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn memory_alone_lets_a_deployment_grow_and_lets_it_come_down_again() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "cats", json!({})).await?;
        let bounds = |memory: i32| {
            json!({
                "minReplicas": 1, "maxReplicas": 2,
                "targetCPUUtilizationPercentage": 1000, "targetMemoryUtilizationPercentage": memory
            })
        };
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment(&bounds(1), "1")).await?;
        until_stable(&mut cats).await?;
        let mut deployment_of_cats = of_stable(ns).await?;
        deployment_of_cats.until("it has grown for its memory", PATIENCE, |it| replicas(it) == (2, 2)).await?;
        // It knows nothing for a moment, when a pod is new.
        let measured = |scaler: &HorizontalPodAutoscaler| -> Vec<String> {
            let metrics =
                scaler.status.as_ref().and_then(|status| status.current_metrics.as_ref()).into_iter().flatten();
            metrics.filter_map(|it| Some(it.resource.as_ref()?.name.clone())).collect()
        };
        let mut scaler = ns.watch::<HorizontalPodAutoscaler>("cats");
        scaler.until("it measures both", PATIENCE, |it| measured(it) == ["cpu", "memory"]).await?;

        // An idle server uses less than what the default target lets two pods keep.
        ns.apply(&deployment(&bounds(80), "1")).await?;
        deployment_of_cats.until("it has come down", SHRINKING, |it| replicas(it) == (1, 1)).await?;
        Ok(())
    })
    .await
}

/// Replicas that are wanted, and those that are ready.
fn replicas(deployment: &Deployment) -> (i32, i32) {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    (wanted, deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0))
}
