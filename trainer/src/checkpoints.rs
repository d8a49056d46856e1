//! The checkpoint directory of a run: written so that a crash at any moment leaves something to go on from.
//!
//! `manifest.json` names the digests that a good file may have. It is written before the files are renamed, with the
//! digest of what is there and of what comes, so that every moment in between is consistent.
//!
//! A checkpoint's `epoch` counts the epochs that are done, its `step` the optimiser steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anneal_api::{
    Sha256,
    config::InitFrom,
    hyperparameters::{Hyperparameters, Schedule},
    model::ModelSpec,
};
use anneal_model::{Checkpoint, sha256_file};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{config::ConfigError, files, outcome::Error};

/// The newest state.
pub const LAST: &str = "last_checkpoint.pth";
/// The epoch with the best validation accuracy.
pub const BEST: &str = "best_model.pth";
/// The state before the newest: what remains where the newest turns out to be torn.
pub const PREVIOUS: &str = "previous_checkpoint.pth";
/// Versions that the manifest names for each file: one more after every crash between manifest and rename, and two more
/// for the way from newest to previous.
const VERSIONS: usize = 16;
const MANIFEST: &str = "manifest.json";

/// What must be the same for one run to go on from another's checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The network.
    pub model: ModelSpec,
    /// The classes.
    pub classes: Vec<String>,
    /// Digest of the dataset.
    pub dataset: String,
    /// How it trains.
    pub hyperparameters: Hyperparameters,
    /// What it began with: a checkpoint's digest, or else its path, and what is frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<InitIdentity>,
}

/// What a run begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitIdentity {
    checkpoint: String,
    freeze: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    run: Identity,
    /// For each file the versions that may lie there, newest first.
    files: BTreeMap<String, Vec<Version>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    epoch: u32,
    #[serde(default)]
    step: u64,
    sha256: Sha256,
    bytes: u64,
}

/// The checkpoint directory of one run.
pub struct Checkpoints {
    dir: PathBuf,
    manifest: Manifest,
}

/// A checkpoint to go on from.
pub struct Found {
    /// Where it was.
    pub path: PathBuf,
    /// Epochs that are done.
    pub epoch: u32,
    /// Optimiser steps that are done, over all epochs.
    pub step: u64,
    /// What it holds.
    pub checkpoint: Checkpoint,
}

impl Identity {
    /// The identity of a run; what changes no result is left out.
    pub fn new(model: ModelSpec, classes: Vec<String>, dataset: String, hyperparameters: &Hyperparameters) -> Self {
        let mut hyperparameters = Hyperparameters { threads: None, ..hyperparameters.clone() };
        if hyperparameters.schedule == Schedule::Constant && hyperparameters.train_sizes.is_none() {
            // Nothing before the last epoch depends on how many there will be, so a run can be made longer.
            hyperparameters.epochs = 0;
        }
        Self { model, classes, dataset, hyperparameters, init_from: None }
    }

    /// The identity of a run that begins with a checkpoint. A digest says more than a path, which may be another one in
    /// the next attempt.
    #[must_use]
    pub fn beginning_with(self, init: Option<&InitFrom>) -> Self {
        let init_from = init.map(|init| InitIdentity {
            checkpoint: init.sha256.as_ref().map_or_else(|| init.checkpoint.clone(), ToString::to_string),
            freeze: init.freeze.clone(),
        });
        Self { init_from, ..self }
    }

    /// What differs, with both values, for a person.
    fn difference(&self, other: &Self) -> Option<String> {
        let (here, there) = (serde_json::to_value(self).ok()?, serde_json::to_value(other).ok()?);
        let keys: BTreeSet<&String> =
            [&here, &there].into_iter().filter_map(|side| side.as_object()).flat_map(|o| o.keys()).collect();
        let fields = keys.into_iter().flat_map(|key| {
            let nested: BTreeSet<&String> =
                [&here, &there].into_iter().filter_map(|side| side[key].as_object()).flat_map(|o| o.keys()).collect();
            let names: Vec<Vec<&str>> = nested.into_iter().map(|name| vec![key.as_str(), name]).collect();
            if names.is_empty() { vec![vec![key.as_str()]] } else { names }
        });
        let differing = fields.filter_map(|path| {
            let at = |value: &serde_json::Value| path.iter().fold(value.clone(), |value, name| value[name].clone());
            let (ours, theirs) = (at(&here), at(&there));
            // No number stands for any number of epochs; what made it so in one of the runs differs too.
            let any = path == ["hyperparameters", "epochs"] && [&ours, &theirs].into_iter().any(|epochs| *epochs == 0);
            (ours != theirs && !any).then(|| format!("{} is {theirs} there and {ours} here", path.join(".")))
        });
        Some(differing.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    }
}

impl Checkpoints {
    /// Opens the directory of a run and makes it where it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or belongs to another run.
    pub fn open(dir: &Path, run: Identity) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::writing(dir))?;
        let manifest = match read_manifest(dir, &run)? {
            Some(manifest) => Manifest { run, ..manifest },
            None => Manifest { format: 1, run, files: BTreeMap::new() },
        };
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// The newest good checkpoint of this run: of its own directory, or else of the one given.
    ///
    /// # Errors
    /// When the other directory belongs to another run.
    pub fn find(&self, other: Option<&Path>) -> Result<Option<Found>, Error> {
        self.search(other, &[LAST, PREVIOUS, BEST])
    }

