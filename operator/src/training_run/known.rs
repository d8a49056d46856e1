//! What the watches know of the runs' Jobs, pods and claims, so that a reconcile asks the API server for nothing that it was
//! told already. Ten thousand of each fit, because only what a plan reads of an object is kept, as text, and nothing of a
//! run that has ended.

use std::{
    collections::{HashMap, HashSet},
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anneal_api::{names::label, resources::TrainingRun};
use futures::{Stream, StreamExt};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            ContainerStatus, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod,
            PodSpec, PodStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::ObjectRef,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;

use super::{nodes::COMPLETION_INDEX, objects::CONFIG};
use crate::{cluster::Object, room::Room};

/// Longest time that a reconcile waits for the watches. Then it asks the API server, whose answer says what is wrong.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A kind of object of which the watch keeps what plans read.
pub trait Essential: Object {
    /// Of what kind it is that one asks with.
    type Key: Resource<DynamicType = ()>;

    /// What one asks with: the run that an object belongs to, by its labels, or itself.
    fn key(&self) -> Option<ObjectRef<Self::Key>>;

    /// Takes away what no plan reads.
    fn keep_essentials(&mut self);
}

impl Essential for Job {
    type Key = TrainingRun;

    fn key(&self) -> Option<ObjectRef<TrainingRun>> {
        run_of(self)
    }

    fn keep_essentials(&mut self) {
        keep_essentials_of(&mut self.metadata);
        self.spec = self.spec.take().map(|spec| JobSpec { suspend: spec.suspend, ..JobSpec::default() });
    }
}

impl Essential for Pod {
    type Key = TrainingRun;

    fn key(&self) -> Option<ObjectRef<TrainingRun>> {
        run_of(self)
    }

    fn keep_essentials(&mut self) {
        keep_essentials_of(&mut self.metadata);
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.remove(CONFIG);
        }
        self.spec = self.spec.take().map(|spec| PodSpec { node_name: spec.node_name, ..PodSpec::default() });
        self.status = self.status.take().map(|status| PodStatus {
            conditions: status.conditions.map(|mut all| {
                all.retain(|it| matches!(it.type_.as_str(), "DisruptionTarget" | "PodScheduled"));
                all
            }),
            container_statuses: status.container_statuses.map(essentials_of),
            init_container_statuses: status.init_container_statuses.map(essentials_of),
            message: status.message,
            phase: status.phase,
            pod_ip: status.pod_ip,
            reason: status.reason,
            ..PodStatus::default()
        });
    }
}

/// Whose an object is, which one and since when.
fn keep_essentials_of(metadata: &mut ObjectMeta) {
    if let Some(labels) = &mut metadata.labels {
        // Of the Job controller's labels four say the same.
        labels.retain(|key, _| key.starts_with(label::PREFIX) || key == COMPLETION_INDEX);
    }
    metadata.managed_fields = None;
    metadata.finalizers = None;
    metadata.generate_name = None;
    metadata.generation = None;
    metadata.resource_version = None;
}

/// How containers stand, and with which image.
fn essentials_of(containers: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    let essentials = |container: ContainerStatus| ContainerStatus {
        name: container.name,
        image_id: container.image_id,
        state: container.state,
        ..ContainerStatus::default()
    };
    containers.into_iter().map(essentials).collect()
}

impl Essential for PersistentVolumeClaim {
    type Key = Self;

    fn key(&self) -> Option<ObjectRef<Self>> {
        Some(ObjectRef::from(self))
    }

    fn keep_essentials(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
        self.spec = self.spec.take().map(|spec| PersistentVolumeClaimSpec {
            access_modes: spec.access_modes,
            volume_mode: spec.volume_mode,
            ..PersistentVolumeClaimSpec::default()
        });
        self.status = self.status.take().map(|status| PersistentVolumeClaimStatus {
            access_modes: status.access_modes,
            phase: status.phase,
            ..PersistentVolumeClaimStatus::default()
        });
    }
}

/// What the watches know of the runs' Jobs and pods, and of claims.
#[derive(Debug, Default)]
pub struct Known {
    /// The Jobs.
    pub jobs: Shelf<Job>,
    /// The pods.
    pub pods: Shelf<Pod>,
    /// The claims, whoever uses them.
    pub claims: Shelf<PersistentVolumeClaim>,
}

impl Known {
    /// Waits until the watches of Jobs and pods have told all that there is. Returns whether they have: one that may not list
    /// never does, and whoever waits holds a turn that others want.
    pub async fn complete(&self) -> bool {
        let both = async { tokio::join!(self.jobs.complete(), self.pods.complete()) };
        tokio::time::timeout(TIMEOUT, both).await.is_ok()
    }

    /// Forgets the Jobs and pods of a run.
    pub fn forget(&self, run: &ObjectRef<TrainingRun>) {
        let run = Key::from(run);
        self.jobs.contents().take_out(&run);
        self.pods.contents().take_out(&run);
    }
}

/// Objects of one kind, by what one asks with.
#[derive(Debug)]
pub struct Shelf<K: Essential> {
    by_key: Mutex<Contents>,
    complete: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

/// A namespace and a name, in a third of what an [`ObjectRef`] takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    namespace: Box<str>,
    name: Box<str>,
}

