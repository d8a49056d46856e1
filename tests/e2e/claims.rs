//! Where runs write: claims of their own, volumes that belong to root, volumes that are full.

use anneal_api::{
    failure::FailureClass,
    resources::{ModelDeployment, RunPhase, TrainingRun},
};
use anneal_tests::{Context as _, Namespace, Node, Outcome, Result, ensure, in_namespace, manifest};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, condition, phase, trained, until_stable, until_succeeded};

fn own_claim(when_deleted: &str) -> Value {
    json!({"output": {
        "claimName": null, "whenDeleted": when_deleted,
        "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    }})
}

async fn claims(ns: &Namespace) -> Result<Vec<PersistentVolumeClaim>> {
    ns.list("anneal.dev/training-run").await
}

/// Reason and message of the condition `Ready`.
fn reason(run: &TrainingRun) -> Option<(String, String)> {
    let ready = run.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.reason.clone(), ready.message.clone()))
}

async fn delete(ns: &Namespace, run: &str) -> Result<()> {
    ns.kubectl(&["delete", "trainingrun", run, "--timeout=60s"]).await?.ok().map(|_| ())
}

#[tokio::test]
async fn a_claim_made_for_a_run_goes_with_it_unless_it_shall_stay_or_something_serves_from_it() -> Outcome {
    in_namespace(async |ns| {
        for (name, when_deleted) in [("goes", "Delete"), ("stays", "Retain"), ("serves", "Delete")] {
            ns.apply(&manifest::training_run(name, own_claim(when_deleted))).await?;
            until_succeeded(&mut ns.watch(name)).await?;
        }
        ensure!(claims(ns).await?.len() == 3, "three runs, three claims");
        // What it serves matters here, and not whether its pods run.
        let deployment = json!({"model": {"trainingRunRef": {"name": "serves"}}, "replicas": 1});
        ns.apply(&manifest::model_deployment("cats", deployment)).await?;
        for name in ["goes", "stays", "serves"] {
            delete(ns, name).await?;
        }
        let rest = ns
            .until_all::<PersistentVolumeClaim>("anneal.dev/training-run", "one claim is gone", 60, |all| {
                all.len() == 2
            })
            .await?;
        let mut names: Vec<String> = rest.iter().map(kube::ResourceExt::name_any).collect();
        names.sort();
        ensure!(names == ["serves-output", "stays-output"], "{names:?}");
        ensure!(rest.iter().all(|claim| claim.metadata.deletion_timestamp.is_none()), "a claim is on its way out");

        // A namesake writes to the claim that stayed, and begins from the beginning.
        ns.apply(&manifest::training_run("stays", own_claim("Delete"))).await?;
        let result = until_succeeded(&mut ns.watch("stays")).await?;
        ensure!(
            result.resumed_from_step.is_none(),
            "it went on from its namesake's step {:?}",
            result.resumed_from_step
        );
        let claim: PersistentVolumeClaim = ns.get("stays-output").await?;
        ensure!(rest.iter().any(|former| former.uid() == claim.uid()), "another claim was made");
        // The files on it are not its own alone.
        delete(ns, "stays").await?;
        let claim: PersistentVolumeClaim = ns.get("stays-output").await?;
        ensure!(claim.metadata.deletion_timestamp.is_none(), "the claim of a namesake was deleted");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_claim_that_somebody_else_made_is_never_taken() -> Outcome {
    in_namespace(async |ns| {
        ns.apply(&manifest::claim("cats-output")).await?;
        ns.apply(&manifest::training_run("cats", own_claim("Delete"))).await?;
        let mut run = ns.watch::<TrainingRun>("cats");
        let waiting = run.until("it waits", 30, |run| phase(run) == Some(RunPhase::Pending)).await?;
        let (reason, message) = reason(&waiting).context("no condition Ready")?;
        ensure!(reason == "ClaimTaken" && message.contains("was not made for this run"), "{reason}: {message}");
        delete(ns, "cats").await?;
        let claim: PersistentVolumeClaim = ns.get("cats-output").await?;
        ensure!(claim.metadata.deletion_timestamp.is_none(), "it was deleted");
        Ok(())
    })
    .await
}

/// Draws photos into a folder of the claim `models`.
async fn draw_photos(ns: &Namespace) -> Result<()> {
    ns.apply(&manifest::claim("models")).await?;
    let volume = json!({"name": "models", "persistentVolumeClaim": {"claimName": "models"}});
    let mount = json!({"name": "models", "mountPath": "/models"});
    let args = ["synthesize", "--output", "/models/photos", "--images", "40", "--size", "32"];
    ns.start_with("draw", &ns.cluster.operator.trainer_image, &args, &[volume], &[mount]).await?;
    ns.output("draw").await.map(|_| ())
}

#[tokio::test]
async fn one_claim_holds_the_photos_what_is_trained_on_them_and_what_pods_read_beside_the_model() -> Outcome {
    in_namespace(async |ns| {
        draw_photos(ns).await?;
        trained(ns, "first", json!({"dataset": {"uri": "pvc://models/photos"}})).await?;
        // Its root has what the first run wrote, too.
        ns.apply(&manifest::training_run("root", json!({"dataset": {"uri": "pvc://models"}}))).await?;
        let refused = |run: &TrainingRun| reason(run).is_some_and(|(reason, _)| reason == "DatasetIsOutput");
        ns.watch::<TrainingRun>("root").until("it says that photos need a folder", 30, refused).await?;

        let again =
            json!({"dataset": {"uri": "pvc://models/photos"}, "initFrom": {"trainingRunRef": {"name": "first"}}});
        trained(ns, "again", again).await?;
        let own = json!({"model": {"trainingRunRef": {"name": "again"}}, "podTemplate": {
            "volumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "models"}}],
            "volumeMounts": [{"name": "mine", "mountPath": "/photos", "subPath": "photos", "readOnly": true}]
        }});
        ns.apply(&manifest::model_deployment("cats", own)).await?;
        let stable = until_stable(&mut ns.watch::<ModelDeployment>("cats")).await?;
        ensure!(condition(&stable, "Ready").is_some(), "{:?}", stable.status);
        Ok(())
    })
    .await
}

/// A volume that is a directory of the node, and a claim `models` for it.
pub async fn volume_at(ns: &Namespace, node: &Node, path: &str) -> Result<()> {
    let name = format!("{}-volume", ns.name);
    let place = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.name]}
    ]}]}});
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
            "persistentVolumeReclaimPolicy": "Delete", "local": {"path": path}, "nodeAffinity": place,
            "claimRef": {"namespace": ns.name, "name": "models"}
        }
    }))
    .await?;
    let mut claim = manifest::claim("models");
    manifest::merge(&mut claim, json!({"spec": {"storageClassName": "by-hand", "volumeName": name}}));
    ns.apply(&claim).await
}

