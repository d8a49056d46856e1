//! Who needs what a run published: it must not go before they have let go of it.

use std::sync::Arc;

use anneal_api::{
    dataset::DatasetUri,
    resources::{ModelDeployment, RevisionStatus, RunPhase, TrainingRun},
};
use kube::{Resource, ResourceExt};

use crate::runs;

/// What may need a run, of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Users<'a> {
    /// The deployments.
    pub deployments: &'a [ModelDeployment],
    /// Other runs.
    pub runs: &'a [Arc<TrainingRun>],
}

/// A kind and a name, as a sentence names an object.
fn named<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

impl Users<'_> {
    /// Who names the run, follows it as the newest success of a selector, or serves, may go back to, or is to begin with,
    /// what it published.
    pub fn of_run(&self, run: &TrainingRun) -> Vec<String> {
        let name = run.name_any();
        let published = run.status.as_ref().and_then(|status| status.result.as_ref()).map(|result| &result.sha256);
        let serves = |revision: &RevisionStatus| {
            revision.training_run.as_ref() == Some(&name) || Some(&revision.sha256) == published
        };
        let needs = |deployment: &&ModelDeployment| self.wants(deployment, run) || revisions(deployment).any(serves);
        let deployments = self.deployments.iter().filter(needs).map(named);
        let waits = |other: &&Arc<TrainingRun>| is_to_begin_with(other, &name);
        deployments.chain(self.runs.iter().filter(waits).map(|run| named(run.as_ref()))).collect()
    }

    /// Who serves, trains on or begins with what lies on the claim that was made for the run of this name, or writes to it too.
    pub fn of_claim(&self, of: &TrainingRun, claim: &str) -> Vec<String> {
        let run = &of.name_any();
        let serves = |deployment: &&ModelDeployment| {
            deployment.spec.model.claim_name.as_deref() == Some(claim)
                || self.wants(deployment, of)
                || revisions(deployment).any(|revision| revision.training_run.as_ref() == Some(run))
        };
        let begins = |other: &&Arc<TrainingRun>| {
            let pinned = other.status.as_ref().and_then(|status| status.init_from.as_ref());
            let trains_on =
                matches!(other.spec.dataset.uri.parse(), Ok(DatasetUri::Pvc { claim: on, .. }) if on == claim);
            let reads = trains_on || pinned.is_some_and(|pinned| pinned.claim_name == claim);
            let writes = other.output_claim() == claim;
            let uses = other.name_any() != *run && !is_over(other) && (reads || writes);
            is_to_begin_with(other, run) || uses
        };
        let deployments = self.deployments.iter().filter(serves).map(named);
        deployments.chain(self.runs.iter().filter(begins).map(|run| named(run.as_ref()))).collect()
    }

    /// Whether the specification of a deployment asks for what the run published: by its name, or as what succeeded last
    /// of the runs with some labels.
    fn wants(&self, deployment: &ModelDeployment, run: &TrainingRun) -> bool {
        let model = &deployment.spec.model;
        let names = model.training_run_ref.as_ref().is_some_and(|reference| reference.name == run.name_any());
        let follows = model.training_run_selector.as_ref().filter(|selector| selector.matches(run.labels()));
        names
            || follows.is_some_and(|selector| {
                let followed = self.runs.iter().map(Arc::as_ref).filter(|other| selector.matches(other.labels()));
                runs::newest_success(followed.chain([run])).is_some_and(|newest| newest.name_any() == run.name_any())
            })
    }
}

fn revisions(deployment: &ModelDeployment) -> impl Iterator<Item = &RevisionStatus> {
    deployment.status.iter().flat_map(|status| &status.revisions)
}

fn is_over(run: &TrainingRun) -> bool {
    run.status.as_ref().and_then(|status| status.phase).is_some_and(RunPhase::is_terminal)
}

