//! What the watches know of the runs' Jobs and pods, so that a reconcile asks the API server for nothing that it was told
//! already. Ten thousand of each fit, because only what a plan reads of an object is kept, as text, and nothing of a run
//! that has ended.

use std::{
    collections::{HashMap, HashSet},
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anneal_api::{names::label, resources::TrainingRun};
use futures::{Stream, StreamExt};
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{Pod, PodSpec},
};
use kube::{
    ResourceExt,
    runtime::{
        reflector::ObjectRef,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;

use crate::cluster::Object;

/// Longest time that a reconcile waits for the watches. Then it asks the API server, whose answer says what is wrong.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A kind of object of which the watch keeps what plans read.
pub trait Essential: Object {
    /// Takes away what no plan reads.
    fn keep_essentials(&mut self);
}

impl Essential for Job {
    fn keep_essentials(&mut self) {
        self.metadata.managed_fields = None;
        self.spec = self.spec.take().map(|spec| JobSpec { suspend: spec.suspend, ..JobSpec::default() });
    }
}

impl Essential for Pod {
    fn keep_essentials(&mut self) {
        self.metadata.managed_fields = None;
        self.spec = self.spec.take().map(|spec| PodSpec { node_name: spec.node_name, ..PodSpec::default() });
    }
}

/// What the watches know of the runs' Jobs and pods.
#[derive(Debug, Default)]
pub struct Known {
    /// The Jobs.
    pub jobs: Shelf<Job>,
    /// The pods.
    pub pods: Shelf<Pod>,
}

impl Known {
    /// Waits until both watches have told all that there is. Returns whether they have: one that may not list never does, and
    /// whoever waits holds a turn that others want.
    pub async fn complete(&self) -> bool {
        let both = async { tokio::join!(self.jobs.complete(), self.pods.complete()) };
        tokio::time::timeout(TIMEOUT, both).await.is_ok()
    }

    /// Forgets the Jobs and pods of a run.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        self.jobs.contents().remove(run);
        self.pods.contents().remove(run);
    }
}

/// Objects of one kind, by the run that they belong to.
#[derive(Debug)]
pub struct Shelf<K> {
    by_run: Mutex<HashMap<ObjectRef<TrainingRun>, Vec<Kept>>>,
    complete: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

/// An object as text: a tenth of what it takes as a value.
#[derive(Debug)]
struct Kept {
    name: Box<str>,
    json: Box<[u8]>,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self { by_run: Mutex::default(), complete: watch::Sender::new(false), kind: PhantomData }
    }
}

impl<K> Shelf<K> {
    fn contents(&self) -> MutexGuard<'_, HashMap<ObjectRef<TrainingRun>, Vec<Kept>>> {
        self.by_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn complete(&self) {
        // The sender lives as long as the shelf.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }
}

impl<K: Essential> Shelf<K> {
    /// The objects of a run.
    pub fn of(&self, run: &ObjectRef<TrainingRun>) -> Vec<K> {
        let contents = self.contents();
        let kept = contents.get(run).into_iter().flatten();
        kept.filter_map(|kept| serde_json::from_slice(&kept.json).ok()).collect()
    }

    fn put(&self, run: ObjectRef<TrainingRun>, object: &K) {
        // What came as JSON can be written as JSON.
        let Ok(json) = serde_json::to_vec(object) else { return };
        let kept = Kept { name: object.name_any().into(), json: json.into() };
        let mut contents = self.contents();
        let of_run = contents.entry(run).or_default();
        of_run.retain(|other| other.name != kept.name);
        of_run.push(kept);
    }

    fn remove(&self, run: &ObjectRef<TrainingRun>, name: &str) {
        let mut contents = self.contents();
        if let Some(of_run) = contents.get_mut(run) {
            of_run.retain(|other| *other.name != *name);
            if of_run.is_empty() {
                contents.remove(run);
            }
        }
    }

    /// Removes what a complete list did not have, and returns it.
    fn keep_only(&self, listed: &HashSet<(ObjectRef<TrainingRun>, String)>) -> Vec<K> {
        let mut gone = Vec::new();
        self.contents().retain(|run, of_run| {
            let is_listed = |kept: &Kept| listed.contains(&(run.clone(), kept.name.to_string()));
            gone.extend(of_run.extract_if(.., |kept| !is_listed(kept)));
            !of_run.is_empty()
        });
        gone.iter().filter_map(|kept| serde_json::from_slice(&kept.json).ok()).collect()
    }
}

/// The run that an object belongs to by its labels.
pub fn run_of(object: &impl ResourceExt) -> Option<ObjectRef<TrainingRun>> {
    let run = object.labels().get(label::RUN)?;
    Some(ObjectRef::new(run).within(&object.namespace()?))
}

/// Keeps what a watch tells on a shelf, and passes on each object that it tells of, without what no plan reads. `is_over`
/// says of which runs nothing is to be kept.
pub fn follow<K: Essential + Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    known: Arc<Known>,
    shelf: fn(&Known) -> &Shelf<K>,
    is_over: impl Fn(&ObjectRef<TrainingRun>) -> bool + Send + 'static,
) -> impl Stream<Item = watcher::Result<K>> + Send {
    let mut listed = HashSet::new();
    events.flat_map(move |event| {
        let touched = match event {
            Ok(event) => take(event, shelf(&known), &is_over, &mut listed).into_iter().map(Ok).collect(),
            Err(problem) => vec![Err(problem)],
        };
        futures::stream::iter(touched)
    })
}

fn take<K: Essential>(
    event: Event<K>,
    shelf: &Shelf<K>,
    is_over: &impl Fn(&ObjectRef<TrainingRun>) -> bool,
    listed: &mut HashSet<(ObjectRef<TrainingRun>, String)>,
) -> Vec<K> {
    let is_listed = matches!(event, Event::InitApply(_));
    match event {
        Event::Apply(mut object) | Event::InitApply(mut object) => {
            object.keep_essentials();
            if let Some(run) = run_of(&object).filter(|run| !is_over(run)) {
                if is_listed {
                    listed.insert((run.clone(), object.name_any()));
                }
                shelf.put(run, &object);
            }
            vec![object]
        }
        Event::Delete(mut object) => {
            object.keep_essentials();
            if let Some(run) = run_of(&object) {
                shelf.remove(&run, &object.name_any());
            }
            vec![object]
        }
        Event::Init => {
            listed.clear();
            Vec::new()
        }
        Event::InitDone => {
            // What went while nobody watched wakes its run like anything else that goes.
            let gone = shelf.keep_only(&std::mem::take(listed));
            shelf.complete.send_replace(true);
            gone
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use serde_json::json;

    use super::*;

    fn job(name: &str, run: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": "ml", "labels": {label::RUN: run},
                "managedFields": [{"manager": "somebody"}]
            },
            "spec": {"suspend": true, "template": {"spec": {"containers": [{"name": "trainer"}]}}},
            "status": {"active": 1}
        }))
        .expect("a Job")
    }

    fn cats() -> ObjectRef<TrainingRun> {
        ObjectRef::new("cats").within("ml")
    }

    fn names(shelf: &Shelf<Job>) -> Vec<String> {
        shelf.of(&cats()).iter().map(ResourceExt::name_any).collect()
    }

    fn tell(known: &Arc<Known>, events: Vec<Event<Job>>, over: &'static str) -> usize {
        let events = stream::iter(events.into_iter().map(Ok));
        let touched = follow(events, known.clone(), |known| &known.jobs, move |run| run.name == over);
        touched.count().now_or_never().expect("no waiting")
    }

    #[test]
    fn what_a_watch_tells_is_kept_without_what_no_plan_reads() {
        let known = Arc::<Known>::default();
        assert_eq!(tell(&known, vec![Event::Apply(job("cats-1", "cats"))], ""), 1);
        let kept = known.jobs.of(&cats());
        let spec = kept[0].spec.as_ref().expect("a spec");
        assert_eq!((kept[0].metadata.managed_fields.as_ref(), spec.suspend), (None, Some(true)));
        assert!(spec.template.spec.is_none());
        assert_eq!(kept[0].status.as_ref().and_then(|status| status.active), Some(1));
        tell(&known, vec![Event::Delete(job("cats-1", "cats"))], "");
        assert!(names(&known.jobs).is_empty() && known.jobs.contents().is_empty());
    }

    #[test]
    fn a_new_list_takes_away_what_it_does_not_have() {
        let known = Arc::<Known>::default();
        let list = |jobs: &[&str]| {
            let jobs = jobs.iter().map(|name| Event::InitApply(job(name, "cats")));
            std::iter::once(Event::Init).chain(jobs).chain([Event::InitDone]).collect::<Vec<_>>()
        };
        assert!(known.jobs.complete().now_or_never().is_none());
        tell(&known, list(&["cats-1", "cats-2"]), "");
        assert!(known.jobs.complete().now_or_never().is_some());
        assert_eq!(names(&known.jobs), ["cats-1", "cats-2"]);
        assert_eq!(tell(&known, list(&["cats-2", "cats-3"]), ""), 3, "what went is told of, too");
        assert_eq!(names(&known.jobs), ["cats-2", "cats-3"]);
        known.forget(&cats());
        assert!(names(&known.jobs).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_never_lists_holds_up_nobody_for_ever() {
        let known = Arc::<Known>::default();
        tell(&known, vec![Event::Init, Event::InitDone], "");
        assert!(!known.complete().await);
        known.pods.complete.send_replace(true);
        assert!(known.complete().await);
    }

    #[test]
    fn nothing_is_kept_of_a_run_that_is_over_but_its_objects_still_wake_it() {
        let known = Arc::<Known>::default();
        assert_eq!(tell(&known, vec![Event::Apply(job("cats-1", "cats"))], "cats"), 1);
        assert!(names(&known.jobs).is_empty());
    }
}
