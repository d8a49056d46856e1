//! A node that is lost under a run, one that is taken out of the cluster, and one that is full. `make e2e` brings up a second node for this, which takes no other
//! pods.

use anneal_api::{
    failure::FailureClass,
    names::label,
    resources::{TrainingRun, TrainingRunStatus},
};
use anneal_tests::{Context as _, Namespace, Node, Outcome, Result, Watch, ensure, in_namespace, manifest};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Node as KubeNode},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::scenario::{GENERATED, PATIENCE, until_succeeded};

/// What tells Kubernetes that a node is off, and that its pods write no more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

fn status(run: &TrainingRun) -> TrainingRunStatus {
    run.status.clone().unwrap_or_default()
}

#[tokio::test]
async fn a_lost_node_gets_no_second_writer_and_the_run_goes_on_once_the_node_is_said_to_be_off() -> Outcome {
    in_namespace(async |ns| {
        let node = Node::second();
        let outcome = lost(ns, &node).await;
        // The next test, and the next run of this one, want it back.
        let back = node.come_back().await;
        let cleared = ns.kubectl(&["taint", "node", &node.name, &format!("{OUT_OF_SERVICE}-")]).await?;
        outcome?;
        back?;
        ensure!(cleared.success || cleared.err.contains("not found"), "{}", cleared.err);
        Ok(())
    })
    .await
}

/// Starts a run that is long enough on that node, and waits until it has a checkpoint to go on from.
async fn under_way_on(ns: &Namespace, node: &Node) -> Result<Watch<TrainingRun>> {
    ns.apply(&manifest::claim("models")).await?;
    let mut spec = manifest::well_trained(1);
    spec["hyperparameters"]["epochs"] = 30.into();
    spec["maxRetries"] = 0.into();
    spec["podTemplate"] = json!({
        "nodeSelector": {"kubernetes.io/hostname": node.name},
        // By default a pod is kept for five minutes on a node that does not answer.
        "tolerations": [
            {"key": "anneal.dev/test", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
        ],
        "terminationGracePeriodSeconds": 5
    });
    ns.apply(&manifest::training_run("cats", spec)).await?;
    let mut run = ns.watch::<TrainingRun>("cats");
    let kept = |run: &TrainingRun| {
        let progress = status(run).progress;
        progress.and_then(|progress| progress.reported.checkpoint_step).is_some_and(|step| step > 0)
    };
    run.until("it has a checkpoint", PATIENCE, kept).await?;
    Ok(run)
}

async fn lost(ns: &Namespace, node: &Node) -> Result<()> {
    let jobs = ns.record::<Job>(GENERATED).await?;
    let mut run = under_way_on(ns, node).await?;

    // A power cut: nobody is left to tell the API server what became of the pod.
    node.kill("kubelet").await?;
    node.kill("anneal-trainer").await?;
    let told = |run: &TrainingRun| {
        let ready = status(run).conditions.into_iter().find(|condition| condition.type_ == "Ready");
        ready.is_some_and(|ready| ready.reason == "NodeLost" && ready.message.contains("out-of-service"))
    };
    run.until("it says that its node does not answer, and what to do", PATIENCE, told).await?;
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    ensure!(jobs.names() == ["cats-1"], "a second writer was let in: {:?}", jobs.names());

    // Somebody looked, and says that it is off.
    ns.kubectl(&["taint", "node", &node.name, OUT_OF_SERVICE]).await?.ok()?;
    let second = |run: &TrainingRun| status(run).attempt == Some(2);
    let run_again = run.until("its second attempt starts", PATIENCE, second).await?;
    let first = status(&run_again).attempts.into_iter().next().context("no attempt is recorded")?;
    ensure!(first.class == Some(FailureClass::NodeLost) && first.node.as_deref() == Some(&node.name), "{first:?}");

    // Its volume is on that node.
    node.come_back().await?;
    ns.kubectl(&["taint", "node", &node.name, &format!("{OUT_OF_SERVICE}-")]).await?.ok()?;
    let result = until_succeeded(&mut run).await?;
    ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
    let attempts = status(&ns.get("cats").await?).attempts;
    let of_run = format!("{}=cats", label::RUN);
    ensure!(ns.list::<Job>(&of_run).await?.len() == attempts.len(), "each attempt has one Job: {attempts:?}");
    Ok(())
}

#[tokio::test]
async fn a_run_whose_node_is_deleted_waits_for_its_volume_and_goes_on_without_a_retry() -> Outcome {
    in_namespace(async |ns| {
        let node = Node::second();
        let api: Api<KubeNode> = Api::all(ns.cluster.client.clone());
        let before = api.get(&node.name).await?;
        let again = KubeNode {
            metadata: ObjectMeta {
                name: before.metadata.name,
                labels: before.metadata.labels,
                annotations: before.metadata.annotations,
                ..ObjectMeta::default()
            },
            spec: before.spec,
            status: None,
        };
        let outcome = deleted(ns, &node, &api, &again).await;
        if api.get_opt(&node.name).await?.is_none() {
            api.create(&PostParams::default(), &again).await?;
        }
        let back = node.come_back().await;
        outcome?;
        back
    })
    .await
}

/// The machine goes, and is taken out of the cluster, as an autoscaler does; later it is back, with its disk and its taints.
async fn deleted(ns: &Namespace, node: &Node, api: &Api<KubeNode>, again: &KubeNode) -> Result<()> {
    let mut run = under_way_on(ns, node).await?;
    node.kill("kubelet").await?;
    node.kill("anneal-trainer").await?;
    api.delete(&node.name, &DeleteParams::default()).await?;
    let second = |run: &TrainingRun| status(run).attempt == Some(2);
    let run_again = run.until("its second attempt starts", PATIENCE, second).await?;
    let first = status(&run_again).attempts.into_iter().next().context("no attempt is recorded")?;
    ensure!(first.class == Some(FailureClass::NodeLost) && first.node.as_deref() == Some(&node.name), "{first:?}");
    // Its volume is on the node that is gone.
    let waits = |run: &TrainingRun| {
        let ready = status(run).conditions.into_iter().find(|condition| condition.type_ == "Ready");
        ready.is_some_and(|ready| ready.message.contains("node"))
    };
    run.until("it says what it waits for", PATIENCE, waits).await?;

    api.create(&PostParams::default(), again).await?;
    node.come_back().await?;
    let result = until_succeeded(&mut run).await?;
    ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
    let attempts = status(&ns.get("cats").await?).attempts;
    ensure!(attempts.len() == 2, "{attempts:?}");
    Ok(())
}

#[tokio::test]
async fn a_run_makes_room_for_a_more_important_one_and_goes_on_without_a_retry() -> Outcome {
    in_namespace(async |ns| {
        let important = format!("{}-important", ns.name);
        ns.apply(&json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": important},
            "value": 1000
        }))
        .await?;
        let outcome = preempted(ns, &important).await;
        ns.kubectl(&["delete", "priorityclass", &important]).await?.ok()?;
        outcome
    })
    .await
}

