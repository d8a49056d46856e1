//! The checkpoint: verified, loaded, and made into predictors, one for each thread.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anneal_api::{
    Sha256, checkpoint::Preprocessing, checkpoint::ValidationProfile, failure::FailureClass,
    hyperparameters::Precision, termination::DatasetResult,
};
use anneal_model::{
    Checkpoint, CheckpointError, Classifier, GoldenSet, ModelError,
    preprocess::{self, ImageLimits, PreprocessError},
    sha256_file,
};
use bytes::Bytes;
use tch::{Kind, Tensor};

use crate::{
    engine::{Outcome, PredictError, Predictor},
    input::Input,
    options::Decode,
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
    /// What convolutions compute in.
    pub precision: Precision,
    /// Bounds on the images.
    pub images: ImageLimits,
    /// Which pixels of a JPEG are computed.
    pub decode: Decode,
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
    /// How it answered on its validation set.
    pub validation: Option<ValidationProfile>,
    /// Threads that run it.
    pub workers: usize,
    /// What convolutions compute in.
    pub precision: Precision,
    /// Inputs of the golden set that every thread reproduced; absent where the checkpoint has none.
    pub golden: Option<usize>,
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
    let checkpoint = Checkpoint::load(path).map_err(|error| broken(path, error))?;
    let golden = GoldenSet::of(&checkpoint).map_err(|error| broken(path, error))?.map(Arc::new);
    let classifier = Classifier::with_precision(checkpoint, wanted.precision).map_err(|error| broken(path, error))?;
    let budget = Arc::new(PixelBudget::new(wanted.images.max_pixels));
    let mut predictors = Vec::with_capacity(wanted.workers);
    for _ in 0..wanted.workers {
        let classifier =
            classifier.shallow_clone().map_err(|source| LoadError::Clone { path: path.clone(), source })?;
        let (golden, budget) = (golden.clone(), Arc::clone(&budget));
        predictors.push(TorchPredictor { classifier, golden, budget, limits: wanted.images, decode: wanted.decode });
    }
    let golden = golden.map(|golden| golden.len());
    Ok(Loaded { facts: Facts { golden, ..facts(&classifier, sha256, wanted) }, predictors, took: begun.elapsed() })
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
        validation: info.and_then(|info| info.validation.clone()),
        workers: wanted.workers,
        precision: classifier.precision(),
        golden: None,
    }
}

/// A checkpoint's network on one thread.
pub struct TorchPredictor {
    classifier: Classifier,
    golden: Option<Arc<GoldenSet>>,
    budget: Arc<PixelBudget>,
    limits: ImageLimits,
    decode: Decode,
}

impl TorchPredictor {
    /// The network's input of one image, float32 [1, 3, size, size], channels innermost.
    fn prepare(&self, input: Input) -> Result<Tensor, PredictError> {
        let preprocessing = &self.classifier.contract().preprocessing;
        let image = match input {
            Input::Values(values) => {
                let side = i64::from(preprocessing.size);
                let planes = Tensor::f_from_slice(&values).and_then(|tensor| tensor.f_reshape([1, 3, side, side]));
                return planes
                    .and_then(|t| t.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2]))
                    .map_err(failed);
            }
            Input::Pixels(image) => image,
            Input::File(bytes) => return self.prepare_file(&bytes),
        };
        preprocess::to_tensor(&[image], preprocessing).map_err(|error| image_error(&error))
    }

    fn prepare_file(&self, bytes: &[u8]) -> Result<Tensor, PredictError> {
        // A decoder that panics has met a malicious file, not a broken model: only the request may fail.
        let prepared = catch_unwind(AssertUnwindSafe(|| {
            let (width, height) = preprocess::dimensions(bytes, &self.limits)?;
            let _share = self.budget.take(u64::from(width) * u64::from(height));
            let preprocessing = &self.classifier.contract().preprocessing;
            let image = match self.decode {
                Decode::Exact => preprocess::decode(bytes, &self.limits)?,
                Decode::Scaled => preprocess::decode_scaled(bytes, &self.limits, preprocessing.size.unsigned_abs())?,
            };
            preprocess::to_tensor(&[image], preprocessing)
        }));
        prepared
            .map_err(|_| PredictError::Undecodable("the decoder gave up on this image".to_owned()))?
            .map_err(|error| image_error(&error))
    }

    /// The outputs for a batch, row by row.
    fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Vec<f32>>, PredictError> {
        let output = match inputs {
            [] => return Ok(Vec::new()),
            [one] => self.classifier.logits(one),
            several => self.classifier.logits(&Tensor::f_cat(several, 0).map_err(failed)?),
        };
        let output = output.map_err(failed)?.f_to_kind(Kind::Float).and_then(|t| t.f_contiguous()).map_err(failed)?;
        let mut logits = vec![0.0_f32; output.numel()];
        output.f_copy_data(&mut logits, output.numel()).map_err(failed)?;
        Ok(logits.chunks(logits.len() / inputs.len()).map(<[f32]>::to_vec).collect())
    }
}

