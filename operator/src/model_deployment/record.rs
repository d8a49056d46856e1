//! A revision written down for ever: a `ControllerRevision` with what it is made from and the pods as they were first
//! rendered. A Deployment that is made again, by whichever version of the operator, is made from here.

use std::collections::BTreeMap;

use anneal_api::{
    names::label,
    resources::{ModelDeployment, PodTemplate},
    termination::Metrics,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::runtime::RawExtension,
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::{
    objects::{revision_labels, revision_name},
    revision::{ModelFile, Revision, RevisionName},
};
use crate::children;

/// What makes the bytes and the behaviour of a revision's pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// The checkpoint.
    pub model: ModelFile,
    /// What the user says about the pods.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// Tells a restart from what was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
}

/// The training run that a revision's checkpoint comes from, where one made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Origin {
    /// Name of the `TrainingRun`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_run: Option<String>,
    /// Its metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
}

/// A revision as it was written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// UID of the object.
    pub uid: String,
    /// Counts the revisions of a deployment from 1.
    pub number: i64,
    /// What it is made from.
    pub inputs: Inputs,
    /// Where its checkpoint comes from.
    pub origin: Origin,
    /// Its pods.
    pub template: PodTemplateSpec,
}

/// The revisions of a deployment that are written down.
pub type Records = BTreeMap<RevisionName, Record>;

/// The object's data.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(flatten)]
    inputs: Inputs,
    #[serde(flatten)]
    origin: Origin,
    template: PodTemplateSpec,
}

/// The record that an object holds; `None` where it holds none of ours.
pub fn read(object: &ControllerRevision) -> Option<(RevisionName, Record)> {
    let name = RevisionName::parse(object.labels().get(label::REVISION)?)?;
    let data: Data = serde_json::from_value(object.data.as_ref()?.0.clone()).ok()?;
    let Data { inputs, origin, template } = data;
    let (uid, number) = (object.uid().unwrap_or_default(), object.revision);
    Some((name, Record { uid, number, inputs, origin, template }))
}

/// The object that writes a revision down, with its pods.
///
/// # Errors
/// When the pods cannot be written as JSON, which values of these types always can.
pub fn object(
    owner: &ModelDeployment,
    revision: &Revision,
    number: i64,
    template: PodTemplateSpec,
) -> serde_json::Result<ControllerRevision> {
    let name = owner.name_any();
    let data = Data { inputs: revision.inputs.clone(), origin: revision.origin.clone(), template };
    Ok(ControllerRevision {
        metadata: children::metadata(
            owner,
            revision_name(&name, &revision.name),
            revision_labels("revision", &name, Some(&revision.name)),
        ),
        data: Some(RawExtension(serde_json::to_value(data)?)),
        revision: number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        context::Settings,
        model_deployment::{
            objects::server_pod,
            revision::{Past, wanted},
            tests::fixtures::{deployment, valid},
        },
    };

    #[test]
    fn what_was_written_down_is_read_again() {
        let owner = deployment(&serde_json::json!({"model": {"trainingRunRef": {"name": "run"}}}));
        let past = Past { records: &Records::new(), live: None, restart: None };
        let revision = wanted(&valid("cats"), None, past).expect("a revision");
        let template = server_pod("cats", &revision, &Settings::of_tests());
        let object = object(&owner, &revision, 3, template.clone()).expect("json");
        let text = serde_json::to_string(&object).expect("json");
        let (name, record) = read(&serde_json::from_str(&text).expect("an object")).expect("a record");
        assert_eq!((name, record.number), (revision.name, 3));
        assert_eq!((record.inputs, record.template), (revision.inputs, template));
    }

    #[test]
    fn an_object_that_says_something_else_is_no_record() {
        let object: ControllerRevision = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "cats-0123abcd", "labels": {"anneal.dev/revision": "0123abcd"}},
            "data": {"spec": {}}, "revision": 1,
        }))
        .expect("an object");
        assert_eq!(read(&object), None);
    }
}
