//! The objects that wait for a reconcile. Only so many are given out at one time, for kube-runtime goes through all that it has been
//! given whenever one of them gets on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{Stream, stream};
use kube::{Resource, runtime::reflector::ObjectRef};
use tokio::sync::Notify;

use crate::{metrics::Metrics, room::Room, rotation::Rotation};

/// The objects of one kind that wait for a reconcile, or have it at the moment.
pub struct Queue<K: Resource<DynamicType = ()>> {
    kind: &'static str,
    metrics: Metrics,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K: Resource<DynamicType = ()>> {
    /// So many more may be given out.
    free: usize,
    places: HashMap<ObjectRef<K>, Place>,
    waiting: Rotation<Option<String>, ObjectRef<K>>,
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue.
    Waiting,
    /// Given out.
    Out,
    /// Given out, and something happened since.
    OutAndWanted,
}

impl<K: Resource<DynamicType = ()>> Queue<K> {
    /// A queue that gives out so many objects at one time. Its length is told to the metrics.
    pub fn new(kind: &'static str, at_once: usize, metrics: Metrics) -> Arc<Self> {
        let state = State { free: at_once, places: HashMap::new(), waiting: Rotation::new() };
        Arc::new(Self { kind, metrics, state: Mutex::new(state), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object at the end of its namespace's queue, unless it waits already. One that is given out waits again once it is
    /// back: whoever looks at it may have missed what happened.
    pub fn add(&self, object: ObjectRef<K>) {
        let mut state = self.state();
        if let Some(place) = state.places.get_mut(&object) {
            if *place == Place::Out {
                *place = Place::OutAndWanted;
            }
            return;
        }
        state.places.insert(object.clone(), Place::Waiting);
        state.wait(object);
        drop(state);
        self.metrics.queued(self.kind, 1);
        self.changed.notify_one();
    }

    /// Whether an object is given out.
    pub fn is_out(&self, object: &ObjectRef<K>) -> bool {
        matches!(self.state().places.get(object), Some(Place::Out | Place::OutAndWanted))
    }

    /// Takes back an object that was given out.
    pub fn done(&self, object: &ObjectRef<K>) {
        let mut state = self.state();
        let Some(place) = state.places.get_mut(object) else { return };
        match *place {
            Place::Waiting => return,
            Place::Out => {
                state.places.take_out(object);
            }
            Place::OutAndWanted => {
                *place = Place::Waiting;
                state.wait(object.clone());
                self.metrics.queued(self.kind, 1);
            }
        }
        state.free += 1;
        drop(state);
        self.changed.notify_one();
    }

    /// Gives out the objects, each as soon as its turn has come.
    pub fn take(self: Arc<Self>) -> impl Stream<Item = ObjectRef<K>> {
        stream::unfold(self, |queue| async move {
            loop {
                let next = queue.state().next();
                if let Some(next) = next {
                    queue.metrics.queued(queue.kind, -1);
                    return Some((next, queue));
                }
                queue.changed.notified().await;
            }
        })
    }
}

impl<K: Resource<DynamicType = ()>> State<K> {
    fn wait(&mut self, object: ObjectRef<K>) {
        self.waiting.push(object.namespace.clone(), object);
    }

    fn next(&mut self) -> Option<ObjectRef<K>> {
        if self.free == 0 {
            return None;
        }
        let next = self.waiting.pop();
        if let Some(place) = next.as_ref().and_then(|next| self.places.get_mut(next)) {
            *place = Place::Out;
            self.free -= 1;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use anneal_api::resources::TrainingRun;
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn run(namespace: &str, name: &str) -> ObjectRef<TrainingRun> {
        ObjectRef::new(name).within(namespace)
    }

    fn queue(at_once: usize) -> Arc<Queue<TrainingRun>> {
        Queue::new("trainingrun", at_once, Metrics::new().expect("unique names"))
    }

    /// All that are given out now.
    fn given(taken: &mut (impl Stream<Item = ObjectRef<TrainingRun>> + Unpin)) -> Vec<String> {
        std::iter::from_fn(|| taken.next().now_or_never().flatten()).map(|run| run.name).collect()
    }

    #[test]
    fn a_namespace_with_little_to_do_does_not_wait_for_one_with_much() {
        let queue = queue(1);
        for number in 0..5 {
            queue.add(run("large", &format!("large-{number}")));
        }
        queue.add(run("small", "small"));
        let mut taken = Box::pin(queue.clone().take());
        let mut order = Vec::new();
        while let [next] = given(&mut taken).as_slice() {
            order.push(next.clone());
            let namespace = if next == "small" { "small" } else { "large" };
            queue.done(&run(namespace, next));
        }
        assert_eq!(order, ["large-0", "small", "large-1", "large-2", "large-3", "large-4"]);
    }

    #[test]
    fn an_object_waits_once_however_often_it_is_asked_for_and_again_when_something_happens_meanwhile() {
        let (queue, cats) = (queue(2), run("ml", "cats"));
        let mut taken = Box::pin(queue.clone().take());
        queue.add(cats.clone());
        queue.add(cats.clone());
        assert!(!queue.is_out(&cats));
        assert_eq!(given(&mut taken), ["cats"]);
        assert!(queue.is_out(&cats));
        queue.add(cats.clone());
        queue.add(cats.clone());
        assert!(given(&mut taken).is_empty(), "nobody else may look at it at the same time");
        queue.done(&cats);
        assert_eq!(given(&mut taken), ["cats"]);
        queue.done(&cats);
        assert!(given(&mut taken).is_empty() && queue.state().places.is_empty());
    }

    #[test]
    fn no_more_are_given_out_than_may_be_and_what_was_never_given_out_cannot_be_taken_back() {
        let queue = queue(2);
        for name in ["a", "b", "c", "d"] {
            queue.add(run("ml", name));
        }
        let mut taken = Box::pin(queue.clone().take());
        assert_eq!(given(&mut taken), ["a", "b"]);
        queue.done(&run("ml", "c"));
        queue.done(&run("ml", "unknown"));
        assert!(given(&mut taken).is_empty());
        queue.done(&run("ml", "a"));
        assert_eq!(given(&mut taken), ["c"]);
    }

    #[tokio::test]
    async fn whoever_waits_for_an_object_is_woken_by_it() {
        let queue = queue(1);
        let mut taken = Box::pin(queue.clone().take());
        let adding = async {
            tokio::task::yield_now().await;
            queue.add(run("ml", "cats"));
        };
        let (next, ()) = tokio::join!(taken.next(), adding);
        assert_eq!(next.map(|run| run.name).as_deref(), Some("cats"));
    }
}
