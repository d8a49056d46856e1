//! From the plain manifests to the operator: a Service that was there before is taken over under load, given back when
//! what took it fails, and taken for good when it does not.

use std::time::Duration;

use anneal_api::{
    names::label,
    resources::{DeploymentPhase, ModelDeployment},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, kubectl, manifest};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{Pod, Service},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    scenario::{PATIENCE, chosen_by, condition, is_observed, pods_of, rollout, until_told},
    traffic::Traffic,
};

const NAME: &str = "anneal-server";
/// What chooses the pods of the plain manifests.
const PLAIN: &str = "app.kubernetes.io/name=anneal-server";

/// Applies manifests of `deploy/plain`, in this namespace and with the images under test.
async fn apply(ns: &Namespace, manifests: String) -> Result<()> {
    let operator = &ns.cluster.operator;
    let text = manifests
        .replace("ml-models", &ns.name)
        .replace("ghcr.io/anneal-dev/anneal-server:0.2.0", &operator.server_image)
        .replace("ghcr.io/anneal-dev/anneal-trainer:0.2.0", &operator.trainer_image);
    ns.kubectl_with(&["apply", "--filename", "-"], &text).await?.ok().map(|_| ())
}

/// Trains and serves as `docs/how-to/without-the-operator.md` says.
async fn plain(ns: &Namespace) -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/plain");
    for file in ["storage.yaml", "train-job.yaml"] {
        apply(ns, std::fs::read_to_string(format!("{root}/{file}"))?).await?;
    }
    let done = |job: &Job| job.status.as_ref().is_some_and(|status| status.succeeded == Some(1));
    ns.watch::<Job>("train").until("it has trained", 300, done).await?;
    apply(ns, kubectl(&["kustomize", root], None).await?.ok()?.out).await?;
    let ready = |it: &Deployment| it.status.as_ref().and_then(|status| status.ready_replicas) == Some(2);
    ns.watch::<Deployment>(NAME).until("two pods are ready", PATIENCE, ready).await?;
    Ok(())
}

/// The digest of what is served, as the server itself says it.
async fn digest(ns: &Namespace) -> Result<String> {
    let path = format!("/api/v1/namespaces/{}/services/{NAME}:80/proxy/model/info", ns.name);
    let info: Value = serde_json::from_str(&kubectl(&["get", "--raw", &path], None).await?.ok()?.out)?;
    info["sha256"].as_str().map(str::to_owned).context("the server names no digest")
}

fn deployment(sha256: &str, p95: i64) -> Value {
    let spec = json!({
        "model": {"claimName": "models", "path": "run/checkpoints/best_model.pth", "sha256": sha256},
        "service": {"type": "LoadBalancer"},
        "replicas": null,
        "gate": {"soakSeconds": 10, "soakTest": {"maxP95Milliseconds": p95}},
        "podTemplate": {"resources": {"requests": {"cpu": "100m"}}}
    });
    manifest::model_deployment(NAME, spec)
}

/// What callers and the Service's owner see of it.
fn facts(service: &Service) -> (Value, Value, bool) {
    let spec = json!(service.spec);
    let kept = json!({"type": spec["type"], "ports": spec["ports"], "selector": spec["selector"], "clusterIP": spec["clusterIP"]});
    (kept, json!(service.labels()), service.owner_references().is_empty())
}

