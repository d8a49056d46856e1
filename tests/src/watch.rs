//! Waiting: an object is watched until a sentence about it is true, or its time is up.

use std::{
    fmt::Debug,
    pin::Pin,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use futures::{Stream, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watch_object},
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// What a namespaced Kubernetes type must be able to do here.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

type States<K> = Pin<Box<dyn Stream<Item = Result<Option<K>, watcher::Error>> + Send>>;

/// One object under watch, from the first call on: no state in between is missed, also not between two waits.
pub struct Watch<K> {
    name: String,
    states: States<K>,
    last: Option<K>,
}

impl<K: Object> Watch<K> {
    /// Watches the object of that name, whether it exists or not.
    pub fn new(api: Api<K>, name: &str) -> Self {
        let states = watch_object(api, name).default_backoff().boxed();
        Self { name: name.to_owned(), states, last: None }
    }

    /// Waits until the sentence is true of a state of the object, and returns that state. The state that ended the last
    /// wait counts, too.
    ///
    /// # Errors
    /// When it did not become true in time, with the last state.
    pub async fn until(&mut self, sentence: &str, seconds: u64, mut holds: impl FnMut(&K) -> bool) -> Result<K> {
        self.until_state(sentence, seconds, |state| state.filter(|object| holds(object)).cloned()).await
    }

    /// Waits until the object is gone.
    ///
    /// # Errors
    /// When it did not go in time.
    pub async fn until_gone(&mut self, seconds: u64) -> Result<()> {
        self.until_state("it is gone", seconds, |state| state.is_none().then_some(())).await
    }

    async fn until_state<T>(
        &mut self,
        sentence: &str,
        seconds: u64,
        mut holds: impl FnMut(Option<&K>) -> Option<T>,
    ) -> Result<T> {
        if let Some(found) = self.last.as_ref().and_then(|last| holds(Some(last))) {
            return Ok(found);
        }
        let begin = Instant::now();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        loop {
            match tokio::time::timeout_at(deadline, self.states.next()).await {
                Ok(Some(Ok(state))) => {
                    self.last = state;
                    if let Some(found) = holds(self.last.as_ref()) {
                        eprintln!("{:>6.1} s  {}: {sentence}", begin.elapsed().as_secs_f64(), self.what());
                        return Ok(found);
                    }
                }
                // The watcher mends itself.
                Ok(Some(Err(problem))) => eprintln!("the watch of {} had a problem: {problem}", self.what()),
                Ok(None) => bail!("the watch of {} ended", self.what()),
                Err(_) => bail!(
                    "{}: not within {seconds} s: {sentence}\nits last state:\n{}",
                    self.what(),
                    self.last.as_ref().map_or_else(|| "it does not exist".to_owned(), yaml)
                ),
            }
        }
    }

    fn what(&self) -> String {
        format!("{} {}", K::kind(&()), self.name)
    }
}

/// An object as YAML, without what only the API server needs.
pub fn yaml<K: Object>(object: &K) -> String {
    let mut object = object.clone();
    object.meta_mut().managed_fields = None;
    serde_yaml::to_string(&object).unwrap_or_else(|problem| format!("it cannot be written as YAML: {problem}"))
}
