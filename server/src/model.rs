//! The checkpoint: verified, loaded, and made into predictors, one for each thread.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anneal_api::{Sha256, checkpoint::Preprocessing, failure::FailureClass, termination::DatasetResult};
use anneal_model::{
    CheckpointError, Classifier, ModelError,
    preprocess::{self, ImageError, ImageLimits},
    sha256_file,
};
use tch::Kind;

use crate::{
    engine::{PredictError, Predictor},
    picture,
    prediction::Prediction,
};

/// Forward passes before a thread takes requests: libtorch plans and allocates during the first ones, and one is not
/// enough.
const WARM_UPS: usize = 3;

/// Which model to load, and for how many threads.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The checkpoint's file.
    pub checkpoint: PathBuf,
    /// The digest that it must have.
    pub sha256: Option<Sha256>,
    /// The name to report.
    pub name: Option<String>,
    /// Threads that run the model.
    pub workers: usize,
    /// Bounds on the images.
    pub images: ImageLimits,
}

/// What is known about a loaded model.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name to report.
    pub name: String,
    /// `PyTorch`'s name of the architecture.
    pub model_type: &'static str,
    /// Count of parameters.
    pub parameters: usize,
    /// Classes in the order of the outputs.
    pub classes: Vec<String>,
    /// How an image becomes the input.
    pub preprocessing: Preprocessing,
    /// Accuracy on the test set.
    pub accuracy: Option<f64>,
    /// Digest of the checkpoint's file.
    pub sha256: Sha256,
    /// Name of the run that made it.
    pub run: Option<String>,
    /// What it was trained on.
    pub dataset: Option<DatasetResult>,
    /// Threads that run it.
    pub workers: usize,
}

impl Facts {
    /// The input's size as the reference writes it.
    pub fn input_size(&self) -> String {
        let size = self.preprocessing.size;
        format!("{size}x{size}")
    }
}

/// A model that is ready to be given to threads.
pub struct Loaded {
    /// What is known about it.
    pub facts: Facts,
    /// One for each thread.
    pub predictors: Vec<TorchPredictor>,
    /// How long verifying and loading took.
    pub took: Duration,
}

/// The model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no checkpoint at {path}; check the path, and that the volume with the model is mounted there")]
    NotFound {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file is there but cannot be read.
    #[error("the checkpoint {path} cannot be read: {source}; check the volume and the file's permissions")]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is another one than declared.
    #[error(
        "the checkpoint {path} has the SHA-256 {found}, but {expected} is declared; deploy the file that was meant, or declare the digest of this one"
    )]
    Digest {
        /// Where it is.
        path: PathBuf,
        /// The declared digest.
        expected: Sha256,
        /// The file's digest.
        found: Sha256,
    },
    /// The file is no checkpoint that can be served.
    #[error("the checkpoint {path} cannot be loaded: {source}")]
    Broken {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: Box<CheckpointError>,
    },
    /// The weights cannot be shared between threads.
    #[error("the checkpoint {path} cannot be loaded for several threads: {source}")]
    Clone {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
}

impl LoadError {
    /// The failure's class.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotFound { .. } => FailureClass::ModelNotFound,
            Self::Digest { .. } => FailureClass::DigestMismatch,
            Self::Unreadable { .. } | Self::Broken { .. } | Self::Clone { .. } => FailureClass::LoadFailed,
        }
    }
}

/// As many threads as the CPU quota allows. The standard library reads the affinity mask and the quotas of cgroup v1
/// and v2, rounds down, and gives at least one; more threads than quota would only be throttled together.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Verifies the checkpoint, then loads it. Nothing of a file with another digest is ever parsed.
///
/// # Errors
/// [`LoadError`] says what to do.
pub fn load(wanted: &Wanted) -> Result<Loaded, LoadError> {
    let begun = Instant::now();
    let path = &wanted.checkpoint;
    let sha256 = verify(path, wanted.sha256.as_ref())?;
    let classifier = Classifier::load(path).map_err(|error| broken(path, error))?;
    let mut predictors = Vec::with_capacity(wanted.workers);
    for _ in 0..wanted.workers {
        let classifier =
            classifier.shallow_clone().map_err(|source| LoadError::Clone { path: path.clone(), source })?;
        predictors.push(TorchPredictor { classifier, limits: wanted.images });
    }
    Ok(Loaded { facts: facts(&classifier, sha256, wanted), predictors, took: begun.elapsed() })
}