impl Predictor for TorchPredictor {
    fn warm_up(&mut self) -> Result<(), PredictError> {
        // Parallelism is between requests: a second thread in one forward pass would fight with the other workers.
        tch::set_num_threads(1);
        let image = Bytes::from(picture::png().map_err(failed)?);
        for _ in 0..WARM_UPS {
            for logits in self.predict(vec![Input::File(image.clone())]).logits {
                Prediction::from_logits(&logits?).ok_or(PredictError::NotFinite)?;
            }
        }
        if let Some(golden) = &self.golden {
            let difference = golden.check(&self.classifier).map_err(failed)?;
            tracing::info!(inputs = golden.len(), difference, "the golden set is reproduced");
        }
        Ok(())
    }

    fn predict(&mut self, inputs: Vec<Input>) -> Outcome {
        let begun = Instant::now();
        let prepared: Vec<_> = inputs.into_iter().map(|input| self.prepare(input)).collect();
        let preparing = begun.elapsed();
        let good: Vec<&Tensor> = prepared.iter().filter_map(|tensor| tensor.as_ref().ok()).collect();
        let mut rows = match self.forward(&good) {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); good.len()],
        }
        .into_iter();
        let forward = begun.elapsed().saturating_sub(preparing);
        let missing = || Err(PredictError::Failed("the model gave too few outputs".to_owned()));
        let row = |tensor: Result<Tensor, PredictError>| tensor.and_then(|_| rows.next().unwrap_or_else(missing));
        Outcome { logits: prepared.into_iter().map(row).collect(), preparing, forward }
    }
}

/// Pixels that may be decoded at a time, by all threads together: large images are decoded one after another.
#[derive(Debug)]
struct PixelBudget {
    left: Mutex<u64>,
    changed: Condvar,
}

/// Pixels that are given back when it is dropped.
struct Share<'a> {
    budget: &'a PixelBudget,
    pixels: u64,
}

impl PixelBudget {
    fn new(pixels: u64) -> Self {
        Self { left: Mutex::new(pixels), changed: Condvar::new() }
    }

    /// Waits until so many pixels are left. No image has more than the whole budget.
    fn take(&self, pixels: u64) -> Share<'_> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.changed.wait_while(left, |left| *left < pixels).unwrap_or_else(PoisonError::into_inner);
        *left -= pixels;
        Share { budget: self, pixels }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.left.lock().unwrap_or_else(PoisonError::into_inner) += self.pixels;
        self.budget.changed.notify_all();
    }
}

fn image_error(error: &PreprocessError) -> PredictError {
    match error {
        PreprocessError::Image(image) => PredictError::Undecodable(image.to_string()),
        other => PredictError::Failed(other.to_string()),
    }
}

fn failed(error: impl std::fmt::Display) -> PredictError {
    PredictError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_decoded_one_after_another() {
        let budget = PixelBudget::new(10);
        let first = budget.take(7);
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _share = budget.take(5);
                Instant::now()
            });
            let small = Instant::now();
            drop(budget.take(3));
            assert!(small.elapsed() < Duration::from_secs(5), "what fits does not wait");
            thread::sleep(Duration::from_millis(20));
            let given_back = Instant::now();
            drop(first);
            assert!(second.join().expect("no panic") >= given_back);
        });
    }
}
