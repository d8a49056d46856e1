//! What a checkpoint says about itself, under one extra key of the `.pth` file.

use serde::{Deserialize, Serialize};

use crate::{
    Sha256,
    model::ModelSpec,
    termination::{DatasetResult, Metrics},
};

/// Key of the extra entry beside the reference's keys in a checkpoint: a dict of what is ours. Earlier versions had only
/// [`INFO_KEY`]'s string there.
pub const KEY: &str = "anneal";
/// In that dict, the description: [`CheckpointInfo`] as a JSON string.
pub const INFO_KEY: &str = "info";

/// Key of the golden set, in a checkpoint's entries: a dict of two tensors. Absent where the checkpoint was not published by
/// a run.
pub const GOLDEN_KEY: &str = "anneal_golden_set";
/// In the golden set, resized images: uint8 [N, H, W, 3], red, green, blue.
pub const GOLDEN_INPUTS: &str = "inputs";
/// In the golden set, what the network made of them in float32: float32 [N, classes].
pub const GOLDEN_LOGITS: &str = "logits";

/// What serving needs to know, in the checkpoint as a JSON string under [`INFO_KEY`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointInfo {
    /// Version of this layout; 1.
    pub format: u32,
    /// The network.
    pub model: ModelSpec,
    /// Classes in the order of the model's outputs.
    pub classes: Vec<String>,
    /// How an image becomes the model's input.
    pub preprocessing: Preprocessing,
    /// Digest of `preprocessing`: what serves the model can be compared with what it was trained on by one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessing_sha256: Option<Sha256>,
    /// Metrics on the test set, or on the validation set where there is no test set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// How the network answered on the validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationProfile>,
    /// What it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetResult>,
    /// Name of the run that made it.
    pub run: String,
    /// Seed of every random draw.
    pub seed: i64,
    /// Version of the libtorch that made it.
    pub libtorch: String,
    /// Where training stood, in a checkpoint to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// Where training stands at the end of an optimiser step, beyond weights, optimiser and history. Whatever is drawn at
/// random follows from seed, epoch and step, so no generator has a state here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Optimiser steps that are done, over all epochs.
    pub step: u64,
    /// The training images of the epoch so far.
    pub running: Running,
    /// Whether all steps were done on machines that compute alike.
    pub exact: bool,
    /// What the steps were computed on.
    pub machine: Machine,
}

/// Sums over the training images of an epoch so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Images.
    pub images: u64,
    /// Images whose class was right.
    pub right: u64,
    /// Sum of the losses of all images.
    pub loss: f64,
}

/// What a run's results depend on beside its configuration and data: two attempts that agree in all of it compute the same
/// bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Version and digest of the program; nothing is known of those that wrote checkpoints without it.
    #[serde(default)]
    pub program: String,
    /// Processor model, its vector extensions, and environment variables by which libraries choose how to compute.
    pub cpu: String,
    /// Threads of one operation.
    pub threads: usize,
    /// Number format of convolutions.
    pub dtype: String,
    /// Order of the numbers of an activation in memory.
    pub layout: String,
    /// Version of libtorch.
    pub libtorch: String,
}

/// How the network answered on the validation set: what answers to users are compared with, to see that their photos are
/// of another kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidationProfile {
    /// Count of images.
    pub images: i64,
    /// Share of the images that were taken for each class, in the order of the classes.
    pub class_shares: Vec<f64>,
    /// Share of the images whose confidence lies in each of ten bins of one width from 0 to 1.
    pub confidence_histogram: Vec<f64>,
    /// Whether the network is as often right as it is sure.
    pub calibration: Calibration,
}

/// How far confidence and accuracy are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// What logits are divided by for the best calibrated probabilities; which class wins does not change.
    pub temperature: f64,
    /// Expected calibration error over the ten bins, of the probabilities as they are.
    pub expected_error: f64,
    /// The same with logits divided by the temperature.
    pub expected_error_at_temperature: f64,
}

/// How an image becomes the model's input: resize to a square, scale to [0, 1], subtract mean, divide by std.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preprocessing {
    /// Side of the square input in pixels.
    pub size: i32,
    /// Interpolation of the resize: `bilinear`, antialiased as Pillow does it.
    pub resize: String,
    /// Mean of the red, green and blue channel, in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the red, green and blue channel.
    pub std: [f32; 3],
}

impl Preprocessing {
    /// The reference's: bilinear to `size` x `size`, `ImageNet`'s mean and standard deviation.
    pub fn imagenet(size: i32) -> Self {
        Self { size, resize: "bilinear".to_owned(), mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}
