//! Every object of a kind that a namespace has ever had, those that are gone included.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::watch::Object;

/// A record that is kept from its beginning until it is dropped.
pub struct History<K> {
    seen: Arc<Mutex<BTreeMap<String, K>>>,
    task: JoinHandle<()>,
}

/// What is looked at whenever an object changes: all objects that there are at that moment, by UID.
pub type Look<K> = Box<dyn FnMut(&BTreeMap<String, K>) + Send>;

impl<K: Object> History<K> {
    /// Begins the record of the objects that carry the labels.
    ///
    /// # Errors
    /// When the watch ends before it began.
    pub async fn begin(api: Api<K>, labels: &str) -> Result<Self> {
        Self::begin_looking(api, labels, Box::new(|_| {})).await
    }

    /// As [`Self::begin`]; `look` sees every state in between.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_looking(api: Api<K>, labels: &str, mut look: Look<K>) -> Result<Self> {
        let seen: Arc<Mutex<BTreeMap<String, K>>> = Arc::default();
        let (tell, began) = oneshot::channel();
        let (record, config) = (seen.clone(), watcher::Config::default().labels(labels));
        let task = tokio::spawn(async move {
            let (mut tell, mut events) = (Some(tell), watcher(api, config).default_backoff().boxed());
            let (mut present, mut listed) = (BTreeMap::new(), BTreeMap::new());
            let record = |object: K| {
                let uid = object.uid().unwrap_or_default();
                record.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, object);
            };
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => listed = BTreeMap::new(),
                    Ok(Event::InitApply(object)) => {
                        listed.insert(object.uid().unwrap_or_default(), object.clone());
                        record(object);
                    }
                    Ok(Event::InitDone) => {
                        present = std::mem::take(&mut listed);
                        look(&present);
                        // Nobody waits any more: the test has ended.
                        let _ = tell.take().map(|tell| tell.send(()));
                    }
                    Ok(Event::Apply(object)) => {
                        present.insert(object.uid().unwrap_or_default(), object.clone());
                        look(&present);
                        record(object);
                    }
                    Ok(Event::Delete(object)) => {
                        present.remove(&object.uid().unwrap_or_default());
                        look(&present);
                        record(object);
                    }
                    Err(problem) => eprintln!("the watch of all {} had a problem: {problem}", K::plural(&())),
                }
            }
        });
        began.await.context("the watch ended before it began")?;
        Ok(Self { seen, task })
    }

    /// The last state of every object, by UID.
    pub fn all(&self) -> Vec<K> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The names of all of them, sorted; one that was made twice is there twice.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.all().iter().map(kube::ResourceExt::name_any).collect();
        names.sort();
        names
    }
}

impl<K> Drop for History<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