impl<K: Resource<DynamicType = ()>> From<&ObjectRef<K>> for Key {
    fn from(object: &ObjectRef<K>) -> Self {
        let namespace = object.namespace.as_deref().unwrap_or_default();
        Self { namespace: namespace.into(), name: object.name.as_str().into() }
    }
}

type Contents = HashMap<Key, Vec<Kept>>;

/// An object as text: a tenth of what it takes as a value.
#[derive(Debug)]
struct Kept {
    name: Box<str>,
    json: Box<[u8]>,
}

impl<K: Essential> Default for Shelf<K> {
    fn default() -> Self {
        Self { by_key: Mutex::default(), complete: watch::Sender::new(false), kind: PhantomData }
    }
}

impl<K: Essential> Shelf<K> {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn complete(&self) {
        // The sender lives as long as the shelf.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// The objects under a key.
    pub fn of(&self, key: &ObjectRef<K::Key>) -> Vec<K> {
        let contents = self.contents();
        let kept = contents.get(&Key::from(key)).into_iter().flatten();
        kept.filter_map(|kept| serde_json::from_slice(&kept.json).ok()).collect()
    }

    fn put(&self, key: Key, object: &K) {
        // What came as JSON can be written as JSON.
        let Ok(json) = serde_json::to_vec(object) else { return };
        let kept = Kept { name: object.name_any().into(), json: json.into() };
        let mut contents = self.contents();
        // Mostly it is one.
        let under = contents.entry(key).or_insert_with(|| Vec::with_capacity(1));
        under.retain(|other| other.name != kept.name);
        under.push(kept);
    }

    fn remove(&self, key: &Key, name: &str) {
        let mut contents = self.contents();
        if let Some(under) = contents.get_mut(key) {
            under.retain(|other| *other.name != *name);
            if under.is_empty() {
                contents.take_out(key);
            }
        }
    }

    /// Removes what a complete list did not have, and returns it.
    fn keep_only(&self, listed: &Listed) -> Vec<K> {
        let mut gone = Vec::new();
        let mut contents = self.contents();
        contents.retain(|key, under| {
            let is_listed = |kept: &Kept| listed.contains(&(key.clone(), kept.name.clone()));
            gone.extend(under.extract_if(.., |kept| !is_listed(kept)));
            !under.is_empty()
        });
        contents.give_back();
        drop(contents);
        gone.iter().filter_map(|kept| serde_json::from_slice(&kept.json).ok()).collect()
    }
}

/// What a list that is under way has had so far.
type Listed = HashSet<(Key, Box<str>)>;

/// The run that an object belongs to by its labels.
pub fn run_of(object: &impl ResourceExt) -> Option<ObjectRef<TrainingRun>> {
    let run = object.labels().get(label::RUN)?;
    Some(ObjectRef::new(run).within(&object.namespace()?))
}

/// Keeps what a watch tells on a shelf, and passes on each object that it tells of, without what no plan reads. `is_over`
/// says under which keys nothing is to be kept.
pub fn follow<K: Essential + Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    known: Arc<Known>,
    shelf: fn(&Known) -> &Shelf<K>,
    is_over: impl Fn(&ObjectRef<K::Key>) -> bool + Send + 'static,
) -> impl Stream<Item = watcher::Result<K>> + Send {
    let mut listed = Listed::new();
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
    is_over: &impl Fn(&ObjectRef<K::Key>) -> bool,
    listed: &mut Listed,
) -> Vec<K> {
    let is_listed = matches!(event, Event::InitApply(_));
    match event {
        Event::Apply(mut object) | Event::InitApply(mut object) => {
            object.keep_essentials();
            if let Some(key) = object.key().filter(|key| !is_over(key)) {
                let key = Key::from(&key);
                if is_listed {
                    listed.insert((key.clone(), object.name_any().into()));
                }
                shelf.put(key, &object);
            }
            vec![object]
        }
        Event::Delete(mut object) => {
            object.keep_essentials();
            if let Some(key) = object.key() {
                shelf.remove(&Key::from(&key), &object.name_any());
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
    fn of_a_pod_is_kept_how_it_stands_and_with_which_image() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "message": "why"});
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "cats-1-x", "generateName": "cats-1-", "annotations": {CONFIG: "{}", "a": "b"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "trainer"}]},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.0.0.2", "qosClass": "Burstable",
                "conditions": [condition("Ready", "True"), condition("PodScheduled", "False"), condition("DisruptionTarget", "True")],
                "containerStatuses": [{
                    "name": "trainer", "image": "trainer:1", "imageID": "sha256:1", "containerID": "containerd://1",
                    "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
                }]
            }
        }))
        .expect("a pod");
        pod.keep_essentials();
        let kept = serde_json::to_value(&pod).expect("JSON");
        assert_eq!(kept["metadata"], json!({"name": "cats-1-x", "annotations": {"a": "b"}}));
        let status = &kept["status"];
        assert_eq!(
            (&status["phase"], &status["podIP"], &status["hostIP"]),
            (&json!("Running"), &json!("10.0.0.1"), &json!(null))
        );
        let kinds: Vec<_> = status["conditions"].as_array().into_iter().flatten().map(|it| &it["type"]).collect();
        assert_eq!(kinds, ["PodScheduled", "DisruptionTarget"]);
        let container = &status["containerStatuses"][0];
        assert_eq!((&container["imageID"], &container["containerID"]), (&json!("sha256:1"), &json!(null)));
        assert!(container["state"]["running"].is_object());
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
