//! What the schema cannot check about a run: parsed once, so that the plan never looks at raw text.

use anneal_api::{
    dataset::{DatasetUri, DatasetUriError},
    resources::{InitCheckpoint, TrainingRun, TrainingRunSpec},
};
use kube::ResourceExt;

use crate::children::reserved_key;

/// A run whose specification makes sense. Only [`validate`] makes one.
#[derive(Clone, Debug)]
pub struct ValidRun {
    /// Name of the run.
    pub name: String,
    /// The first eight digits of its UID: a recreated namesake is another run.
    pub uid8: String,
    /// Where the dataset lies.
    pub dataset: DatasetUri,
    /// The checkpoint that it begins with, once it is known.
    pub init: Option<InitCheckpoint>,
    /// Everything that needs no parsing.
    pub spec: TrainingRunSpec,
}

/// A specification cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The dataset's URI makes no sense.
    #[error(transparent)]
    Dataset(#[from] DatasetUriError),
    /// The run's own files would be taken for photos.
    #[error(
        "dataset.uri names the root of claim {0}, which the run writes to, so that its own files would be taken for photos; put the photos into a folder there and name it: pvc://{0}/FOLDER"
    )]
    DatasetIsOutput(String),
    /// A user's variable hides one of the contract's.
    #[error("podTemplate.env sets {0}: names that start with ANNEAL_ or PET_ are set by the operator; remove it")]
    ReservedVariable(String),
    /// A user's label or annotation would speak for the operator.
    #[error("podTemplate sets {0}: labels and annotations under anneal.dev/ are the operator's; remove it")]
    ReservedKey(String),
    /// The operator's own trainer knows nothing of other pods.
    #[error(
        "numNodes is {0}, and Anneal's own trainer trains in one pod; name an image in podTemplate whose program spreads the training over nodes, as torchrun does"
    )]
    OneNodeOnly(i32),
}

impl SpecError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dataset(_) => "InvalidDataset",
            Self::DatasetIsOutput(_) => "DatasetIsOutput",
            Self::ReservedVariable(_) => "ReservedVariable",
            Self::ReservedKey(_) => "ReservedKey",
            Self::OneNodeOnly(_) => "OneNodeOnly",
        }
    }

    /// Whether it is about what never changes in a run.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Dataset(_) | Self::DatasetIsOutput(_))
    }
}

/// Parses a run.
///
/// # Errors
/// [`SpecError`], with what to write instead.
pub fn validate(run: &TrainingRun) -> Result<ValidRun, SpecError> {
    let spec = run.spec.clone();
    let is_reserved = |name: &str| name.starts_with("ANNEAL_") || name.starts_with("PET_");
    if let Some(reserved) = spec.pod_template.env.iter().find(|variable| is_reserved(&variable.name)) {
        return Err(SpecError::ReservedVariable(reserved.name.clone()));
    }
    if let Some(reserved) = reserved_key(&spec.pod_template) {
        return Err(SpecError::ReservedKey(reserved.clone()));
    }
    if spec.num_nodes > 1 && spec.pod_template.image.is_none() {
        return Err(SpecError::OneNodeOnly(spec.num_nodes));
    }
    let dataset: DatasetUri = spec.dataset.uri.parse()?;
    // Whoever brings a program knows what it reads.
    if let DatasetUri::Pvc { claim, path } = &dataset
        && path.is_empty()
        && *claim == run.output_claim()
        && spec.pod_template.image.is_none()
    {
        return Err(SpecError::DatasetIsOutput(claim.clone()));
    }
    Ok(ValidRun {
        name: run.name_any(),
        uid8: run.uid().unwrap_or_default().chars().take(8).collect(),
        dataset,
        init: run.status.as_ref().and_then(|status| status.init_from.clone()),
        spec,
    })
}

impl ValidRun {
    /// Directory of this run below the output claim's root.
    pub fn directory(&self) -> String {
        format!("runs/{}-{}", self.name, self.uid8)
    }

    /// Name of the Job of an attempt.
    pub fn job_name(&self, attempt: i32) -> String {
        format!("{}-{attempt}", self.name)
    }

    /// Name of the Service under which the run's pods find each other.
    pub fn nodes_name(&self) -> String {
        format!("{}-nodes", self.name)
    }

    /// The claim that holds the checkpoint to begin with, where it is not the output claim.
    pub fn init_claim(&self) -> Option<&str> {
        let claim = &self.init.as_ref()?.claim_name;
        Some(claim.as_str()).filter(|claim| *claim != self.spec.output.claim(&self.name))
    }

    /// The claim that holds the dataset, where one does.
    pub fn dataset_claim(&self) -> Option<&str> {
        match &self.dataset {
            DatasetUri::Pvc { claim, .. } => Some(claim),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training_run::fixtures::run;

    #[test]
    fn photos_beside_what_a_run_writes_lie_in_a_folder_of_their_own() {
        let checked = |uri: &str, template: &serde_json::Value| {
            validate(&run(&json!({"dataset": {"uri": uri}, "podTemplate": template}))).map(|_| ())
        };
        let refused = checked("pvc://models/", &json!({})).expect_err("a refusal");
        assert_eq!(refused.reason(), "DatasetIsOutput");
        assert!(refused.to_string().contains("pvc://models/FOLDER"), "{refused}");
        assert_eq!(checked("pvc://models/photos", &json!({})), Ok(()));
        assert_eq!(checked("pvc://photos", &json!({})), Ok(()));
        assert_eq!(checked("pvc://models", &json!({"image": "mine:1"})), Ok(()), "its program knows what it reads");
    }
}
