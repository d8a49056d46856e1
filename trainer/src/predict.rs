//! What a checkpoint makes of single photos and of whole datasets.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anneal_api::{dataset::DatasetUri, termination::DatasetResult};
use anneal_model::{
    Checkpoint, Classifier,
    preprocess::{self, ImageLimits, PreprocessError},
};

use crate::{
    data::{
        Split, arrange, listing,
        load::{self, Loading, Photos},
        remote::Downloads,
        walk::{Found, walk},
    },
    evaluate::{Evaluation, How, Views, evaluate_how},
    outcome::Error,
    progress,
};

/// What single photos are taken for.
pub struct Predictor {
    classifier: Classifier,
    /// The classes.
    pub classes: Vec<String>,
}

impl Predictor {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn load(checkpoint: &Path) -> Result<Self, Error> {
        let classifier = Classifier::load(checkpoint)?;
        let classes = classifier.contract().classes.clone();
        Ok(Self { classifier, classes })
    }

    /// The probability of each class for a photo.
    ///
    /// # Errors
    /// When the photo cannot be read or decoded, or libtorch fails.
    pub fn probabilities(&self, path: &Path) -> Result<Vec<f64>, Error> {
        let content = fs::read(path).map_err(|source| Error::Photo { path: path.to_owned(), source })?;
        let problem = |source: PreprocessError| Error::Image { path: path.to_owned(), source };
        let image = preprocess::decode(&content, &ImageLimits::default()).map_err(|error| problem(error.into()))?;
        let input = preprocess::to_tensor(&[image], &self.classifier.contract().preprocessing).map_err(problem)?;
        Ok(self.classifier.probabilities(&input)?.into_iter().flatten().map(f64::from).collect())
    }
}

/// The photos that paths name: files as they are, folders with all photos below them, sorted.
///
/// # Errors
/// When a path cannot be read, or a folder holds no photo.
pub fn photos_of(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let mut photos = Vec::new();
    for path in paths {
        let about = fs::metadata(&path).map_err(|source| Error::Photo { path: path.clone(), source })?;
        if about.is_dir() {
            let mut below = BTreeSet::new();
            walk(&path, |within, path, found| {
                if found != Found::Folder && listing::is_photo(within) {
                    below.insert(path);
                }
                Ok(())
            })?;
            if below.is_empty() {
                return Err(Error::NoPhoto(path));
            }
            photos.extend(below);
        } else {
            photos.push(path);
        }
    }
    Ok(photos)
}

/// How a checkpoint is measured.
pub struct Measuring<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Path,
    /// The dataset.
    pub dataset: &'a DatasetUri,
    /// What the network sees of each photo.
    pub views: Views,
    /// Threads to compute with.
    pub threads: usize,
    /// Bytes of memory that the process may use, if that is known.
    pub memory: Option<u64>,
    /// Where downloads go.
    pub downloads: &'a Path,
    /// Set when the process was asked to stop.
    pub stop: &'a AtomicBool,
}

/// What came out on a dataset.
pub struct Measured {
    /// The classes.
    pub classes: Vec<String>,
    /// The split that was measured; training photos stand for a dataset without splits.
    pub split: Split,
    /// Its photos.
    pub photos: Photos,
    /// What came out.
    pub evaluation: Evaluation,
    /// What it was measured on.
    pub identity: DatasetResult,
    /// Temperature that the checkpoint names, or 1.
    pub temperature: f64,
    /// Photos that were skipped, with reasons.
    pub broken: Vec<String>,
}

/// Evaluates a checkpoint on a dataset: on its test split, or else on its validation split, or else on all photos.
///
/// # Errors
/// When the checkpoint or the dataset cannot be used, or their classes differ.
pub fn measure(how: &Measuring<'_>) -> Result<Measured, Error> {
    let Measuring { checkpoint, dataset, views, threads, memory, downloads, stop } = *how;
    let checkpoint = Checkpoint::load(checkpoint)?;
    let contract = checkpoint.contract()?;
    let network = checkpoint.network()?;
    let (listing, _) = listing::list(dataset, Downloads { dir: downloads, stop, moved: &|| () })?;
    let (arrangement, split) = arrange::for_measuring(listing, &contract.classes)?;
    let size = usize::try_from(contract.preprocessing.size).unwrap_or_default();
    let bar = progress::loading_bar(arrangement.len());
    let loading =
        Loading { size, threads, memory, spill: &env::temp_dir(), stop, done: &|done| bar.set_position(done as u64) };
    let loaded = load::load(dataset, arrangement, &loading)?;
    bar.finish_and_clear();
    let bar = progress::answering_bar(loaded.test.len());
    let done = |photos| bar.inc(photos as u64);
    let how = How { preprocessing: &contract.preprocessing, views, threads, stop, done: &done };
    let evaluation = evaluate_how(&network, &loaded.test, &how)?;
    bar.finish_and_clear();
    let profile = checkpoint.info.and_then(|info| info.validation);
    Ok(Measured {
        classes: contract.classes,
        split,
        photos: loaded.test,
        evaluation,
        identity: loaded.identity,
        temperature: profile.map_or(1.0, |profile| profile.calibration.temperature),
        broken: loaded.broken,
    })
}
