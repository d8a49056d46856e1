//! The golden set: a few inputs with what the network made of them when it was trained. A server that does not come to the
//! same is not fit to answer, whatever the reason: other instructions, another libtorch, a damaged file.

use anneal_api::{
    checkpoint::{GOLDEN_INPUTS, GOLDEN_KEY, GOLDEN_LOGITS},
    hyperparameters::Precision,
};
use anneal_pth::{DType, Dict, TensorData, Value};
use image::RgbImage;

use crate::{
    Checkpoint, CheckpointError, Classifier, ModelError,
    preprocess::{batch_u8, normalise},
    state::tensor_to_data,
};

/// Most inputs of a golden set.
pub const MAX_INPUTS: usize = 16;

/// Steps of a logit between whole numbers.
const STEPS: f32 = 4096.0;

/// Inputs and the logits that belong to them.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenSet {
    /// Images of the network's size.
    images: Vec<RgbImage>,
    /// Logits of each image, in float32.
    logits: Vec<Vec<f32>>,
}

impl GoldenSet {
    /// What the classifier makes of images of its size.
    ///
    /// # Errors
    /// When there are none or too many, they have several sizes, or libtorch fails.
    pub fn new(classifier: &Classifier, images: Vec<RgbImage>) -> Result<Self, CheckpointError> {
        if images.is_empty() || images.len() > MAX_INPUTS {
            return Err(invalid(&format!("it has {} inputs, and 1 to {MAX_INPUTS} are of use", images.len())));
        }
        let mut logits = logits(classifier, &images)?;
        // Threads may add up in another order: rounded far below the tolerance, the published file stays the same.
        logits.iter_mut().flatten().for_each(|logit| *logit = (*logit * STEPS).round() / STEPS);
        Ok(Self { images, logits })
    }

    /// The golden set of a checkpoint, if it has one.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(value) = checkpoint.get(GOLDEN_KEY) else { return Ok(None) };
        let field = |key: &str| {
            value
                .as_dict()
                .and_then(|dict| dict.get(key))
                .and_then(Value::as_tensor)
                .ok_or_else(|| invalid("a tensor is missing"))
        };
        let (inputs, logits) = (field(GOLDEN_INPUTS)?, field(GOLDEN_LOGITS)?);
        let (&[count, height, width, 3], &[rows, classes]) = (inputs.shape(), logits.shape()) else {
            return Err(invalid("the shapes are not [N, H, W, 3] and [N, classes]"));
        };
        let typed = inputs.dtype() == DType::U8 && logits.dtype() == DType::F32;
        if !typed || count != rows || !(1..=MAX_INPUTS).contains(&count) || height * width * classes == 0 {
            return Err(invalid("it must have 1 to 16 inputs in uint8 and their logits in float32"));
        }
        let side = |pixels: usize| u32::try_from(pixels).map_err(|_| invalid("the images are too large"));
        let (width, height) = (side(width)?, side(height)?);
        let images = inputs.data().chunks_exact(inputs.data().len() / count);
        let images = images.filter_map(|pixels| RgbImage::from_raw(width, height, pixels.to_vec())).collect();
        let number = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let numbers: Vec<f32> = logits.data().chunks_exact(4).map(number).collect();
        Ok(Some(Self { images, logits: numbers.chunks_exact(classes).map(<[f32]>::to_vec).collect() }))
    }

    /// The entry of a checkpoint that holds it.
    ///
    /// # Errors
    /// When the images do not make up a tensor.
    pub fn into_entry(self) -> Result<(String, Value), CheckpointError> {
        let (width, height) = self.images.first().map(RgbImage::dimensions).unwrap_or_default();
        let shape = vec![self.images.len(), height as usize, width as usize, 3];
        let pixels = self.images.iter().flat_map(|image| image.as_raw().iter().copied()).collect();
        let inputs = TensorData::new(DType::U8, shape, pixels);
        let shape = vec![self.logits.len(), self.logits.first().map_or(0, Vec::len)];
        let numbers = self.logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
        let logits = TensorData::new(DType::F32, shape, numbers);
        let tensor = |data: Result<TensorData, _>| {
            data.map(Value::Tensor).map_err(|_: anneal_pth::TensorError| invalid("its shapes do not fit"))
        };
        let dict = Dict::plain([(GOLDEN_INPUTS, tensor(inputs)?), (GOLDEN_LOGITS, tensor(logits)?)]);
        Ok((GOLDEN_KEY.to_owned(), Value::Dict(dict)))
    }

    /// Count of inputs.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether it has no inputs, which none has.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The largest difference between a probability of the golden set and the classifier's.
    ///
    /// # Errors
    /// [`CheckpointError::Disagrees`] when it is larger than the classifier's precision explains.
    pub fn check(&self, classifier: &Classifier) -> Result<f64, CheckpointError> {
        let found = logits(classifier, &self.images)?;
        let pairs = found.iter().zip(&self.logits).flat_map(|(found, wanted)| {
            if found.len() == wanted.len() {
                softmax(found).into_iter().zip(softmax(wanted)).collect()
            } else {
                vec![(0.0, f64::NAN)]
            }
        });
        let difference = pairs
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |most: f64, d| if d.is_nan() { f64::INFINITY } else { most.max(d) });
        let tolerance = tolerance(classifier.precision());
        if difference <= tolerance { Ok(difference) } else { Err(CheckpointError::Disagrees { difference, tolerance }) }
    }
}

/// By how much probabilities may differ: sums in another order in float32, roundings to 8 bits in bfloat16.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Float32 => 1e-3,
        Precision::BFloat16 => 2e-2,
    }
}

fn logits(classifier: &Classifier, images: &[RgbImage]) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let batch = batch_u8(images).map_err(|error| invalid(&error.to_string()))?;
    let input = normalise(&batch, &classifier.contract().preprocessing).map_err(ModelError::from)?;
    let data = tensor_to_data(&classifier.logits(&input)?)?;
    let numbers: Vec<f32> =
        data.data().chunks_exact(4).map(|bytes| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes)).collect();
    Ok(numbers.chunks_exact(classifier.contract().classes.len()).map(<[f32]>::to_vec).collect())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

fn invalid(why: &str) -> CheckpointError {
    CheckpointError::Golden(why.to_owned())
}
