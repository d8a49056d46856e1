//! Records a run at an MLflow server without ever waiting for it.
//!
//! What is to be recorded goes into a spool in the run's directory first. A thread sends from there, again and again where
//! the server is slow or down; what is left at the end is sent by `anneal-trainer sync`.

mod artifacts;
mod mlflow;
mod sender;
mod spool;
mod system;

use std::{
    env, fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anneal_api::{
    failure::FailureClass,
    names::env as names,
    tracking::{Mlflow, check_address},
};
use anneal_model::Checkpoint;
use jiff::Timestamp;
use serde_json::Value;
use tracing::{info, warn};

use self::{
    sender::{Done, Sender},
    spool::{Event, Metric, Spool},
};
use crate::{
    config::{ConfigError, RunConfig},
    data::{Split, load::Dataset},
    evaluate::Evaluation,
    history::Epoch,
    outcome::Error,
    progress::Speed,
    publish::Published,
};

/// Directory of the spool in the run's directory.
const DIR: &str = "tracking";
/// Between two samples of the system's metrics.
const SAMPLE: Duration = Duration::from_secs(10);
/// How long a run that is done waits for the server to take the rest.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What the network that is published made of the photos that it is measured on.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    /// The split of these photos.
    pub split: Split,
    /// The epoch whose network it is, counted from 1.
    pub epoch: u32,
    /// What came out.
    pub evaluation: &'a Evaluation,
}

/// Records one run; does nothing where the configuration names no server.
pub struct Recorder(Option<Recording>);

struct Recording {
    spool: Arc<Mutex<Spool>>,
    sender: Sender,
    sampler: Option<system::Sampler>,
    mlflow: Mlflow,
    output: PathBuf,
}

impl Recorder {
    /// Begins to send, or to send what an earlier attempt left. Training goes on where the spool cannot be written.
    pub fn start(config: &RunConfig) -> Self {
        let Some(mlflow) = config.tracking.clone() else { return Self(None) };
        let dir = config.output.join(DIR);
        match Spool::open(&dir) {
            Ok(spool) => {
                let spool = Arc::new(Mutex::new(spool));
                let sender = Sender::start(&dir, &mlflow.uri);
                let sampler = Some(system::Sampler::start(spool.clone(), SAMPLE));
                Self(Some(Recording { spool, sender, sampler, mlflow, output: config.output.clone() }))
            }
            Err(error) => {
                warn!("the run is not recorded at {}: {dir:?} cannot be written: {error}", mlflow.uri);
                Self(None)
            }
        }
    }

    /// A run that is not recorded.
    pub fn none() -> Self {
        Self(None)
    }

