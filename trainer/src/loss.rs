//! The training loss: cross entropy as `torch.nn.CrossEntropyLoss` defines it, taken from a batch in one part or several.

use tch::{Kind, Reduction, TchError, Tensor};

use crate::mixing::{self, Mix};

/// Targets that count for nothing; libtorch's default, and no label of ours.
const IGNORED: i64 = -100;

/// What counts how much.
pub struct Loss {
    /// A weight for each class.
    weights: Option<Tensor>,
    /// Share of a label that is spread over all classes.
    smoothing: f64,
}

/// What the sum over a batch's photos is divided by, for their mean: the parts of a batch add up to the loss of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divisor {
    photos: f64,
    weight: f64,
}

impl Loss {
    /// A loss with a weight for each class, or all classes alike.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn new(weights: Option<&[f32]>, smoothing: f64) -> Result<Self, TchError> {
        Ok(Self { weights: weights.map(Tensor::f_from_slice).transpose()?, smoothing })
    }

    /// The divisor of a batch with these labels.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn divisor(&self, labels: &Tensor) -> Result<Divisor, TchError> {
        #[expect(clippy::cast_precision_loss, reason = "a count of photos")]
        let photos = labels.numel() as f64;
        let weight = match &self.weights {
            Some(weights) => weights.f_index_select(0, labels)?.f_sum(Kind::Double)?.f_double_value(&[])?,
            None => photos,
        };
        Ok(Divisor { photos, weight })
    }

    /// What some photos of a batch add to its mean loss. With weights, that is the weighted mean; of mixed photos, whose
    /// labels are shared out among two classes, PyTorch divides the weighted sum by the count.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn part(&self, logits: &Tensor, labels: &Tensor, mix: Option<Mix>, of: Divisor) -> Result<Tensor, TchError> {
        match mix {
            Some(mix) => {
                let (own, other) = (self.sum(logits, labels)?, self.sum(logits, &mixing::neighbours(labels)?)?);
                other.f_lerp(&own, mix.own())?.f_div_scalar(of.photos)
            }
            None => self.sum(logits, labels)?.f_div_scalar(of.weight),
        }
    }

    fn sum(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        let weights = self.weights.as_ref().map(|weights| weights.f_to_kind(logits.f_kind()?)).transpose()?;
        logits.f_cross_entropy_loss(labels, weights, Reduction::Sum, IGNORED, self.smoothing)
    }
}
