//! The trainer's configuration file: the same on a laptop (`anneal-trainer train --config run.yaml`) and in a Job.

use serde::{Deserialize, Serialize};

use crate::{Sha256, dataset::Dataset, hyperparameters::Hyperparameters, model::ModelSpec, tracking::Tracking};

/// What `anneal-trainer train --config` reads, as YAML.
///
/// Unknown fields are for the reader of the file to refuse: the same types are part of the custom resources, where an
/// operator must go on reading what a newer version wrote. `dataset.uri` is never `pvc://` here: the operator mounts the
/// claim and writes the path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainerConfig {
    /// Name of the run, for logs and reports.
    #[serde(default = "default_name")]
    pub name: String,
    /// The network.
    #[serde(default)]
    pub model: ModelSpec,
    /// What to train on.
    pub dataset: Dataset,
    /// How to train.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Where the run is recorded beside its own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// Where to write. The environment of a Job (`ANNEAL_OUTPUT_DIR`, `ANNEAL_MODELS_DIR`) wins over it.
    #[serde(default)]
    pub output: OutputDirs,
    /// How often to write a checkpoint.
    #[serde(default)]
    pub checkpoints: CheckpointInterval,
    /// What to begin with instead of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<InitFrom>,
}

fn default_name() -> String {
    "run".to_owned()
}

/// Where a run writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputDirs {
    /// Directory of this run: `checkpoints/` and `reports/` go below it.
    pub dir: String,
    /// Directory that takes the published model, `<sha256>.pth`.
    pub models_dir: String,
}

impl Default for OutputDirs {
    fn default() -> Self {
        Self { dir: "output/run".to_owned(), models_dir: "output/models".to_owned() }
    }
}

/// How often a checkpoint is written within an epoch, whichever comes first; one is written after every epoch too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckpointInterval {
    /// Seconds between two checkpoints, 1 to 86,400.
    pub interval_seconds: u32,
    /// Optimiser steps between two checkpoints, 1 or more; absent means that time alone counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_steps: Option<u64>,
}

impl Default for CheckpointInterval {
    fn default() -> Self {
        Self { interval_seconds: 60, interval_steps: None }
    }
}

/// A checkpoint to begin with. Where its classes are not those of the dataset, the last layer begins anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitFrom {
    /// Path of the checkpoint: ours, the reference's, or a plain state dict.
    pub checkpoint: String,
    /// SHA-256 that the checkpoint must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Parameters that stay as they are in the checkpoint, by the first parts of their names: `layer1` or `layer1.0.conv1`.
    /// A frozen `BatchNorm` keeps its running statistics and normalises by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
}