/// Whether a run names this one as what it begins with, and has not written down its checkpoint yet.
fn is_to_begin_with(other: &TrainingRun, name: &str) -> bool {
    let reference = other.spec.init_from.as_ref().and_then(|init| init.training_run_ref.as_ref());
    let is_pinned = other.status.as_ref().is_some_and(|status| status.init_from.is_some());
    reference.is_some_and(|reference| reference.name == name) && !is_pinned && !is_over(other)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::training_run::fixtures::result;

    fn deployment(model: &Value) -> ModelDeployment {
        ModelDeployment::new("web", serde_json::from_value(json!({"model": model})).expect("a spec"))
    }

    fn run(name: &str, init: &Value, status: &Value) -> TrainingRun {
        let spec = json!({"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}, "initFrom": init});
        let mut run = TrainingRun::new(name, serde_json::from_value(spec).expect("a spec"));
        run.status = serde_json::from_value(status.clone()).expect("a status");
        run
    }

    fn of_run(deployments: &[ModelDeployment], others: Vec<TrainingRun>) -> Vec<String> {
        let runs: Vec<Arc<TrainingRun>> = others.into_iter().map(Arc::new).collect();
        Users { deployments, runs: &runs }.of_run(&cats())
    }

    fn cats() -> TrainingRun {
        run("cats", &json!(null), &json!({"result": null}))
    }

    /// A run of team `pets` that ended in this hour, as a deployment of that team may follow it.
    fn ended(name: &str, hour: u8, published: bool) -> TrainingRun {
        let result = published.then(|| result("a", 0.9));
        let status = json!({"completionTime": format!("2026-01-01T{hour:02}:00:00Z"), "result": result});
        let mut run = run(name, &json!(null), &status);
        run.metadata.labels = Some([("team".to_owned(), "pets".to_owned())].into());
        run
    }

    #[test]
    fn a_run_and_its_claim_are_needed_by_the_deployment_that_names_it_or_a_file_on_its_claim() {
        let of_claim = |model: &Value| {
            let deployments = [deployment(model)];
            Users { deployments: &deployments, runs: &[] }.of_claim(&cats(), "cats-output").len()
        };
        assert_eq!(of_claim(&json!({"trainingRunRef": {"name": "cats"}})), 1);
        assert_eq!(of_claim(&json!({"claimName": "cats-output", "path": "a.pth", "sha256": "0".repeat(64)})), 1);
        assert_eq!(of_claim(&json!({"trainingRunRef": {"name": "dogs"}})), 0);
        let names = deployment(&json!({"trainingRunRef": {"name": "cats"}}));
        assert_eq!(of_run(&[names], Vec::new()), ["ModelDeployment web"]);
        assert!(of_run(&[deployment(&json!({"trainingRunRef": {"name": "dogs"}}))], Vec::new()).is_empty());
    }

    #[test]
    fn of_the_runs_that_a_deployment_follows_the_newest_success_is_needed() {
        let follows = [deployment(&json!({"trainingRunSelector": {"matchLabels": {"team": "pets"}}}))];
        let runs = [ended("a", 3, true), ended("b", 5, true), ended("c", 7, false)].map(Arc::new);
        let users = Users { deployments: &follows, runs: &runs };
        let needed = |run: &TrainingRun| (users.of_run(run).len(), users.of_claim(run, "none").len());
        assert_eq!(runs.each_ref().map(|run| needed(run)), [(0, 0), (1, 1), (0, 0)]);
        // The watch may lag behind the run that is looked at.
        assert_eq!(needed(&ended("d", 9, true)), (1, 1));
        let mut stranger = ended("e", 9, true);
        stranger.metadata.labels = Some([("team".to_owned(), "birds".to_owned())].into());
        assert_eq!(needed(&stranger), (0, 0));
    }

    #[test]
    fn a_run_is_needed_by_the_run_that_is_to_begin_with_it_until_that_one_has_written_down_how() {
        let from = json!({"trainingRunRef": {"name": "cats"}});
        let pinned = json!({"initFrom": {"claimName": "models", "path": "x", "sha256": "ab".repeat(32)}});
        assert_eq!(of_run(&[], vec![run("more", &from, &json!({}))]), ["TrainingRun more"]);
        assert!(of_run(&[], vec![run("more", &from, &pinned)]).is_empty());
        assert!(of_run(&[], vec![run("more", &from, &json!({"phase": "Failed"}))]).is_empty());
        assert!(of_run(&[], vec![run("more", &json!(null), &json!({}))]).is_empty());
    }

    #[test]
    fn a_claim_is_needed_by_the_run_that_begins_with_a_file_on_it_until_its_end() {
        let from = json!({"trainingRunRef": {"name": "cats"}});
        let status = |phase: &str| json!({"phase": phase, "initFrom": {"claimName": "cats-output", "path": "x", "sha256": "ab".repeat(32)}});
        let users = |phase: &str| {
            let runs = [Arc::new(run("more", &from, &status(phase)))];
            Users { deployments: &[], runs: &runs }.of_claim(&cats(), "cats-output")
        };
        assert_eq!(users("Retrying"), ["TrainingRun more"]);
        assert!(users("Succeeded").is_empty());
    }

    #[test]
    fn a_claim_is_needed_by_another_run_that_trains_on_photos_there_until_its_end() {
        let users = |name: &str, uri: &str, phase: &str| {
            let mut other = run(name, &json!(null), &json!({"phase": phase}));
            other.spec.dataset.uri = uri.to_owned();
            Users { deployments: &[], runs: &[Arc::new(other)] }.of_claim(&cats(), "cats-output")
        };
        assert_eq!(users("more", "pvc://cats-output/photos", "Retrying"), ["TrainingRun more"]);
        assert!(users("more", "pvc://cats-output/photos", "Failed").is_empty());
        assert!(users("more", "pvc://photos/cats", "Retrying").is_empty());
        assert!(users("cats", "pvc://cats-output/photos", "Retrying").is_empty(), "its own claim goes with it");
    }
}