fn verify(path: &Path, expected: Option<&Sha256>) -> Result<Sha256, LoadError> {
    let found = sha256_file(path).map_err(|source| unreadable(path, source))?.sha256;
    match expected {
        Some(expected) if *expected != found => {
            Err(LoadError::Digest { path: path.to_owned(), expected: expected.clone(), found })
        }
        _ => Ok(found),
    }
}

fn unreadable(path: &Path, source: io::Error) -> LoadError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => LoadError::NotFound { path },
        _ => LoadError::Unreadable { path, source },
    }
}

fn broken(path: &Path, source: CheckpointError) -> LoadError {
    LoadError::Broken { path: path.to_owned(), source: Box::new(source) }
}

fn facts(classifier: &Classifier, sha256: Sha256, wanted: &Wanted) -> Facts {
    let (contract, info) = (classifier.contract(), classifier.info());
    let model_type = contract.model.architecture.class_name();
    Facts {
        name: wanted.name.clone().unwrap_or_else(|| model_type.to_owned()),
        model_type,
        parameters: classifier.parameter_count(),
        classes: contract.classes.clone(),
        preprocessing: contract.preprocessing.clone(),
        accuracy: info.and_then(|info| info.metrics).map(|metrics| metrics.accuracy),
        sha256,
        run: info.map(|info| info.run.clone()),
        dataset: info.and_then(|info| info.dataset.clone()),
        workers: wanted.workers,
    }
}

/// A checkpoint's network on one thread.
pub struct TorchPredictor {
    classifier: Classifier,
    limits: ImageLimits,
}

impl Predictor for TorchPredictor {
    fn warm_up(&mut self) -> Result<(), PredictError> {
        // Parallelism is between requests: a second thread in one forward pass would fight with the other workers.
        tch::set_num_threads(1);
        let image = picture::png().map_err(|error| PredictError::Failed(error.to_string()))?;
        for _ in 0..WARM_UPS {
            let logits = self.logits(&image)?;
            Prediction::from_logits(&logits).ok_or(PredictError::NotFinite)?;
        }
        Ok(())
    }

    fn logits(&mut self, image: &[u8]) -> Result<Vec<f32>, PredictError> {
        // A decoder that panics has met a malicious file, not a broken model: only the request may fail.
        let decoded = catch_unwind(AssertUnwindSafe(|| preprocess::decode(image, &self.limits)));
        let image = decoded
            .map_err(|_| PredictError::Undecodable("the decoder gave up on this image".to_owned()))?
            .map_err(|error| image_error(&error))?;
        let input = preprocess::to_tensor(&[image], &self.classifier.contract().preprocessing)
            .map_err(|error| image_error(&error))?;
        let output = self
            .classifier
            .logits(&input)
            .map_err(failed)?
            .f_to_kind(Kind::Float)
            .and_then(|t| t.f_contiguous())
            .map_err(failed)?;
        let mut logits = vec![0.0_f32; output.numel()];
        output.f_copy_data(&mut logits, output.numel()).map_err(failed)?;
        Ok(logits)
    }
}

fn image_error(error: &ImageError) -> PredictError {
    match error {
        ImageError::Torch(_) | ImageError::Preprocessing(..) | ImageError::Sizes(..) => {
            PredictError::Failed(error.to_string())
        }
        ImageError::UnknownFormat | ImageError::Decode(_) | ImageError::TooLarge { .. } | ImageError::Empty => {
            PredictError::Undecodable(error.to_string())
        }
    }
}

fn failed(error: impl std::fmt::Display) -> PredictError {
    PredictError::Failed(error.to_string())
}
