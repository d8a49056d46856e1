//! What the operator itself wrote last: the watch may lag behind it, and a run that looks unfinished although its end was
//! just written would start once more.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anneal_api::resources::TrainingRun;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::ObjectRef;

use crate::room::Room;

/// The versions of runs that the watch has yet to tell of.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<ObjectRef<TrainingRun>, u64>>);

/// The version of a run as a number, which grows with each write; `None` where the API server has others.
fn version(run: &ObjectMeta) -> Option<u64> {
    run.resource_version.as_ref()?.parse().ok()
}

impl Written {
    fn versions(&self) -> MutexGuard<'_, HashMap<ObjectRef<TrainingRun>, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the metadata of a run as the API server has it.
    pub fn note(&self, run: &ObjectMeta) {
        let name = run.name.as_deref().unwrap_or_default();
        let namespace = run.namespace.as_deref().unwrap_or_default();
        self.versions().insert(ObjectRef::new(name).within(namespace), version(run).unwrap_or(u64::MAX));
    }

    /// Somebody else wrote, and nobody knows what.
    pub fn doubt(&self, run: &ObjectRef<TrainingRun>) {
        self.versions().insert(run.clone(), u64::MAX);
    }

    /// Whether what the watch told of a run is as new as what was written.
    pub fn is_in(&self, told: &TrainingRun) -> bool {
        let (mut versions, run) = (self.versions(), ObjectRef::from(told));
        let is_in =
            versions.get(&run).is_none_or(|written| version(&told.metadata).is_some_and(|told| told >= *written));
        if is_in {
            versions.take_out(&run);
        }
        is_in
    }

    /// Forgets a run that is gone.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        self.versions().take_out(run);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training_run::fixtures;

    fn run(version: &str) -> TrainingRun {
        let mut run = fixtures::run(&json!({}));
        run.metadata.namespace = Some("ml".to_owned());
        run.metadata.resource_version = Some(version.to_owned());
        run
    }

    #[test]
    fn what_the_watch_tells_counts_only_once_it_has_caught_up() {
        let written = Written::default();
        assert!(written.is_in(&run("5")), "nothing was written");
        written.note(&run("10").metadata);
        assert!(!written.is_in(&run("9")));
        assert!(written.is_in(&run("10")));
        assert!(written.is_in(&run("9")), "only one write was to be waited for");
    }

    #[test]
    fn a_version_that_is_no_number_is_never_taken_for_new_enough() {
        let written = Written::default();
        written.doubt(&ObjectRef::from(&run("1")));
        assert!(!written.is_in(&run("12")));
        written.note(&run("12").metadata);
        assert!(!written.is_in(&run("abc")));
        written.note(&run("abc").metadata);
        assert!(!written.is_in(&run("12")));
    }
}
