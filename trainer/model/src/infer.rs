//! A network for use: no gradients, each `BatchNorm` folded into its convolution.

use std::{path::Path, sync::Arc};

use anneal_api::{checkpoint::CheckpointInfo, hyperparameters::Precision};
use tch::{Kind, Tensor};

use crate::{
    architecture::Layers,
    checkpoint::{Checkpoint, CheckpointError, Contract},
    layers::{Folded, Mode, Pass},
    network::{ModelError, check_input},
};

/// A checkpoint's network for serving. `Send`, not `Sync`: each thread takes a [`Classifier::shallow_clone`], which
/// shares the weights.
pub struct Classifier {
    layers: Layers<Folded>,
    precision: Precision,
    about: Arc<About>,
}

/// What all clones share.
struct About {
    contract: Contract,
    info: Option<CheckpointInfo>,
    parameters: usize,
}

impl Classifier {
    /// Loads the checkpoint at `path`.
    ///
    /// # Errors
    /// As [`Checkpoint::load`] and [`Checkpoint::network`] say.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::new(Checkpoint::load(path)?)
    }

    /// Makes the checkpoint's network ready for use in float32.
    ///
    /// # Errors
    /// As [`Checkpoint::network`] says.
    pub fn new(checkpoint: Checkpoint) -> Result<Self, CheckpointError> {
        Self::with_precision(checkpoint, Precision::Float32)
    }

    /// Makes the checkpoint's network ready for use, with convolutions in `precision`. Its probabilities in bfloat16 are
    /// within 0.02 of those in float32.
    ///
    /// # Errors
    /// As [`Checkpoint::network`] says, or when the processor does not have the precision.
    pub fn with_precision(checkpoint: Checkpoint, precision: Precision) -> Result<Self, CheckpointError> {
        let network = checkpoint.network()?;
        let about =
            About { contract: checkpoint.contract()?, parameters: network.parameter_count(), info: checkpoint.info };
        let layers = network.layers().fold(precision).map_err(ModelError::from)?;
        Ok(Self { layers, precision, about: Arc::new(about) })
    }

    /// A classifier for another thread, on the same weights.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn shallow_clone(&self) -> Result<Self, ModelError> {
        Ok(Self { layers: self.layers.shallow_clone()?, precision: self.precision, about: Arc::clone(&self.about) })
    }

    /// Architecture, classes and preprocessing.
    pub fn contract(&self) -> &Contract {
        &self.about.contract
    }

    /// What the checkpoint says about itself; absent in checkpoints of the reference.
    pub fn info(&self) -> Option<&CheckpointInfo> {
        self.about.info.as_ref()
    }

    /// What its convolutions compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Count of the network's parameters, as it was trained.
    pub fn parameter_count(&self) -> usize {
        self.about.parameters
    }

    /// Logits, float32 [N, classes], of the tensor that [`to_tensor`](crate::preprocess::to_tensor) makes.
    ///
    /// # Errors
    /// When the images have a shape that the architecture does not take, or libtorch fails.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        check_input(self.about.contract.model.architecture, images)?;
        let pass = Pass { mode: Mode::Eval, precision: self.precision };
        Ok(tch::no_grad(|| self.layers.forward(images, pass))?)
    }

    /// Probabilities of each image's classes, in the order of the contract's classes; each row sums to 1.
    ///
    /// # Errors
    /// As [`Classifier::logits`].
    pub fn probabilities(&self, images: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let logits = self.logits(images)?;
        let rows = tch::no_grad(|| logits.f_softmax(-1, Kind::Float)?.f_contiguous())?;
        let mut flat = vec![0.0; rows.numel()];
        rows.f_copy_data(&mut flat, rows.numel())?;
        Ok(flat.chunks(self.about.contract.classes.len()).map(<[f32]>::to_vec).collect())
    }
}
