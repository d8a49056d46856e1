//! What a revision is: everything that makes the bytes and the behaviour of its pods, and the name made from that.

use std::fmt;

use anneal_api::{
    Sha256,
    resources::{PodTemplate, RunPhase, TrainingRun},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Digest;

use super::{
    record::{Inputs, Origin, Record, Records},
    validate::{Model, ValidDeployment},
};
use crate::runs::completed;

/// Version of what a new name is made from. Revisions that are written down keep theirs, so that an operator that hashes
/// something else starts no rollout.
const INPUTS_VERSION: u32 = 1;

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

/// A checkpoint: where it is, and the digest that it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Place {
    /// On a volume.
    Claim {
        /// The `PersistentVolumeClaim`.
        claim_name: String,
        /// The file, relative to the claim's root.
        path: String,
    },
    /// At a server.
    Server {
        /// Its address.
        uri: String,
        /// Secret with what the server asks for.
        #[serde(skip_serializing_if = "Option::is_none")]
        credentials_secret: Option<String>,
    },
}

impl ModelFile {
    /// A file on a claim.
    pub fn on_claim(claim_name: impl Into<String>, path: impl Into<String>, sha256: Sha256) -> Self {
        Self { place: Place::Claim { claim_name: claim_name.into(), path: path.into() }, sha256 }
    }

    /// The claim that it is on, if it is on one.
    pub fn claim(&self) -> Option<&str> {
        match &self.place {
            Place::Claim { claim_name, .. } => Some(claim_name),
            Place::Server { .. } => None,
        }
    }

    /// Where the server finds it, below the folder of models.
    pub fn path(&self) -> String {
        match &self.place {
            Place::Claim { path, .. } => path.clone(),
            Place::Server { .. } => self.sha256.file_name(),
        }
    }
}

/// A revision that the spec asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Its name.
    pub name: RevisionName,
    /// What makes its pods.
    pub inputs: Inputs,
    /// Where its checkpoint comes from.
    pub origin: Origin,
}

/// What is known of the revisions so far.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    /// Those that are written down.
    pub records: &'a Records,
    /// The one that has the traffic.
    pub live: Option<&'a RevisionName>,
    /// Asks for new pods of the same inputs; another value than before makes another revision.
    pub restart: Option<&'a str>,
}

impl Past<'_> {
    /// The newest record of a run's checkpoint; the one that has the traffic comes first.
    fn of_run(&self, run: &str) -> Option<&Record> {
        let of_run = |record: &&Record| record.origin.training_run.as_deref() == Some(run);
        let live = self.live.and_then(|live| self.records.get(live)).filter(of_run);
        live.or_else(|| self.records.values().filter(of_run).max_by_key(|record| record.number))
    }

    /// The revision of these inputs. One that is written down keeps its name, whatever this version of the operator
    /// would call it, and a restart stays in force for as long as the inputs are wanted.
    fn revision(&self, model: ModelFile, pods: &PodTemplate, origin: Origin) -> Revision {
        let mut inputs = Inputs { model, pod_template: pods.clone(), restart: None };
        let same = |record: &Record| record.inputs.model == inputs.model && record.inputs.pod_template == *pods;
        let known = self.records.iter().filter(|(_, record)| same(record)).max_by_key(|(_, record)| record.number);
        let is_current = |record: &Record| self.restart.is_none() || record.inputs.restart.as_deref() == self.restart;
        if let Some((name, record)) = known.filter(|(_, record)| is_current(record)) {
            return Revision { name: name.clone(), inputs: record.inputs.clone(), origin };
        }
        inputs.restart = self.restart.map(str::to_owned);
        Revision { name: self.free_name(&inputs), inputs, origin }
    }

    /// The name of new inputs: another one where other inputs happen to have the same eight digits.
    fn free_name(&self, inputs: &Inputs) -> RevisionName {
        let free = |name: &RevisionName| !self.records.contains_key(name);
        (0..=u32::MAX).map(|collisions| name(inputs, collisions)).find(free).unwrap_or_else(|| name(inputs, 0))
    }
}

