//! The claim that is made for a run, and what becomes of it when the run is deleted.
//!
//! It has no owner reference: the collector would take it together with its run, also while a deployment serves from it.
//! A finalizer on the run makes the operator look first.

use std::collections::BTreeMap;

use anneal_api::{
    names::label,
    resources::{ModelDeployment, TrainingRun, WhenDeleted},
};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::{
    children::labels,
    cluster::{self, ClusterError},
    context::{Context, Transition},
    uses::Users,
};

/// On a run whose claim is deleted with it.
const FINALIZER: &str = "anneal.dev/output";

/// The claim that is made for the run, where it asks for one.
pub fn claim(owner: &TrainingRun) -> Option<PersistentVolumeClaim> {
    let template = owner.spec.output.volume_claim_template.as_ref()?;
    let users = template.metadata.clone().unwrap_or_default();
    let mut all = users.labels;
    all.extend(labels("output", label::RUN, &owner.name_any()));
    all.insert(label::RUN_UID.to_owned(), owner.uid().unwrap_or_default());
    let spec = &template.spec;
    let storage = Quantity(spec.resources.requests.storage.as_str().to_owned());
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(owner.output_claim()),
            namespace: owner.namespace(),
            labels: Some(all),
            annotations: Some(users.annotations).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(spec.access_modes.iter().map(|mode| mode.as_str().to_owned()).collect()),
            storage_class_name: spec.storage_class_name.clone(),
            volume_name: spec.volume_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), storage)])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

fn is_guarded(run: &TrainingRun) -> bool {
    run.finalizers().iter().any(|name| name == FINALIZER)
}

/// Puts the finalizer on a run that needs it, and says whether it did: the run is another object then.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn guard(context: &Context, run: &TrainingRun) -> Result<bool, ClusterError> {
    let needs = run.spec.output.when_deleted == Some(WhenDeleted::Delete);
    if !needs || is_guarded(run) || run.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let finalizers = run.finalizers().iter().cloned().chain([FINALIZER.to_owned()]).collect();
    set_finalizers(context, run, finalizers).await.map(|()| true)
}

/// Deletes the claim of a run that is being deleted, unless something needs what is on it, and lets the run go.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn release(context: &Context, run: &TrainingRun) -> Result<(), ClusterError> {
    if run.metadata.deletion_timestamp.is_none() || !is_guarded(run) {
        return Ok(());
    }
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.output_claim());
    let found: Option<PersistentVolumeClaim> = cluster::get(&context.client, &namespace, &name).await?;
    // A claim that a namesake left behind is that one's, and stays.
    if let Some(claim) = found.filter(|claim| claim.labels().get(label::RUN_UID) == run.uid().as_ref()) {
        let deployments = cluster::list::<ModelDeployment>(&context.client, &namespace, "").await?;
        let runs = context.runs_of(&namespace).await?;
        let users = Users { deployments: &deployments, runs: &runs }.of_claim(run, &name);
        if users.is_empty() {
            cluster::delete(&context.client, &namespace, &claim).await?;
        } else {
            let note = format!(
                "PersistentVolumeClaim {name} is kept, for {} needs what is on it; delete the claim once nothing does",
                users.join(", ")
            );
            context.publish(&run.object_ref(&()), &[Transition::normal("ClaimKept", note)]).await;
        }
    }
    let finalizers = run.finalizers().iter().filter(|name| *name != FINALIZER).cloned().collect();
    set_finalizers(context, run, finalizers).await
}

async fn set_finalizers(context: &Context, run: &TrainingRun, finalizers: Vec<String>) -> Result<(), ClusterError> {
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": run.resource_version()}});
    let namespace = run.namespace().unwrap_or_default();
    let written: TrainingRun = cluster::merge(&context.client, &namespace, &run.name_any(), &patch).await?;
    context.written.note(&written.metadata);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_of_a_run_is_named_after_it_and_belongs_to_nobody() {
        let run: TrainingRun = serde_json::from_value(json!({
            "apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun",
            "metadata": {"name": "cats", "namespace": "ml", "uid": "01234567-89"},
            "spec": {
                "dataset": {"uri": "synthetic://"},
                "output": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"team": "pets"}},
                    "spec": {"resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast"}
                }}
            }
        }))
        .expect("a run");
        let claim = claim(&run).expect("a claim");
        assert_eq!(claim.name_any(), "cats-output");
        assert!(claim.owner_references().is_empty());
        assert_eq!((claim.labels()["team"].as_str(), claim.labels()[label::RUN].as_str()), ("pets", "cats"));
        let spec = claim.spec.expect("a spec");
        assert_eq!(spec.access_modes.expect("modes"), ["ReadWriteOnce"]);
        assert_eq!(spec.storage_class_name.as_deref(), Some("fast"));
    }
}
