//! A network that can be trained: its layers, its tensors by name, and its forward pass.

use anneal_api::{hyperparameters::Precision, model::Architecture};
use tch::{Kind, TchError, Tensor};

use crate::{
    architecture::{Layers, SIMPLE_SIDE},
    layers::{ConvNorm, Mode, Pass, Role},
    state::{StateDict, StateError, tensor_to_data},
};

/// A network cannot be made or cannot take an input.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Too few or too many classes.
    #[error("a classifier needs 2 to {MAX_CLASSES} classes, not {0}; give the dataset one folder a class")]
    Classes(usize),
    /// The input is not a batch of images.
    #[error("the network takes images of shape [N, 3, H, W], not {0:?}")]
    InputShape(Vec<i64>),
    /// The input has a size that the architecture is not made for.
    #[error(
        "architecture simple takes {SIMPLE_SIDE} x {SIMPLE_SIDE} images, not {width} x {height}; resize them or use architecture improved"
    )]
    InputSize {
        /// Width of the input in pixels.
        width: i64,
        /// Height of the input in pixels.
        height: i64,
    },
    /// No parameter has such a name.
    #[error("no parameter to freeze is called {name:?} or begins with {name:?} and a dot; there are {}", known.join(", "))]
    UnknownParameter {
        /// What was asked for.
        name: String,
        /// First parts of the parameters' names.
        known: Vec<String>,
    },
    /// Nothing would be trained.
    #[error("all parameters are frozen, so there is nothing to train; leave the last layer out of freeze")]
    AllFrozen,
    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
}

/// Most classes that a network may have.
pub const MAX_CLASSES: usize = 100_000;

/// The first line of what libtorch says; the rest is a C++ stack trace.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A network in float32 on the CPU, with the reference's tensors by the reference's names. Whoever gives its tensors float64
/// numbers by [`Tensor::set_data`] has it compute in these, as `torch.nn.Module.double` does.
///
/// Its tensors are changed in place: by [`Network::load`], by the caller's optimiser through
/// [`Network::named_parameters`], and, the running statistics, by a forward pass in [`Mode::Train`].
pub struct Network {
    architecture: Architecture,
    classes: usize,
    precision: Precision,
    layers: Layers<ConvNorm>,
}

impl Network {
    /// A network with PyTorch's default initialisation, drawn from `seed` alone.
    ///
    /// # Errors
    /// [`ModelError::Classes`] when `classes` is not from 2 to [`MAX_CLASSES`]; [`ModelError::Torch`] when memory is
    /// exhausted.
    pub fn new(architecture: Architecture, classes: usize, seed: u64) -> Result<Self, ModelError> {
        let count = match i64::try_from(classes) {
            Ok(count) if (2..=MAX_CLASSES).contains(&classes) => count,
            _ => return Err(ModelError::Classes(classes)),
        };
        let layers = match architecture {
            Architecture::Improved => Layers::improved(count, seed)?,
            Architecture::Simple => Layers::simple(count, seed)?,
        };
        Ok(Self { architecture, classes, precision: Precision::default(), layers })
    }