    /// Records what the run is made of; an attempt that goes on records only that it does.
    pub fn begin(&self, config: &RunConfig, dataset: &Dataset) {
        let Some(recording) = &self.0 else { return };
        let now = Timestamp::now().as_millisecond();
        recording.add(&Event::Begin {
            experiment: recording.mlflow.experiment.clone(),
            run_name: config.name.clone(),
            start_time: now,
        });
        let mut params = vec![
            ("model.architecture".to_owned(), config.model.architecture.class_name().to_owned()),
            ("model.inputSize".to_owned(), config.model.input_size.to_string()),
            ("dataset.uri".to_owned(), config.dataset.shown()),
            ("dataset.classes".to_owned(), dataset.classes.join(", ")),
            ("dataset.train".to_owned(), dataset.train.len().to_string()),
            ("dataset.validation".to_owned(), dataset.validation.len().to_string()),
            ("dataset.test".to_owned(), dataset.test.len().to_string()),
        ];
        flatten("", &serde_json::to_value(&config.hyperparameters).unwrap_or_default(), &mut params);
        recording.add(&Event::Params { params });
        let mut tags = vec![
            ("mlflow.source.name".to_owned(), "anneal-trainer".to_owned()),
            ("mlflow.source.type".to_owned(), "JOB".to_owned()),
            ("anneal.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("anneal.libtorch".to_owned(), env!("LIBTORCH_VERSION").to_owned()),
            ("dataset.digest".to_owned(), dataset.identity.digest.clone()),
        ];
        let variables = [(names::IMAGE, "anneal.image"), (names::ATTEMPT, "anneal.attempt")];
        let given = variables.into_iter().filter_map(|(name, tag)| Some((tag.to_owned(), env::var(name).ok()?)));
        tags.extend(given.filter(|(_, value)| !value.is_empty()));
        tags.extend(
            git_commit(&env::current_dir().unwrap_or_default()).map(|at| ("mlflow.source.git.commit".to_owned(), at)),
        );
        recording.add(&Event::Tags { tags });
    }

    /// Records an epoch, counted from 1, unless an earlier attempt has.
    pub fn epoch(&self, epoch: u32, result: &Epoch, learning_rate: f64, speed: Speed) {
        let Some(recording) = &self.0 else { return };
        let mut values = vec![
            ("train_loss", result.train_loss),
            ("train_acc", result.train_acc),
            ("val_loss", result.val_loss),
            ("val_acc", result.val_acc),
            ("learning_rate", learning_rate),
        ];
        values.extend(speed.images_per_second.map(|rate| ("images_per_second", rate)));
        values.extend(speed.data_wait_share.map(|share| ("data_wait_share", share)));
        recording.add_epoch(epoch, metrics(values, i64::from(epoch)));
    }

    /// Whether [`Recorder::result`] will use the model.
    pub fn wants_model(&self) -> bool {
        self.0.is_some()
    }

    /// Records the result: metrics, reports, weights, and the model that MLflow loads. What cannot be prepared is left
    /// out with a warning.
    pub fn result(
        &self,
        measured: Measured<'_>,
        config: &RunConfig,
        model: Option<&Checkpoint>,
        published: &Published,
    ) {
        let Some(recording) = &self.0 else { return };
        recording.add(&Event::Metrics { metrics: metrics(measured.values(), i64::from(measured.epoch)) });
        let tags = vec![("anneal.checkpoint.sha256".to_owned(), published.sha256.to_string())];
        recording.add(&Event::Tags { tags });
        recording.add_files(&config.reports(), "reports");
        let weights = config.models.join(published.sha256.file_name());
        recording.add_file(&weights, "weights/best_model.pth".to_owned());
        let Some(model) = model else { return };
        let dir = recording.output.join(DIR).join("model");
        if let Err(error) = artifacts::write_model(model, &dir) {
            warn!("the run is recorded without a model for MLflow: {error}");
            return;
        }
        recording.add_files(&dir, "model");
        if let Some(name) = recording.mlflow.registered_model.clone() {
            recording.add(&Event::Register { name, alias: recording.mlflow.alias.clone(), path: "model".to_owned() });
        }
    }

    /// Records how the run ended, and gives the server a while to take the rest, in which `waits` is told again and again
    /// that this goes on. A run that was interrupted goes on later, under the same name.
    pub fn end(mut self, failure: Option<&Error>, waits: &dyn Fn()) {
        let Some(mut recording) = self.0.take() else { return };
        drop(recording.sampler.take());
        let interrupted = failure.is_some_and(|error| error.class() == FailureClass::Interrupted);
        if !interrupted && recording.is_open() {
            let status = if failure.is_none() { "FINISHED" } else { "FAILED" };
            if let Some(failure) = failure {
                let tags = vec![("anneal.failure".to_owned(), format!("{}: {failure}", failure.class().as_str()))];
                recording.add(&Event::Tags { tags });
            }
            recording.add(&Event::End { status: status.to_owned(), end_time: Timestamp::now().as_millisecond() });
        }
        // Whoever asked the process to stop does not wait for a server.
        let patience = if interrupted { Duration::from_secs(2) } else { LAST_WORDS };
        let left = recording.sender.finish(patience, waits);
        if left > 0 {
            let output = recording.output.display();
            warn!(
                "{left} records could not be sent to {}; send them with `anneal-trainer sync {output}`",
                recording.mlflow.uri
            );
        }
    }
}

impl Measured<'_> {
    /// The metrics by the names that they have at the server.
    fn values(&self) -> Vec<(String, f64)> {
        let all = self.evaluation.confusion.metrics();
        let mut values =
            vec![("accuracy", all.accuracy), ("precision", all.precision), ("recall", all.recall), ("f1", all.f1)];
        // On the validation split the loss of every epoch has that name already.
        if self.split == Split::Test {
            values.push(("loss", self.evaluation.loss));
        }
        values.into_iter().map(|(name, value)| (format!("{}_{name}", self.split), value)).collect()
    }
}

impl Recording {
    fn add(&self, event: &Event) {
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = spool.add(event) {
            warn!("a record for {} is lost: {error}", self.mlflow.uri);
        }
        drop(spool);
        self.sender.wake();
    }

    fn add_epoch(&self, epoch: u32, metrics: Vec<Metric>) {
        let known = self.spool.lock().unwrap_or_else(PoisonError::into_inner).newest_epoch();
        // An attempt that goes on from a checkpoint repeats the epochs since.
        if known < Some(epoch) {
            self.add(&Event::Epoch { epoch, metrics });
        }
    }

