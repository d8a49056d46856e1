//! How a run trains. Names are PyTorch's; defaults are those of the reference's headline recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Optimisers, by the names of their classes in `torch.optim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum Optimizer {
    /// `torch.optim.Adam`, betas (0.9, 0.999), eps 1e-8.
    #[default]
    Adam,
    /// `torch.optim.AdamW`: Adam with decoupled weight decay.
    AdamW,
    /// `torch.optim.SGD` with Nesterov momentum.
    #[serde(rename = "SGD")]
    Sgd,
}

/// How the learning rate moves over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum Schedule {
    /// The learning rate stays as it is.
    #[default]
    Constant,
    /// Linear warm-up over the first tenth of all steps, then a cosine down to zero.
    Cosine,
    /// A tenth of the learning rate after each `stepSize` epochs, as `torch.optim.lr_scheduler.StepLR`.
    Step,
    /// A cosine up from a twenty-fifth over three tenths of all steps, then one down to nearly zero, as
    /// `torch.optim.lr_scheduler.OneCycleLR` without its cycle of the momentum.
    OneCycle,
}

/// How much the images of each class count in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub enum ClassWeights {
    /// Every image counts the same.
    #[default]
    Equal,
    /// Every class counts the same: each image in inverse proportion to the size of its class.
    Balanced,
}

/// Number format of convolutions, by torch's dtype names; everything else is float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    Float32,
    /// Convolutions in bfloat16; `BatchNorm`, loss and optimiser stay in float32.
    BFloat16,
}

/// Random changes of a training image. The defaults are the reference's; zero switches one off, and 1 the crop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Augmentation {
    /// Least share of the area that a random crop keeps, as the lower end of `scale` of torchvision's `RandomResizedCrop`;
    /// its aspect ratio lies between 3/4 and 4/3. 1 crops nothing.
    #[schemars(range(min = 0.01, max = 1.0))]
    pub crop_area: f64,
    /// Probability of a horizontal flip.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub horizontal_flip: f64,
    /// Rotation by up to this many degrees either way.
    #[schemars(range(min = 0.0, max = 180.0))]
    pub rotation_degrees: f64,
    /// Translation by up to this share of the width and height.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub translate: f64,
    /// Scaling by a factor between 1 - scale and 1 + scale.
    #[schemars(range(min = 0.0, max = 0.9))]
    pub scale: f64,
    /// Brightness by a factor between 1 - brightness and 1 + brightness.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub brightness: f64,
    /// Contrast by a factor between 1 - contrast and 1 + contrast.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub contrast: f64,
    /// Saturation by a factor between 1 - saturation and 1 + saturation.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub saturation: f64,
    /// Hue by a shift between -hue and hue of the colour circle.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub hue: f64,
    /// Mixup: each image of a batch, and its label, is blended with another one by a share from Beta(mixup, mixup). Absent or 0
    /// blends nothing.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub mixup: f64,
    /// Cutmix: a rectangle of another image is pasted into each image of a batch, of an area from Beta(cutmix, cutmix), and the
    /// label follows the areas. Where mixup is given too, each batch has one of both. Absent or 0 pastes nothing.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub cutmix: f64,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            crop_area: 1.0,
            horizontal_flip: 0.5,
            rotation_degrees: 15.0,
            translate: 0.1,
            scale: 0.1,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.1,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }
}

/// How a run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Hyperparameters {
    /// Passes over the training set.
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: i32,
    /// Images per optimiser step.
    #[schemars(range(min = 1, max = 4096))]
    pub batch_size: i32,
    /// Images of one forward and backward pass. A step sums the gradients of as many passes as its images need, which takes less
    /// memory; `BatchNorm` sees the images of a pass. Absent means all images of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub micro_batch_size: Option<i32>,
    /// Peak learning rate.
    #[schemars(range(min = 1e-9, max = 100.0))]
    pub learning_rate: f64,
    /// Optimiser: `Adam`, `AdamW` or `SGD`.
    pub optimizer: Optimizer,
    /// Weight decay, as the optimiser defines it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Momentum of `SGD`; the others ignore it.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub momentum: f64,
    /// Learning rate schedule: `Constant`, `Cosine`, `Step` or `OneCycle`.
    pub schedule: Schedule,
    /// Epochs between two decays of the schedule `Step`; the others ignore it.
    #[schemars(range(min = 1, max = 10_000))]
    pub step_size: i32,
    /// Share of the target spread over all classes.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub label_smoothing: f64,
    /// How much the images of each class count in the loss: `Equal` or `Balanced`.
    pub class_weights: ClassWeights,
    /// Greatest norm of all gradients together; longer ones are shortened to it. Absent means that none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub max_gradient_norm: Option<f64>,
    /// Decay of an exponential moving average of the weights and of `BatchNorm`'s statistics, which is what is validated
    /// and published then; 0.999 for example. Absent means no average.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.99999))]
    pub ema_decay: Option<f64>,
    /// Epochs without a better validation after which training ends. Absent means that all epochs are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub early_stopping_epochs: Option<i32>,
    /// Number format: `float32` or `bfloat16`.
    pub precision: Precision,
    /// Seed of every random draw of the run.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: i64,
    /// Random changes of training images.
    pub augmentation: Augmentation,
    /// Sides of training images in pixels, for progressive resizing: the epochs are shared out evenly among them, in this
    /// order. Absent means `model.inputSize` throughout, which is also the size that is validated and served.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 32, max = 1024)))]
    pub train_sizes: Option<Vec<i32>>,
    /// Share of the images kept aside for validation where the dataset has no split of its own.
    #[schemars(range(min = 0.01, max = 0.5))]
    pub validation_share: f64,
    /// Threads; absent means as many as the container's CPU limit allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            micro_batch_size: None,
            learning_rate: 1e-3,
            optimizer: Optimizer::default(),
            weight_decay: 0.0,
            momentum: 0.9,
            schedule: Schedule::default(),
            step_size: 30,
            label_smoothing: 0.0,
            class_weights: ClassWeights::default(),
            max_gradient_norm: None,
            ema_decay: None,
            early_stopping_epochs: None,
            precision: Precision::default(),
            seed: 0,
            augmentation: Augmentation::default(),
            train_sizes: None,
            validation_share: 0.1,
            threads: None,
        }
    }
}