#[tokio::test]
async fn a_volume_that_belongs_to_root_is_written_to_without_being_root() -> Outcome {
    in_namespace(async |ns| {
        let node = Node::first();
        let path = format!("/var/lib/{}", ns.name);
        node.run(&["mkdir", "--mode=0755", &path]).await?;
        volume_at(ns, &node, &path).await?;
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        let outcome = until_succeeded(&mut ns.watch("cats")).await;
        let owner = node.run(&["stat", "--format=%u:%g", &path]).await;
        node.run(&["rm", "--recursive", &path]).await?;
        outcome?;
        let owner = owner?;
        ensure!(owner.trim() == "0:65532", "it belongs to {owner}");
        Ok(())
    })
    .await
}

/// A volume of its own size in the memory of the first node, behind the claim `models`.
pub struct SmallVolume {
    node: Node,
    path: String,
}

impl SmallVolume {
    /// Makes it, so many MiB large.
    pub async fn make(ns: &Namespace, mebibytes: u32) -> Result<Self> {
        let volume = Self { node: Node::first(), path: format!("/var/lib/{}", ns.name) };
        let Self { node, path } = &volume;
        node.run(&["mkdir", path]).await?;
        node.run(&["mount", "-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs", path]).await?;
        volume_at(ns, node, path).await?;
        Ok(volume)
    }

    /// Makes it so many MiB large.
    pub async fn resize(&self, mebibytes: u32) -> Result<()> {
        self.node.run(&["mount", "-o", &format!("remount,size={mebibytes}m"), &self.path]).await.map(|_| ())
    }

    /// Leaves no room on it.
    pub async fn fill(&self) -> Result<()> {
        let to_the_brim = format!("LC_ALL=C dd if=/dev/zero of={}/filler bs=1M 2>&1 | grep 'No space left'", self.path);
        self.node.run(&["sh", "-c", &to_the_brim]).await.map(|_| ())
    }

    /// Takes away what filled it.
    pub async fn clear(&self) -> Result<()> {
        self.node.run(&["rm", "--force", &format!("{}/filler", self.path)]).await.map(|_| ())
    }

    /// Removes the files of a run that is over, but what it published.
    pub async fn forget(&self, run: &TrainingRun) -> Result<()> {
        let folder = format!("{}/runs/{}-{}", self.path, run.name_any(), &run.uid().unwrap_or_default()[..8]);
        self.node.run(&["rm", "--recursive", "--force", &folder]).await.map(|_| ())
    }

    /// Unmounts it.
    pub async fn remove(&self) -> Result<()> {
        self.node.run(&["umount", "--lazy", &self.path]).await?;
        self.node.run(&["rmdir", &self.path]).await.map(|_| ())
    }
}

#[tokio::test]
async fn a_run_on_a_full_volume_says_so_and_goes_on_from_its_last_good_checkpoint_when_there_is_room() -> Outcome {
    in_namespace(async |ns| {
        // Room for a checkpoint or two, but not for all that the run writes.
        let volume = SmallVolume::make(ns, 80).await?;
        let outcome = full(ns, &volume).await;
        volume.remove().await?;
        outcome
    })
    .await
}

async fn full(ns: &Namespace, volume: &SmallVolume) -> Result<()> {
    ns.apply(&manifest::training_run("cats", json!({"hyperparameters": {"epochs": 3}, "maxRetries": 8}))).await?;
    let mut watch = ns.watch::<TrainingRun>("cats");
    let failed = |run: &TrainingRun| run.status.as_ref().is_some_and(|status| !status.attempts.is_empty());
    let run = watch.until("an attempt has failed", PATIENCE, failed).await?;
    let attempts = run.status.map(|status| status.attempts).unwrap_or_default();
    ensure!(attempts[0].class == Some(FailureClass::DiskFull), "{attempts:?}");
    ensure!(attempts[0].message.contains("No space left on device"), "{attempts:?}");
    ensure!(phase(&ns.get("cats").await?) == Some(RunPhase::Retrying), "it is not tried again");

    volume.resize(1024).await?;
    let result = until_succeeded(&mut watch).await?;
    ensure!(result.resumed_from_step.is_some_and(|step| step > 0), "it began anew: {result:?}");
    Ok(())
}
