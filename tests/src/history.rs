//! Every object of a kind that a namespace has ever had, those that are gone included.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::watch::Object;

/// A record that is kept from its beginning until it is dropped.
pub struct History<K> {
    seen: Arc<Mutex<BTreeMap<String, K>>>,
    task: JoinHandle<()>,
}

impl<K: Object> History<K> {
    /// Begins the record of the objects that carry the labels.
    ///
    /// # Errors
    /// When the watch ends before it began.
    pub async fn begin(api: Api<K>, labels: &str) -> Result<Self> {
        let seen: Arc<Mutex<BTreeMap<String, K>>> = Arc::default();
        let (tell, began) = oneshot::channel();
        let (record, config) = (seen.clone(), watcher::Config::default().labels(labels));
        let task = tokio::spawn(async move {
            let (mut tell, mut events) = (Some(tell), watcher(api, config).boxed());
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::InitDone) => {
                        // Nobody waits any more: the test has ended.
                        let _ = tell.take().map(|tell| tell.send(()));
                    }
                    Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                        let uid = object.uid().unwrap_or_default();
                        record.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, object);
                    }
                    Ok(Event::Init) => {}
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