    /// The same network with convolutions in `precision`. Parameters, `BatchNorm`'s statistics and logits stay in
    /// float32.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The network's architecture.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// What its convolutions compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Count of the network's outputs.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits, float32 [N, classes], of normalised images, [N, 3, H, W] in float32 or in what the convolutions compute in.
    /// Channels-last images are fastest.
    ///
    /// # Errors
    /// When the images have a shape that the architecture does not take, or libtorch fails.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        check_input(self.architecture, images)?;
        Ok(self.layers.forward(images, Pass { mode, precision: self.precision })?)
    }

    /// What the optimiser changes, by name, in the order of the state dict. The tensors share their storage with the
    /// network; gradients are found on them after `backward`.
    pub fn named_parameters(&self) -> Vec<(String, Tensor)> {
        self.named(Role::Parameter)
    }

    /// Keeps parameters from being trained: those called by one of these names, or by a name that begins with one of them
    /// and a dot. A `BatchNorm` with a frozen weight normalises by its running statistics, which stay as they are, too.
    /// Gives the names of all frozen parameters.
    ///
    /// # Errors
    /// When a name fits no parameter, or none is left to train.
    pub fn freeze(&mut self, names: &[String]) -> Result<Vec<String>, ModelError> {
        let parameters = self.named_parameters();
        let fits = |parameter: &str, name: &str| {
            parameter
                .strip_prefix(name.trim_end_matches('.'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some(name) = names.iter().find(|name| !parameters.iter().any(|(parameter, _)| fits(parameter, name))) {
            let mut known: Vec<String> =
                parameters.iter().filter_map(|(parameter, _)| parameter.split('.').next()).map(str::to_owned).collect();
            known.dedup();
            return Err(ModelError::UnknownParameter { name: name.clone(), known });
        }
        let frozen = parameters.iter().filter(|(parameter, _)| names.iter().any(|name| fits(parameter, name)));
        let frozen: Vec<_> = frozen.collect();
        if frozen.len() == parameters.len() {
            return Err(ModelError::AllFrozen);
        }
        frozen
            .into_iter()
            .map(|(name, tensor)| tensor.f_set_requires_grad(false).map(|_| name.clone()).map_err(Into::into))
            .collect()
    }

    /// The parameters that are not frozen.
    pub fn trainable_parameters(&self) -> Vec<(String, Tensor)> {
        self.named_parameters().into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// Names of the last layer's parameters, whose shapes depend on the count of classes.
    pub fn head(&self) -> [&'static str; 2] {
        match self.architecture {
            Architecture::Improved => ["fc.weight", "fc.bias"],
            Architecture::Simple => ["fc2.weight", "fc2.bias"],
        }
    }

    /// `BatchNorm`'s running statistics and counters, by name, in the order of the state dict; storage is shared.
    pub fn named_buffers(&self) -> Vec<(String, Tensor)> {
        self.named(Role::Buffer)
    }

    /// A copy of the buffers as they are now.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn buffers(&self) -> Result<Vec<Tensor>, TchError> {
        self.named_buffers().iter().map(|(_, buffer)| buffer.f_detach_copy()).collect()
    }

    /// Takes the buffers back from a copy of [`Network::buffers`].
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn set_buffers(&self, copies: &[Tensor]) -> Result<(), TchError> {
        tch::no_grad(|| {
            self.named_buffers().iter_mut().zip(copies).try_for_each(|((_, buffer), copy)| buffer.f_copy_(copy))
        })
    }

    /// The largest magnitude of a parameter or running statistic; no number where one of them is none.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn largest(&self) -> Result<f64, TchError> {
        let entries = self.layers.entries().0;
        let floats = entries.iter().map(|entry| &entry.tensor).filter(|tensor| tensor.kind() != Kind::Int64);
        let most = floats.map(|tensor| tensor.f_detach()?.f_abs()?.f_max()).collect::<Result<Vec<_>, _>>()?;
        Tensor::f_stack(&most, 0)?.f_max()?.f_double_value(&[])
    }

    /// Count of numbers that the optimiser changes.
    pub fn parameter_count(&self) -> usize {
        self.named_parameters().iter().map(|(_, tensor)| tensor.numel()).sum()
    }

    /// A copy of all parameters and buffers, by the names and in the order of the reference's state dict.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn state(&self) -> Result<StateDict, StateError> {
        let entries = self.layers.entries().0.into_iter();
        Ok(StateDict(entries.map(|e| Ok((e.name, tensor_to_data(&e.tensor)?))).collect::<Result<_, StateError>>()?))
    }

    /// Takes all parameters and buffers from `state`, in place. float16, bfloat16 and float64 become float32.
    ///
    /// # Errors
    /// [`StateError::Mismatch`] when names, shapes or dtypes are not this network's; then nothing has changed.
    pub fn load(&mut self, state: &StateDict) -> Result<(), StateError> {
        let targets: Vec<_> = self.layers.entries().0.into_iter().map(|e| (e.name, e.tensor)).collect();
        state.copy_into(&targets)
    }

    /// A network of its own with the same numbers, for example for a moving average.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn try_clone(&self) -> Result<Self, ModelError> {
        let copy = Self::new(self.architecture, self.classes, 0)?.with_precision(self.precision);
        tch::no_grad(|| {
            for (from, to) in self.layers.entries().0.iter().zip(copy.layers.entries().0) {
                to.tensor.shallow_clone().f_copy_(&from.tensor)?;
            }
            Ok(copy)
        })
    }

    pub(crate) fn layers(&self) -> &Layers<ConvNorm> {
        &self.layers
    }

    fn named(&self, role: Role) -> Vec<(String, Tensor)> {
        self.layers.entries().0.into_iter().filter(|e| e.role == role).map(|e| (e.name, e.tensor)).collect()
    }
}

/// Whether `images` are a batch that `architecture` takes.
pub(crate) fn check_input(architecture: Architecture, images: &Tensor) -> Result<(), ModelError> {
    match (architecture, images.size().as_slice()) {
        (Architecture::Simple, &[_, 3, height, width]) if (height, width) != (SIMPLE_SIDE, SIMPLE_SIDE) => {
            Err(ModelError::InputSize { width, height })
        }
        (_, &[_, 3, _, _]) => Ok(()),
        (_, shape) => Err(ModelError::InputShape(shape.to_vec())),
    }
}
