//! The pods that the watch saw leave. A pod whose Job was deleted goes within moments of its end, and what it said last
//! (the step of its checkpoint, its exit code) goes with it; the watch still has it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anneal_api::resources::TrainingRun;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use crate::room::Room;

/// Pods that are kept for one run; a run of many nodes has that many.
const MAX_PODS: usize = 64;

/// The last that was seen of pods that are being deleted, by run. It is a convenience, not a record: an operator that
/// starts anew knows only what the status says.
#[derive(Debug, Default)]
pub struct LastWords(Mutex<HashMap<ObjectRef<TrainingRun>, Vec<Pod>>>);

impl LastWords {
    fn pods(&self) -> MutexGuard<'_, HashMap<ObjectRef<TrainingRun>, Vec<Pod>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the watch saw of a pod, if it is on its way out.
    pub fn note(&self, run: &ObjectRef<TrainingRun>, pod: &Pod) {
        if pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let mut all = self.pods();
        let kept = all.entry(run.clone()).or_default();
        kept.retain(|other| other.uid() != pod.uid());
        let surplus = (kept.len() + 1).saturating_sub(MAX_PODS);
        kept.drain(..surplus);
        kept.push(pod.clone());
    }

    /// What is kept of the pods of a run.
    pub fn of(&self, run: &ObjectRef<TrainingRun>) -> Vec<Pod> {
        self.pods().get(run).cloned().unwrap_or_default()
    }

    /// Forgets the pods of a run: what they said is in its status, or it is gone.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        self.pods().take_out(run);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(uid: &str, leaving: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.into());
        pod.metadata.deletion_timestamp = leaving.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        pod
    }

    #[test]
    fn only_pods_that_leave_are_kept_and_no_more_than_fit() {
        let (words, run) = (LastWords::default(), ObjectRef::new("cats").within("ml"));
        words.note(&run, &pod("stays", false));
        assert!(words.of(&run).is_empty());
        for number in 0..100 {
            words.note(&run, &pod(&number.to_string(), true));
            words.note(&run, &pod(&number.to_string(), true));
        }
        assert_eq!(words.of(&run).len(), MAX_PODS);
        words.forget(&run);
        assert!(words.of(&run).is_empty());
    }
}