async fn preempted(ns: &Namespace, important: &str) -> Result<()> {
    ns.apply(&manifest::claim("models")).await?;
    // One of them fills the node.
    let most = json!({"requests": {"cpu": "1500m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}});
    let there = json!({
        "nodeSelector": {"kubernetes.io/hostname": Node::second().name},
        "tolerations": [{"key": "anneal.dev/test", "operator": "Exists"}], "resources": most
    });
    let mut spec = manifest::well_trained(1);
    manifest::merge(&mut spec, json!({"hyperparameters": {"epochs": 20}, "maxRetries": 0, "podTemplate": there}));
    ns.apply(&manifest::training_run("cats", spec)).await?;
    let mut run = ns.watch::<TrainingRun>("cats");
    let trains = |run: &TrainingRun| status(run).progress.is_some_and(|progress| progress.reported.step > 0);
    run.until("it has trained for a while", PATIENCE, trains).await?;

    let mut urgent = json!({"podTemplate": there});
    urgent["podTemplate"]["priorityClassName"] = important.into();
    ns.apply(&manifest::training_run("urgent", urgent)).await?;
    until_succeeded(&mut ns.watch("urgent")).await?;
    let result = until_succeeded(&mut run).await?;
    ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
    let attempts = status(&ns.get("cats").await?).attempts;
    ensure!(attempts.len() == 2 && attempts[0].class == Some(FailureClass::Preempted), "{attempts:?}");
    Ok(())
}