async fn names(ns: &Namespace, labels: &str) -> Result<Vec<String>> {
    let pods: Vec<Pod> = ns.list(labels).await?;
    let mut names: Vec<_> = pods.iter().map(kube::ResourceExt::name_any).collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn a_service_of_plain_manifests_is_taken_over_under_load_without_a_failed_request() -> Outcome {
    in_namespace(async |ns| {
        plain(ns).await?;
        let sha256 = digest(ns).await?;
        let traffic = Traffic::to(ns, NAME).await?;
        let (before, pods) = (ns.get::<Service>(NAME).await?, names(ns, PLAIN).await?);

        // Not without its owner's word.
        let mut cats = ns.watch::<ModelDeployment>(NAME);
        ns.apply(&deployment(&sha256, 1)).await?;
        let refused = |it: &ModelDeployment| condition(it, "Stalled").is_some_and(|(reason, _)| reason == "NameTaken");
        let told = cats.until("it says that the Service is somebody else's", PATIENCE, refused).await?;
        let (_, message) = condition(&told, "Stalled").context("it is not Stalled")?;
        ensure!(message.contains("anneal.dev/take-over=true"), "{message}");
        ensure!(names(ns, &format!("{}={NAME}", label::DEPLOYMENT)).await?.is_empty(), "pods were started for nothing");

        // What fails under traffic gives it back as it was.
        ns.kubectl(&["annotate", "service", NAME, "anneal.dev/take-over=true"]).await?.ok()?;
        let mut service = ns.watch::<Service>(NAME);
        let chosen = |it: &Service| it.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let moved = |it: &Service| chosen(it).contains_key(label::REVISION);
        service.until("it leads to a revision", PATIENCE, moved).await?;
        let over = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Failed);
        let failed = cats.until("it is Failed", PATIENCE, over).await?;
        ensure!(condition(&failed, "Degraded").is_some_and(|(reason, _)| reason == "SoakFailed"), "{:?}", failed.status);
        let back = ns.get::<Service>(NAME).await?;
        ensure!(facts(&back) == facts(&before), "it is not what it was:\n{:?}\n{:?}", facts(&before), facts(&back));
        ensure!(names(ns, PLAIN).await? == pods, "the pods of the plain manifests changed");

        // And what does not keeps it.
        ns.apply(&deployment(&sha256, 60_000)).await?;
        let soaks = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Soaking);
        cats.until("it soaks", PATIENCE, soaks).await?;
        ensure!(names(ns, PLAIN).await? == pods, "the former pods were touched");
        let taken = ns.get::<Service>(NAME).await?;
        ensure!(taken.annotations().contains_key("anneal.dev/taken-from"), "it could not be given back");
        let stable = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Stable);
        let done = cats.until("it is Stable", PATIENCE, stable).await?;
        let revision = chosen_by(ns, NAME).await?;
        ensure!(pods_of(ns, &revision).await?.len() == 2, "two pods served before");
        let released = |it: &Service| !it.annotations().keys().any(|key| key.starts_with("anneal.dev/"));
        let service = service.until("nothing is kept of what it was", PATIENCE, released).await?;
        ensure!(facts(&service).0["clusterIP"] == facts(&before).0["clusterIP"], "callers need another address");
        ensure!(names(ns, PLAIN).await? == pods, "the former pods are their owner's to delete");
        let impaired = condition(&done, "AutoscalingImpaired").map(|(reason, _)| reason);
        ensure!(impaired.as_deref() == Some("NameTaken"), "{impaired:?}");
        for reason in ["ServiceTakenOver", "ServiceGivenBack", "TakeOverComplete"] {
            until_told(ns, "ModelDeployment", reason).await?;
        }

        // The owner cleans up.
        ns.kubectl(&["delete", "deployment,hpa,poddisruptionbudget", NAME]).await?.ok()?;
        let ours = |all: &[HorizontalPodAutoscaler]| all.iter().any(|it| !it.owner_references().is_empty());
        ns.until_all::<HorizontalPodAutoscaler>("", "the operator has an autoscaler of its own", 90, ours).await?;
        // The last pods that go still have requests under way.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let all = traffic.told().await?;
        let failures: u64 = all.iter().map(|told| told.failures).sum();
        let answers: u64 = all.iter().map(|told| told.answers).sum();
        let gap = all.iter().map(|told| told.max_gap_seconds).fold(0.0, f64::max);
        println!("RESULT {}", json!({"bench": "take-over", "requests": answers + failures, "failed_requests": failures, "max_gap_seconds": gap}));
        let reasons: Vec<_> = all.iter().flat_map(|told| &told.reasons).collect();
        ensure!(failures == 0 && answers > 100, "{failures} of {answers} requests failed: {reasons:?}");
        ensure!(gap <= 1.0, "for {gap:.2} s nobody got an answer");
        Ok(())
    })
    .await
}