    /// The good checkpoint of the best epoch, looked for in the same way: the run's own directory has one only if an
    /// epoch was better than all of those in the other.
    ///
    /// # Errors
    /// When the other directory belongs to another run.
    pub fn best(&self, other: Option<&Path>) -> Result<Option<Found>, Error> {
        self.search(other, &[BEST])
    }

    /// The newest good one of these files. The first of them is the newest where it is good; the others may be in any
    /// order.
    fn search(&self, other: Option<&Path>, names: &[&str]) -> Result<Option<Found>, Error> {
        let search_in = |dir: &Path, manifest: &Manifest| {
            let (first, rest) = names.split_first()?;
            let newest_of_rest = || rest.iter().filter_map(|name| good(dir, manifest, name)).max_by_key(|f| f.step);
            good(dir, manifest, first).or_else(newest_of_rest)
        };
        if let Some(found) = search_in(&self.dir, &self.manifest) {
            return Ok(Some(found));
        }
        let Some(other) = other else { return Ok(None) };
        Ok(read_manifest(other, &self.manifest.run)?.and_then(|manifest| search_in(other, &manifest)))
    }

    /// Writes the newest state, and makes it the best one too where it is.
    ///
    /// # Errors
    /// When the file system refuses; what was there stays.
    pub fn save(&mut self, epoch: u32, step: u64, checkpoint: Checkpoint, is_best: bool) -> Result<(), Error> {
        let next = |name: &str| self.dir.join(format!("next_{name}"));
        let saved = checkpoint.save(next(LAST))?;
        if is_best {
            files::copy(&next(LAST), &next(BEST)).map_err(|error| {
                // A full volume needs its space back; that the file is gone already is no further error.
                let _ = fs::remove_file(next(LAST));
                Error::writing(next(BEST))(error)
            })?;
        }
        let version = Version { epoch, step, sha256: saved.sha256, bytes: saved.bytes };
        let mut names = vec![LAST, PREVIOUS];
        if is_best {
            names.push(BEST);
        }
        for name in names {
            let versions = self.manifest.files.entry(name.to_owned()).or_default();
            versions.retain(|other| *other != version);
            versions.insert(0, version.clone());
            versions.truncate(VERSIONS);
        }
        self.write_manifest()?;
        let rename = |from: PathBuf, to: &str| {
            let path = self.dir.join(to);
            fs::rename(from, &path).map_err(Error::writing(path))
        };
        if is_best {
            rename(next(BEST), BEST)?;
        }
        if self.dir.join(LAST).exists() {
            rename(self.dir.join(LAST), PREVIOUS)?;
        }
        rename(next(LAST), LAST)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(Error::writing(&self.dir))
    }

    fn write_manifest(&self) -> Result<(), Error> {
        let path = self.dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&self.manifest).map_err(|error| Error::Internal(error.to_string()))?;
        files::write(&path, &text).map_err(Error::writing(path))
    }
}

/// Optimiser step of the newest checkpoint that a directory's manifest tells of, without a look at the file.
pub fn newest_step(dir: &Path) -> Option<u64> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()?;
    manifest.files.get(LAST)?.iter().map(|version| version.step).max()
}

/// Reads a directory's manifest; a missing or torn one is none.
fn read_manifest(dir: &Path, run: &Identity) -> Result<Option<Manifest>, Error> {
    let path = dir.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            warn!("the checkpoints in {dir:?} are passed over: {error}");
            return Ok(None);
        }
    };
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            warn!("the checkpoints in {dir:?} are passed over: {path:?} is damaged ({error})");
            return Ok(None);
        }
    };
    match run.difference(&manifest.run) {
        Some(differs) => Err(ConfigError::AnotherRun { dir: dir.to_owned(), differs }.into()),
        None => Ok(Some(manifest)),
    }
}

/// The file, if its digest is one of the manifest's and it can be read.
fn good(dir: &Path, manifest: &Manifest, name: &str) -> Option<Found> {
    let path = dir.join(name);
    let versions = manifest.files.get(name)?;
    if !path.exists() {
        return None;
    }
    let found = sha256_file(&path).map_err(|error| error.to_string()).and_then(|file| {
        let version = versions.iter().find(|version| version.sha256 == file.sha256);
        let Version { epoch, step, .. } = *version.ok_or("its SHA-256 is not the manifest's")?;
        let checkpoint = Checkpoint::load(&path).map_err(|error| error.to_string())?;
        Ok(Found { path: path.clone(), epoch, step, checkpoint })
    });
    found.inspect_err(|problem| warn!("the checkpoint {path:?} is passed over: {problem}")).ok()
}

