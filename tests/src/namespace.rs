//! A namespace for one test, in which every pod must pass the restricted Pod Security profile.

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Cluster, History, Object, Said, Table, Watch, kubectl, report::report};

/// How often lists are looked at.
const POLL: Duration = Duration::from_millis(500);

/// A namespace of a test's own.
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// The cluster that it is in.
    pub cluster: Cluster,
}

/// Runs a test in a namespace of its own. When it fails, everything in the namespace is printed; at the end the
/// namespace goes, in the background, unless `ANNEAL_KEEP_NAMESPACES` is set.
///
/// # Errors
/// What the test gives, and panics as errors.
pub async fn in_namespace(test: impl AsyncFnOnce(&Namespace) -> Result<()>) -> Outcome {
    Box::pin(supervised(test)).await.map_err(|problem| Failure(format!("{problem:#}")))
}

/// How a test ended.
pub type Outcome = Result<(), Failure>;

/// Why a test failed, in sentences. A backtrace of the test's own code would say less than the cluster does.
pub struct Failure(String);

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

async fn supervised(test: impl AsyncFnOnce(&Namespace) -> Result<()>) -> Result<()> {
    let namespace = Namespace::create(Cluster::connect().await?).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(test(&namespace)).catch_unwind() => match outcome {
            Ok(outcome) => outcome,
            Err(panic) => Err(anyhow!("{}", said(panic.as_ref()))),
        },
        _ = terminate.recv() => Err(anyhow!("the test was told to stop: its time is up")),
    };
    if let Err(problem) = &outcome {
        eprintln!("\nFAILED: {problem:#}");
        report(&namespace).await;
    }
    namespace.delete().await?;
    outcome
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".to_owned())
}

impl Namespace {
    async fn create(cluster: Cluster) -> Result<Self> {
        let namespace: KubeNamespace = serde_json::from_value(json!({
            "metadata": {
                "generateName": "anneal-test-",
                "labels": {"anneal.dev/test": "e2e", "pod-security.kubernetes.io/enforce": "restricted"}
            }
        }))?;
        let api: Api<KubeNamespace> = Api::all(cluster.client.clone());
        let made = api.create(&PostParams::default(), &namespace).await.context("no namespace could be created")?;
        let name = made.name_any();
        eprintln!("namespace {name}");
        Ok(Self { name, cluster })
    }

    async fn delete(self) -> Result<()> {
        if std::env::var_os("ANNEAL_KEEP_NAMESPACES").is_some() {
            eprintln!("namespace {} is kept", self.name);
            return Ok(());
        }
        let api: Api<KubeNamespace> = Api::all(self.cluster.client.clone());
        api.delete(&self.name, &DeleteParams::background()).await.context("the namespace could not be deleted")?;
        Ok(())
    }

    /// A client for one kind of object in it.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// Runs kubectl in it.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub async fn kubectl(&self, args: &[&str]) -> Result<Said> {
        kubectl::run(&[&["--namespace", &self.name], args].concat(), None).await
    }

    /// Runs kubectl in it, with this on its standard input.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub async fn kubectl_with(&self, args: &[&str], input: &str) -> Result<Said> {
        kubectl::run(&[&["--namespace", &self.name], args].concat(), Some(input)).await
    }

    /// What `kubectl get KIND` prints.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn table(&self, kind: &str) -> Result<Table> {
        let text = self.kubectl(&["get", kind]).await?.ok()?.out;
        eprintln!("$ kubectl get {kind}\n{text}");
        Ok(Table::parse(&text))
    }

    /// Applies a manifest, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// What the API server has against it.
    pub async fn apply(&self, manifest: &Value) -> Result<()> {
        let args = ["--namespace", &self.name, "apply", "--server-side", "--filename", "-"];
        kubectl::run(&args, Some(&manifest.to_string())).await?.ok().map(|_| ())
    }

    /// Says what the API server has against a manifest that `kubectl VERB` sends (`apply`, `replace`); nothing is
    /// created or changed.
    ///
    /// # Errors
    /// When it has nothing against it.
    pub async fn refusal(&self, verb: &str, manifest: &Value) -> Result<String> {
        let args = ["--namespace", &self.name, verb, "--dry-run=server", "--filename", "-"];
        kubectl::run(&args, Some(&manifest.to_string())).await?.refusal()
    }

    /// Makes sure that the API server would take a manifest; nothing is created.
    ///
    /// # Errors
    /// What it has against it.
    pub async fn would_take(&self, manifest: &Value) -> Result<()> {
        let args = ["--namespace", &self.name, "apply", "--dry-run=server", "--filename", "-"];
        kubectl::run(&args, Some(&manifest.to_string())).await?.ok().map(|_| ())
    }

    /// Watches an object from now on.
    pub fn watch<K: Object>(&self, name: &str) -> Watch<K> {
        Watch::new(self.api(), name)
    }

    /// Keeps a record of all objects of a kind that carry the labels.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub async fn record<K: Object>(&self, labels: &str) -> Result<History<K>> {
        History::begin(self.api(), labels).await
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn get<K: Object>(&self, name: &str) -> Result<K> {
        self.api().get(name).await.with_context(|| format!("{} {name} cannot be read", K::kind(&())))
    }

    /// The objects of a kind that carry the labels.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list<K: Object>(&self, labels: &str) -> Result<Vec<K>> {
        let found = self.api::<K>().list(&ListParams::default().labels(labels)).await;
        Ok(found.with_context(|| format!("{} cannot be listed", K::plural(&())))?.items)
    }

    /// Waits until the sentence is true of the objects of a kind that carry the labels.
    ///
    /// # Errors
    /// When it did not become true in time, with the names of what was there.
    pub async fn until_all<K: Object>(
        &self,
        labels: &str,
        sentence: &str,
        seconds: u64,
        mut hold: impl FnMut(&[K]) -> bool,
    ) -> Result<Vec<K>> {
        let begin = Instant::now();
        loop {
            let found: Vec<K> = self.list(labels).await?;
            if hold(&found) {
                eprintln!("{:>6.1} s  {}: {sentence}", begin.elapsed().as_secs_f64(), K::plural(&()));
                return Ok(found);
            }
            if begin.elapsed() > Duration::from_secs(seconds) {
                let all: Vec<String> = found.iter().map(crate::watch::yaml).collect();
                bail!("{}: not within {seconds} s: {sentence}\nthe last ones:\n{}", K::plural(&()), all.join("---\n"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
