//! What a checkpoint makes of single photos and of whole datasets.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anneal_api::dataset::DatasetUri;
use anneal_model::{
    Checkpoint, Classifier,
    preprocess::{self, ImageError, ImageLimits},
};

use crate::{
    data::{
        DataError, arrange, listing,
        load::{self, Loading},
    },
    evaluate::{Evaluation, evaluate},
    outcome::Error,
};

/// The classes and what each photo was taken for: a probability for each class.
pub struct Predictions {
    /// The classes.
    pub classes: Vec<String>,
    /// Each photo with its probabilities.
    pub photos: Vec<(PathBuf, Vec<f64>)>,
}

/// Classifies single photos.
///
/// # Errors
/// When the checkpoint or a photo cannot be read.
pub fn predict(checkpoint: &Path, files: Vec<PathBuf>) -> Result<Predictions, Error> {
    let classifier = Classifier::load(checkpoint)?;
    let contract = classifier.contract().clone();
    let one = |path: PathBuf| -> Result<(PathBuf, Vec<f64>), Error> {
        let content = fs::read(&path).map_err(DataError::reading(&path))?;
        let problem = |source: ImageError| Error::Image { path: path.clone(), source };
        let image = preprocess::decode(&content, &ImageLimits::default()).map_err(problem)?;
        let input = preprocess::to_tensor(&[image], &contract.preprocessing).map_err(problem)?;
        let probabilities = classifier.probabilities(&input)?.into_iter().flatten().map(f64::from).collect();
        Ok((path, probabilities))
    };
    let photos = files.into_iter().map(one).collect::<Result<_, _>>()?;
    Ok(Predictions { classes: contract.classes, photos })
}

/// The classes, and what came out on a dataset.
pub struct Measured {
    /// The classes.
    pub classes: Vec<String>,
    /// What came out.
    pub evaluation: Evaluation,
}

/// Evaluates a checkpoint on a dataset: on its test split, or else on its validation split, or else on all photos.
///
/// # Errors
/// When the checkpoint or the dataset cannot be used, or their classes differ.
pub fn measure(
    checkpoint: &Path,
    uri: &DatasetUri,
    threads: usize,
    memory: Option<u64>,
    stop: &AtomicBool,
) -> Result<Measured, Error> {
    let checkpoint = Checkpoint::load(checkpoint)?;
    let contract = checkpoint.contract()?;
    let network = checkpoint.network()?;
    let arrangement = arrange::for_measuring(listing::list(uri)?, &contract.classes)?;
    let size = usize::try_from(contract.preprocessing.size).unwrap_or_default();
    let loading = Loading { size, threads, memory, stop, done: &|_| {} };
    let dataset = load::load(uri, arrangement, &loading)?;
    let evaluation = evaluate(&network, &dataset.test, &contract.preprocessing, threads, stop)?;
    Ok(Measured { classes: contract.classes, evaluation })
}