#[cfg(test)]
mod tests {
    use anneal_model::StateDict;
    use anneal_pth::Value;

    use super::*;

    fn identity() -> Identity {
        let classes = vec!["cat".to_owned(), "dog".to_owned()];
        Identity::new(ModelSpec::default(), classes, "sha256:0".to_owned(), &Hyperparameters::default())
    }

    fn checkpoint(epoch: i64) -> Checkpoint {
        Checkpoint { info: None, state: StateDict::default(), extra: vec![("epoch".to_owned(), Value::Int(epoch))] }
    }

    fn save(checkpoints: &mut Checkpoints, epoch: u32, is_best: bool) {
        let step = u64::from(epoch) * 10;
        checkpoints.save(epoch, step, checkpoint(i64::from(epoch)), is_best).expect("a checkpoint");
    }

    fn three_epochs(dir: &Path) -> Checkpoints {
        let mut checkpoints = Checkpoints::open(dir, identity()).expect("a directory");
        for (epoch, is_best) in [(1, true), (2, true), (3, false)] {
            save(&mut checkpoints, epoch, is_best);
        }
        checkpoints
    }

    fn found(dir: &Path) -> Option<u32> {
        let checkpoints = Checkpoints::open(dir, identity()).expect("a directory");
        checkpoints.find(None).expect("the same run").map(|found| found.epoch)
    }

    #[test]
    fn the_newest_epoch_is_found_again() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!((found(dir.path()), newest_step(dir.path())), (None, None));
        three_epochs(dir.path());
        assert_eq!((found(dir.path()), newest_step(dir.path())), (Some(3), Some(30)));
    }

    #[test]
    fn a_torn_file_is_passed_over_for_the_newest_good_one_and_at_last_for_a_fresh_start() {
        let dir = tempfile::tempdir().expect("a folder");
        save(&mut three_epochs(dir.path()), 4, false);
        let tear = |name: &str| fs::write(dir.path().join(name), "torn").expect("a file");
        tear(LAST);
        assert_eq!(found(dir.path()), Some(3));
        tear(PREVIOUS);
        assert_eq!(found(dir.path()), Some(2));
        tear(BEST);
        assert_eq!(found(dir.path()), None);
        tear(MANIFEST);
        assert_eq!(found(dir.path()), None);
    }

    #[test]
    fn a_crash_between_any_two_writes_loses_nothing_older() {
        for is_best in [false, true] {
            let (before, after) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
            three_epochs(before.path());
            save(&mut three_epochs(after.path()), 4, is_best);
            let copy = |from: &str, to: &str| {
                fs::copy(after.path().join(from), before.path().join(to)).expect("a file");
            };
            // As `save` does it, one step after the other.
            let mut steps: Vec<Box<dyn Fn()>> =
                vec![Box::new(|| copy(LAST, "next_last_checkpoint.pth")), Box::new(|| copy(MANIFEST, MANIFEST))];
            if is_best {
                steps.push(Box::new(|| copy(BEST, BEST)));
            }
            let rename = |from: &str, to: &str| {
                fs::rename(before.path().join(from), before.path().join(to)).expect("a file");
            };
            steps.push(Box::new(|| rename(LAST, PREVIOUS)));
            steps.push(Box::new(|| rename("next_last_checkpoint.pth", LAST)));
            for step in steps {
                assert!(found(before.path()) >= Some(3));
                step();
            }
            assert_eq!(found(before.path()), Some(4));
        }
    }

    #[test]
    fn another_runs_directory_is_refused_with_what_differs() {
        let dir = tempfile::tempdir().expect("a folder");
        three_epochs(dir.path());
        let mut other = identity();
        other.hyperparameters.learning_rate = 0.5;
        let message = Checkpoints::open(dir.path(), other).err().expect("a refusal").to_string();
        assert!(message.contains("hyperparameters.learningRate is 0.001 there and 0.5 here"), "{message}");
    }

    #[test]
    fn a_constant_schedule_can_be_made_longer() {
        let with = |schedule, epochs| {
            let hyperparameters = Hyperparameters { schedule, epochs, ..Hyperparameters::default() };
            Identity::new(ModelSpec::default(), Vec::new(), String::new(), &hyperparameters)
        };
        assert_eq!(with(Schedule::Constant, 3).difference(&with(Schedule::Constant, 9)), None);
        assert!(with(Schedule::Cosine, 3).difference(&with(Schedule::Cosine, 9)).is_some());
    }
}
