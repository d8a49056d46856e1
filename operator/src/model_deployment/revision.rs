//! What a revision is: everything that makes the bytes and the behaviour of its pods, and the name made from that.

use std::fmt;

use anneal_api::{
    Sha256,
    resources::{ModelDeploymentStatus, PodTemplate, RevisionStatus, RunPhase, TrainingRun},
    termination::Metrics,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Digest;

use super::validate::{Model, ValidDeployment};

/// Version of what the name is made from. An operator that hashes something else raises it, and keeps the old way for
/// the revisions that exist, so that its installation starts no rollout.
pub const INPUTS_VERSION: u32 = 1;

/// Name of a revision: the first eight digits of the hash over its inputs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionName(String);

impl RevisionName {
    /// The name that an object carries; `None` where the text cannot be one, such as the selector's `none`.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        valid.then(|| Self(text.to_owned()))
    }

    /// The name, as labels and status have it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checkpoint: a file on a claim, and the digest that it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelFile {
    /// The `PersistentVolumeClaim`.
    pub claim_name: String,
    /// The file, relative to the claim's root.
    pub path: String,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// A revision that the spec asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Its name.
    pub name: RevisionName,
    /// Its checkpoint.
    pub model: ModelFile,
    /// `TrainingRun` that made the checkpoint.
    pub training_run: Option<String>,
    /// Metrics of that run.
    pub metrics: Option<Metrics>,
    /// What the user says about its pods.
    pub pods: PodTemplate,
}

impl Revision {
    fn new(model: ModelFile, training_run: Option<String>, metrics: Option<Metrics>, pods: &PodTemplate) -> Self {
        let inputs = json!({"version": INPUTS_VERSION, "model": model, "podTemplate": pods});
        let name = RevisionName(short_hash(&inputs));
        Self { name, model, training_run, metrics, pods: pods.clone() }
    }
}

/// The first eight digits of the SHA-256 of a value's JSON, its keys sorted.
pub fn short_hash(value: &Value) -> String {
    Sha256::from_bytes(sha2::Sha256::digest(value.to_string()).into()).short(8).to_owned()
}

/// Something that a rollout waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// One `CamelCase` word.
    pub reason: &'static str,
    /// What is awaited, and what to do.
    pub message: String,
    /// Whether nothing will come of it unless somebody acts.
    pub stalled: bool,
}

impl Waiting {
    /// Something that is on its way.
    pub fn soon(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), stalled: false }
    }

    /// Something that somebody has to mend.
    pub fn stalled(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), stalled: true }
    }
}

/// The model of a revision whose run is gone, as its Deployment and the status remember it.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// The checkpoint.
    pub model: ModelFile,
    /// Metrics of the run.
    pub metrics: Option<Metrics>,
}

/// The newest entry of the status about a run.
pub fn entry_of_run<'a>(status: &'a ModelDeploymentStatus, run: &str) -> Option<&'a RevisionStatus> {
    let of_run = |entry: &&RevisionStatus| entry.training_run.as_deref() == Some(run);
    let live =
        status.revisions.iter().filter(of_run).find(|entry| status.stable_revision.as_ref() == Some(&entry.revision));
    live.or_else(|| status.revisions.iter().rfind(of_run))
}

/// The revision that the spec asks for.
///
/// # Errors
/// What it waits for, where the spec names a run that has published nothing yet.
pub fn wanted(
    spec: &ValidDeployment,
    run: Option<&TrainingRun>,
    remembered: Option<&Remembered>,
) -> Result<Revision, Waiting> {
    let name = match &spec.model {
        Model::File(file) => return Ok(Revision::new(file.clone(), None, None, &spec.pods)),
        Model::Run(name) => name,
    };
    let Some(run) = run else {
        // A run may be collected once it is over. What it published is still on its claim.
        return match remembered {
            Some(Remembered { model, metrics }) => {
                Ok(Revision::new(model.clone(), Some(name.clone()), *metrics, &spec.pods))
            }
            None => Err(Waiting::soon(
                "TrainingRunNotFound",
                format!("there is no TrainingRun {name} in this namespace; create it, or correct model.trainingRunRef"),
            )),
        };
    };
    let status = run.status.as_ref();
    match (status.and_then(|status| status.phase), status.and_then(|status| status.result.as_ref())) {
        (Some(RunPhase::Succeeded), Some(result)) => {
            let claim_name = run.spec.output.claim_name.clone();
            let model = ModelFile { claim_name, path: result.checkpoint.clone(), sha256: result.sha256.clone() };
            Ok(Revision::new(model, Some(name.clone()), Some(result.metrics), &spec.pods))
        }
        (Some(RunPhase::Succeeded), None) => Err(Waiting::stalled(
            "TrainingRunWithoutResult",
            format!(
                "TrainingRun {name} has succeeded, but its image reported no published model; name the file by claimName, path and sha256"
            ),
        )),
        (Some(RunPhase::Failed), _) => Err(Waiting::stalled(
            "TrainingRunFailed",
            format!("TrainingRun {name} failed and published nothing; `kubectl describe trainingrun {name}` says why"),
        )),
        (phase, _) => Err(Waiting::soon(
            "TrainingRunNotReady",
            format!(
                "TrainingRun {name} is {}; the rollout starts when it has succeeded",
                phase.map_or("not started", RunPhase::as_str)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_deployment::tests::fixtures::{digest, valid};

    fn name(change: impl FnOnce(&mut ValidDeployment)) -> RevisionName {
        let mut spec = valid("cats");
        change(&mut spec);
        wanted(&spec, None, None).expect("a revision").name
    }

    #[test]
    fn the_name_of_a_revision_never_changes_between_versions_of_the_operator() {
        assert_eq!(name(|_| {}).as_str(), "50d78904");
    }

    #[test]
    fn everything_that_makes_a_pod_behave_otherwise_makes_another_revision() {
        let same = name(|_| {});
        let file = |change: fn(&mut ModelFile)| {
            name(|spec| {
                if let Model::File(file) = &mut spec.model {
                    change(file);
                }
            })
        };
        assert_ne!(same, file(|file| file.sha256 = digest('b')));
        assert_ne!(same, file(|file| file.path = "other.pth".to_owned()));
        assert_ne!(same, file(|file| file.claim_name = "other".to_owned()));
        assert_ne!(same, name(|spec| spec.pods.image = Some("server:2".to_owned())));
        assert_ne!(same, name(|spec| spec.pods.env = vec![crate::children::env("A", "b")]));
        assert_ne!(same, name(|spec| spec.pods.command = vec!["server".to_owned()]));
    }

    #[test]
    fn size_gate_and_service_make_no_new_revision() {
        let same = name(|_| {});
        assert_eq!(same, name(|spec| spec.size = super::super::validate::Size::Fixed(7)));
        assert_eq!(same, name(|spec| spec.service.port = 8080));
        assert_eq!(same, name(|spec| spec.history = 0));
    }

    #[test]
    fn only_eight_hexadecimal_digits_name_a_revision() {
        assert!(RevisionName::parse("0123abcd").is_some());
        for wrong in ["none", "", "0123ABCD", "0123abcde", "0123abcg"] {
            assert!(RevisionName::parse(wrong).is_none(), "{wrong} was taken");
        }
    }
}