/// The name that inputs have by themselves.
fn name(inputs: &Inputs, collisions: u32) -> RevisionName {
    let mut all = json!({"version": INPUTS_VERSION, "model": inputs.model, "podTemplate": inputs.pod_template});
    if let Some(restart) = &inputs.restart {
        all["restart"] = json!(restart);
    }
    if collisions > 0 {
        all["collisions"] = json!(collisions);
    }
    RevisionName(short_hash(&all))
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

/// The revision that the spec asks for.
///
/// # Errors
/// What it waits for, where the spec names a run that has published nothing yet, or a revision that nobody knows.
pub fn wanted(spec: &ValidDeployment, run: Option<&TrainingRun>, past: Past<'_>) -> Result<Revision, Waiting> {
    if let Some(pinned) = &spec.pinned {
        return pinned_one(pinned, past.records);
    }
    let name = match &spec.model {
        Model::File(file) => return Ok(past.revision(file.clone(), &spec.pods, Origin::default())),
        Model::Run(name) => name,
        Model::Newest(_) => match newest(run, past) {
            Followed::Run(name) => name,
            Followed::Kept(record) => {
                return Ok(past.revision(record.inputs.model.clone(), &spec.pods, record.origin.clone()));
            }
            Followed::Nothing => {
                return Err(Waiting::soon(
                    "TrainingRunNotFound",
                    "no TrainingRun of model.trainingRunSelector has succeeded yet; the rollout starts when one has",
                ));
            }
        },
    };
    let Some(run) = run else {
        // A run may be collected once it is over. What it published is still on its claim.
        return match past.of_run(name) {
            Some(record) => Ok(past.revision(record.inputs.model.clone(), &spec.pods, record.origin.clone())),
            None => Err(Waiting::soon(
                "TrainingRunNotFound",
                format!("there is no TrainingRun {name} in this namespace; create it, or correct model.trainingRunRef"),
            )),
        };
    };
    let status = run.status.as_ref();
    match (status.and_then(|status| status.phase), status.and_then(|status| status.result.as_ref())) {
        (Some(RunPhase::Succeeded), Some(result)) => {
            let model = ModelFile::on_claim(run.output_claim(), result.checkpoint.clone(), result.sha256.clone());
            let (training_run, metrics) = (Some(name.clone()), Some(result.metrics));
            Ok(past.revision(model, &spec.pods, Origin { training_run, metrics, completed: completed(run) }))
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

/// What comes of following runs.
enum Followed<'a> {
    /// This run is the newest.
    Run(&'a String),
    /// What serves is newer, although its run is gone.
    Kept(&'a Record),
    /// No run has succeeded.
    Nothing,
}

/// Whose model is to be served: an older run that is left over must not take the place of a newer one that was
/// collected.
fn newest<'a>(run: Option<&'a TrainingRun>, past: Past<'a>) -> Followed<'a> {
    let live = past.live.and_then(|live| past.records.get(live)).filter(|live| live.origin.training_run.is_some());
    match (run, live) {
        (Some(run), Some(live)) if live.origin.completed > completed(run) => Followed::Kept(live),
        (Some(run), _) => run.metadata.name.as_ref().map_or(Followed::Nothing, Followed::Run),
        (None, Some(live)) => Followed::Kept(live),
        (None, None) => Followed::Nothing,
    }
}

/// The revision that `pinnedRevision` names.
fn pinned_one(name: &RevisionName, records: &Records) -> Result<Revision, Waiting> {
    let Some(record) = records.get(name) else {
        let known: Vec<&str> = records.keys().map(RevisionName::as_str).collect();
        return Err(Waiting::stalled(
            "RevisionNotFound",
            format!(
                "pinnedRevision {name} is not kept; name one of {}, or remove pinnedRevision",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        ));
    };
    let Record { inputs, origin, .. } = record.clone();
    Ok(Revision { name: name.clone(), inputs, origin })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodTemplateSpec;

    use super::*;
    use crate::{
        model_deployment::tests::fixtures::{digest, valid},
        training_run::fixtures::result,
    };

    fn elsewhere(claim: &str, path: &str) -> Place {
        Place::Claim { claim_name: claim.to_owned(), path: path.to_owned() }
    }

    fn in_past(spec: &ValidDeployment, records: &Records, restart: Option<&str>) -> Revision {
        wanted(spec, None, Past { records, live: None, restart }).expect("a revision")
    }

    fn name(change: impl FnOnce(&mut ValidDeployment)) -> RevisionName {
        let mut spec = valid("cats");
        change(&mut spec);
        in_past(&spec, &Records::new(), None).name
    }

    fn record(revision: &Revision, number: i64) -> (RevisionName, Record) {
        let (inputs, template) = (revision.inputs.clone(), PodTemplateSpec::default());
        let record = Record { uid: String::new(), number, inputs, origin: Origin::default(), template };
        (revision.name.clone(), record)
    }

    #[test]
    fn two_revisions_of_one_hash_get_two_names() {
        let spec = valid("cats");
        let first = in_past(&spec, &Records::new(), None);
        // Other inputs that happen to have the same eight digits.
        let mut other = first.clone();
        other.inputs.model.place = elsewhere("models", "other.pth");
        let records = Records::from([record(&other, 1)]);
        let second = in_past(&spec, &records, None);
        assert_ne!(first.name, second.name);
        assert_eq!(second, in_past(&spec, &Records::from([record(&other, 1), record(&second, 2)]), None));
    }

    #[test]
    fn a_revision_keeps_the_name_that_another_version_of_the_operator_gave_it() {
        let spec = valid("cats");
        let mut old = in_past(&spec, &Records::new(), None);
        old.name = RevisionName::parse("0123abcd").expect("a name");
        assert_eq!(in_past(&spec, &Records::from([record(&old, 1)]), None), old);
    }

    #[test]
    fn a_restart_makes_another_revision_and_stays_in_force() {
        let spec = valid("cats");
        let first = in_past(&spec, &Records::new(), None);
        let mut records = Records::from([record(&first, 1)]);
        let second = in_past(&spec, &records, Some("1"));
        assert_ne!(first.name, second.name);
        records.extend([record(&second, 2)]);
        assert_eq!(in_past(&spec, &records, None), second, "once the request is consumed");
        assert_eq!(in_past(&spec, &records, Some("1")), second, "the same request again");
        assert_ne!(in_past(&spec, &records, Some("2")).name, second.name);
    }

    #[test]
    fn an_older_run_does_not_take_the_place_of_a_newer_one_that_was_collected() {
        let mut spec = valid("cats");
        spec.model = Model::Newest([("app".to_owned(), "cats".to_owned())].into());
        let run = |name: &str, digit: &str, minute: u32| -> TrainingRun {
            let result = result(digit, 0.9);
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}},
                "status": {
                    "phase": "Succeeded", "result": result, "completionTime": format!("2026-01-01T00:{minute:02}:00Z")
                },
            }))
            .expect("a run")
        };
        let (old, new) = (run("old", "a", 1), run("new", "b", 2));
        let none = Records::new();
        let past = Past { records: &none, live: None, restart: None };
        assert!(wanted(&spec, None, past).is_err());
        let newer = wanted(&spec, Some(&new), past).expect("a revision");
        let (name, mut written) = record(&newer, 1);
        written.origin = newer.origin.clone();
        let records = Records::from([(name, written)]);
        let past = Past { records: &records, live: Some(&newer.name), restart: None };
        for left in [None, Some(&old), Some(&new)] {
            assert_eq!(wanted(&spec, left, past).expect("a revision").name, newer.name);
        }
        let newest = run("newest", "c", 3);
        assert_ne!(wanted(&spec, Some(&newest), past).expect("a revision").name, newer.name);
    }

    #[test]
    fn a_pinned_revision_is_what_was_written_down() {
        let mut spec = valid("cats");
        let first = in_past(&spec, &Records::new(), None);
        let records = Records::from([record(&first, 1)]);
        spec.pods.image = Some("server:2".to_owned());
        spec.pinned = Some(first.name.clone());
        assert_eq!(in_past(&spec, &records, None), first);
        spec.pinned = RevisionName::parse("0123abcd");
        let problem = wanted(&spec, None, Past { records: &records, live: None, restart: None }).expect_err("unknown");
        assert!(problem.stalled && problem.message.contains(first.name.as_str()), "{}", problem.message);
    }

    #[test]
    fn the_name_of_a_revision_never_changes_between_versions_of_the_operator() {
        assert_eq!(name(|_| {}).as_str(), "50d78904");
    }

    #[test]
    fn everything_that_makes_a_pod_behave_otherwise_makes_another_revision() {
        let same = name(|_| {});
        let file = |change: &dyn Fn(&mut ModelFile)| {
            name(|spec| {
                if let Model::File(file) = &mut spec.model {
                    change(file);
                }
            })
        };
        assert_ne!(same, file(&|file| file.sha256 = digest('b')));
        assert_ne!(same, file(&|file| file.place = elsewhere("models", "other.pth")));
        assert_ne!(same, file(&|file| file.place = elsewhere("other", &file.path())));
        let at_server = |uri: &str| Place::Server { uri: uri.to_owned(), credentials_secret: None };
        assert_ne!(same, file(&|file| file.place = at_server("https://models/cats.pth")));
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