    fn add_files(&self, dir: &Path, path: &str) {
        let names = fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_file());
        let mut files: Vec<_> = names.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.add_file(&file, format!("{path}/{name}"));
        }
    }

    fn add_file(&self, file: &Path, path: String) {
        self.add(&Event::Artifact { file: from_folder(&self.output.join(DIR), file), path });
    }

    fn is_open(&self) -> bool {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner).is_open()
    }
}

/// Sends what lies in the spool of a run's directory, and says how much that was.
///
/// # Errors
/// When there is no spool, a file is missing, or the server does not take all of it.
pub fn sync(output: &Path, uri: Option<&str>) -> Result<String, Error> {
    let dir = if output.join(spool::EVENTS).exists() { output.to_owned() } else { output.join(DIR) };
    if !dir.join(spool::EVENTS).exists() {
        return Err(Error::Internal(format!(
            "{} holds no tracking/{}; name the directory of a run",
            output.display(),
            spool::EVENTS
        )));
    }
    uri.map_or(Ok(()), check_address).map_err(ConfigError::Tracking)?;
    let Done { sent, refused } = sender::send_all(&dir, uri).map_err(|error| Error::Internal(error.to_string()))?;
    if refused > 0 {
        return Err(Error::Internal(format!(
            "{sent} records were sent, and {refused} are refused for good; {} has them with the server's reasons",
            dir.join(spool::REFUSED).display()
        )));
    }
    info!(records = sent, "sent");
    Ok(format!("{sent} records sent\n"))
}

fn metrics<Name: Into<String>>(values: impl IntoIterator<Item = (Name, f64)>, step: i64) -> Vec<Metric> {
    let timestamp = Timestamp::now().as_millisecond();
    let finite = values.into_iter().filter(|(_, value)| value.is_finite());
    finite.map(|(key, value)| Metric { key: key.into(), value, timestamp, step }).collect()
}

/// Fields of a JSON value by their paths with dots.
fn flatten(path: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, into);
            }
        }
        Value::String(text) => into.push((path.to_owned(), text.clone())),
        other => into.push((path.to_owned(), other.to_string())),
    }
}

/// A file's path from a folder, so that it is found wherever their volume is mounted later; absolute where they have nothing
/// in common.
fn from_folder(folder: &Path, file: &Path) -> PathBuf {
    let real =
        |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let (folder, file) = (real(folder), real(file));
    let common = folder.components().zip(file.components()).take_while(|(one, other)| one == other).count();
    if common < 2 {
        return file;
    }
    let up = folder.components().skip(common).map(|_| Component::ParentDir);
    up.chain(file.components().skip(common)).collect()
}

/// The commit that is checked out in a folder or above it.
fn git_commit(folder: &Path) -> Option<String> {
    let read = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let (checkout, git) = folder.ancestors().map(|above| (above, above.join(".git"))).find(|(_, git)| git.exists())?;
    // In a further worktree it is a file that names the folder, and branches lie in the first one's.
    let git = match read(git.clone()) {
        Some(text) => checkout.join(text.strip_prefix("gitdir: ")?),
        None => git,
    };
    let shared = read(git.join("commondir")).map_or_else(|| git.clone(), |shared| git.join(shared));
    let head = read(git.join("HEAD"))?;
    let Some(branch) = head.strip_prefix("ref: ") else { return Some(head) };
    read(shared.join(branch)).or_else(|| {
        let packed = read(shared.join("packed-refs"))?;
        packed.lines().find_map(|line| Some(line.strip_suffix(branch)?.strip_suffix(' ')?.to_owned()))
    })
}

/// Sleeps until `until` in short steps, so that the thread ends soon after it is asked to.
fn nap(until: Instant, stop: &std::sync::atomic::AtomicBool) {
    while Instant::now() < until && !stop.load(std::sync::atomic::Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_from_the_spool_wherever_the_volume_is_mounted() {
        let path = |folder: &str, file: &str| from_folder(Path::new(folder), Path::new(file));
        let spool = "/claim/runs/cats-1/tracking";
        assert_eq!(path(spool, "/claim/runs/cats-1/reports/a.png"), Path::new("../reports/a.png"));
        assert_eq!(path(spool, "/claim/models/1.pth"), Path::new("../../../models/1.pth"));
        assert_eq!(path(spool, "/elsewhere/1.pth"), Path::new("/elsewhere/1.pth"));
    }
}
