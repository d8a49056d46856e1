//! The layers that the architectures are made of, with PyTorch's default initialisation.

use anneal_api::hyperparameters::Precision;
use rand_chacha::rand_core::RngCore;
use tch::{Kind, TchError, Tensor};

use crate::{
    fused::{self, Window},
    pool::{Norm, norm_relu_max_pool, relu_max_pool},
    rng::{self, Purpose},
};

/// Momentum and epsilon of `torch.nn.BatchNorm2d`.
const MOMENTUM: f64 = 0.1;
const EPS: f64 = 1e-5;

/// Whether a forward pass is for training or for use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `BatchNorm` normalises by its running statistics, and dropout does nothing.
    Eval,
    /// `BatchNorm` normalises by the batch and moves its running statistics; dropout masks are a function of both numbers.
    Train {
        /// Seed of the run.
        seed: u64,
        /// Optimiser step.
        step: u64,
    },
}

/// One forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Pass {
    pub(crate) mode: Mode,
    pub(crate) precision: Precision,
}

/// What a layer with this weight computes in: the weight's own numbers, unless 16 bits shall do.
fn kind(precision: Precision, weight: &Tensor) -> Result<Kind, TchError> {
    match precision {
        Precision::Float32 => weight.f_kind(),
        Precision::BFloat16 => Ok(Kind::BFloat16),
    }
}

/// What follows a convolution and its `BatchNorm` directly.
pub(crate) enum Then {
    Nothing,
    Relu,
    /// The sum with a tensor, whose memory may be used for the result, and then relu.
    AddRelu(Tensor),
}

impl Then {
    fn apply(self, mut y: Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Nothing => Ok(y),
            Self::Relu => y.f_relu_(),
            Self::AddRelu(other) => y.f_add_(&other)?.f_relu_(),
        }
    }
}

/// Whether the optimiser changes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Parameter,
    Buffer,
}

/// A tensor under its name in the state dict; shares its storage with the layer.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) role: Role,
}

/// Collects a network's tensors in the order of its state dict.
#[derive(Default)]
pub(crate) struct Entries(pub(crate) Vec<Entry>);

impl Entries {
    fn push(&mut self, layer: &str, tensor: &Tensor, name: &str, role: Role) {
        self.0.push(Entry { name: format!("{layer}.{name}"), tensor: tensor.shallow_clone(), role });
    }
}

/// Makes first values; each parameter draws from a stream of its own.
pub(crate) struct Init {
    seed: u64,
    next: u64,
}

impl Init {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, next: 0 }
    }

    /// What `torch.nn.Conv2d` and `torch.nn.Linear` start with, weight and bias alike: uniform within 1/sqrt(fan in).
    #[allow(clippy::cast_precision_loss)]
    fn uniform(&mut self, shape: &[i64], fan_in: i64) -> Result<Tensor, TchError> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        let mut draws = rng::draws(self.seed, Purpose::Initialisation, self.next);
        self.next += 1;
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| (2.0 * rng::unit(&mut draws) - 1.0) * bound).collect();
        Tensor::f_from_slice(&values)?.f_reshape(shape)
    }
}

fn parameter(values: &Tensor) -> Result<Tensor, TchError> {
    values.f_detach()?.f_set_requires_grad(true)
}

fn full(n: i64, value: f64) -> Result<Tensor, TchError> {
    Tensor::f_full([n], value, (Kind::Float, tch::Device::Cpu))
}

/// A weight whose channels lie innermost in memory, which convolutions on CPUs are fastest with.
fn channels_last(weight: &Tensor) -> Result<Tensor, TchError> {
    weight.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])
}

/// What stands where the definition has a convolution and the `BatchNorm` behind it.
pub(crate) trait Unit: Sized {
    fn forward(&self, x: &Tensor, then: Then, pass: Pass) -> Result<Tensor, TchError>;

    /// With relu and max pooling behind it, which leave little of what is before them.
    fn pooled(&self, x: &Tensor, kernel: i64, window: Window, pass: Pass) -> Result<Tensor, TchError> {
        relu_max_pool(&self.forward(x, Then::Nothing, pass)?, kernel, window)
    }
}

/// `torch.nn.Conv2d` with a square kernel.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    shape: ConvShape,
}

/// Sizes of a convolution.
#[derive(Clone, Copy)]
pub(crate) struct ConvShape {
    pub(crate) input: i64,
    pub(crate) output: i64,
    pub(crate) kernel: i64,
    pub(crate) stride: i64,
    pub(crate) bias: bool,
}

impl ConvShape {
    fn window(self) -> Window {
        Window { stride: self.stride, padding: self.kernel / 2 }
    }
}

impl Conv {
    fn new(shape: ConvShape, init: &mut Init) -> Result<Self, TchError> {
        let ConvShape { input, output, kernel, bias, .. } = shape;
        let fan_in = input * kernel * kernel;
        let weight = channels_last(&init.uniform(&[output, input, kernel, kernel], fan_in)?)?;
        let bias = if bias { Some(parameter(&init.uniform(&[output], fan_in)?)?) } else { None };
        Ok(Self { weight: parameter(&weight)?, bias, shape })
    }

    fn forward(&self, x: &Tensor, precision: Precision) -> Result<Tensor, TchError> {
        let kind = kind(precision, &self.weight)?;
        let weight = self.weight.f_to_kind(kind)?;
        let bias = self.bias.as_ref().map(|bias| bias.f_to_kind(kind)).transpose()?;
        let Window { stride, padding } = self.shape.window();
        x.f_to_kind(kind)?.f_conv2d(&weight, bias.as_ref(), [stride, stride], [padding, padding], [1, 1], 1)
    }

    fn entries(&self, name: &str, out: &mut Entries) {
        out.push(name, &self.weight, "weight", Role::Parameter);
        if let Some(bias) = &self.bias {
            out.push(name, bias, "bias", Role::Parameter);
        }
    }
}

/// `torch.nn.BatchNorm2d`. Statistics and parameters are in float32 whatever the activations are in.
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
}

impl BatchNorm {
    fn new(channels: i64) -> Result<Self, TchError> {
        Ok(Self {
            weight: parameter(&full(channels, 1.0)?)?,
            bias: parameter(&full(channels, 0.0)?)?,
            running_mean: full(channels, 0.0)?,
            running_var: full(channels, 1.0)?,
            num_batches_tracked: Tensor::f_zeros([0_i64; 0], (Kind::Int64, tch::Device::Cpu))?,
        })
    }

    /// Whether it normalises by the batch, which is counted then.
    fn begin(&self, pass: Pass) -> Result<bool, TchError> {
        // Frozen parameters belong to the statistics that they were trained with.
        let train = matches!(pass.mode, Mode::Train { .. }) && self.weight.requires_grad();
        if train {
            tch::no_grad(|| self.num_batches_tracked.shallow_clone().f_add_scalar_(1).map(drop))?;
        }
        Ok(train)
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        x.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            MOMENTUM,
            EPS,
            false,
        )
    }

    /// With relu and max pooling behind it.
    fn pooled(&self, x: &Tensor, kernel: i64, window: Window, train: bool) -> Result<Tensor, TchError> {
        if !train {
            return relu_max_pool(&self.forward(x, train)?, kernel, window);
        }
        let Self { weight, bias, running_mean, running_var, .. } = self;
        let norm = Norm { weight, bias, running_mean, running_var, momentum: MOMENTUM, eps: EPS };
        norm_relu_max_pool(x, &norm, kernel, window)
    }

    fn entries(&self, name: &str, out: &mut Entries) {
        out.push(name, &self.weight, "weight", Role::Parameter);
        out.push(name, &self.bias, "bias", Role::Parameter);
        out.push(name, &self.running_mean, "running_mean", Role::Buffer);
        out.push(name, &self.running_var, "running_var", Role::Buffer);
        out.push(name, &self.num_batches_tracked, "num_batches_tracked", Role::Buffer);
    }
}

/// A convolution and its `BatchNorm`, as they are trained.
pub(crate) struct ConvNorm {
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
    pub(crate) fn new(shape: ConvShape, init: &mut Init) -> Result<Self, TchError> {
        Ok(Self { conv: Conv::new(shape, init)?, norm: BatchNorm::new(shape.output)? })
    }

    pub(crate) fn entries(&self, conv: &str, norm: &str, out: &mut Entries) {
        self.conv.entries(conv, out);
        self.norm.entries(norm, out);
    }

    /// One convolution that does the same as both in eval mode.
    pub(crate) fn fold(&self, precision: Precision) -> Result<Folded, TchError> {
        tch::no_grad(|| {
            let norm = &self.norm;
            let scale = norm.weight.f_div(&norm.running_var.f_add_scalar(EPS)?.f_sqrt()?)?;
            let weight = self.conv.weight.f_mul(&scale.f_reshape([-1, 1, 1, 1])?)?;
            let centre = match &self.conv.bias {
                Some(bias) => bias.f_sub(&norm.running_mean)?,
                None => norm.running_mean.f_neg()?,
            };
            let bias = centre.f_mul(&scale)?.f_add(&norm.bias)?;
            let shape = ConvShape { bias: true, ..self.conv.shape };
            Folded::new(&Conv { weight: channels_last(&weight)?, bias: Some(bias), shape }, precision)
        })
    }
}

impl Unit for ConvNorm {
    fn forward(&self, x: &Tensor, then: Then, pass: Pass) -> Result<Tensor, TchError> {
        let convolved = self.conv.forward(x, pass.precision)?;
        then.apply(self.norm.forward(&convolved, self.norm.begin(pass)?)?)
    }

    fn pooled(&self, x: &Tensor, kernel: i64, window: Window, pass: Pass) -> Result<Tensor, TchError> {
        let convolved = self.conv.forward(x, pass.precision)?;
        self.norm.pooled(&convolved, kernel, window, self.norm.begin(pass)?)
    }
}

/// A convolution with its `BatchNorm` folded into it: for use only.
pub(crate) struct Folded {
    weight: Tensor,
    bias: Tensor,
    shape: ConvShape,
    /// What it computes in.
    kind: Kind,
    /// Whether the weight is in the order that fused convolutions take.
    packed: bool,
}

impl Folded {
    fn new(conv: &Conv, precision: Precision) -> Result<Self, TchError> {
        let Conv { weight, bias, shape } = conv;
        let kind = kind(precision, weight)?;
        let weight = weight.f_to_kind(kind)?;
        let bias = match bias {
            Some(bias) => bias.f_to_kind(kind)?,
            None => Tensor::f_zeros([shape.output], (kind, tch::Device::Cpu))?,
        };
        let packed = fused::available();
        let weight = if packed { fused::pack(&weight, shape.window())? } else { weight };
        Ok(Self { weight, bias, shape: *shape, kind, packed })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), ..*self }
    }
}

impl Unit for Folded {
    fn forward(&self, x: &Tensor, then: Then, _: Pass) -> Result<Tensor, TchError> {
        let window = self.shape.window();
        let x = x.f_to_kind(self.kind)?;
        if self.packed {
            return match then {
                Then::Nothing => fused::convolution(&x, &self.weight, &self.bias, window, None, false),
                Then::Relu => fused::convolution(&x, &self.weight, &self.bias, window, None, true),
                Then::AddRelu(other) => fused::convolution(&x, &self.weight, &self.bias, window, Some(&other), true),
            };
        }
        let Window { stride, padding } = window;
        let bias = Some(&self.bias);
        then.apply(x.f_conv2d(&self.weight, bias, [stride, stride], [padding, padding], [1, 1], 1)?)
    }
}

/// `torch.nn.Linear`.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(crate) fn new(input: i64, output: i64, init: &mut Init) -> Result<Self, TchError> {
        Ok(Self {
            weight: parameter(&init.uniform(&[output, input], input)?)?,
            bias: parameter(&init.uniform(&[output], input)?)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_to_kind(self.kind()?)?.f_linear(&self.weight, Some(&self.bias))
    }

    /// What it computes in.
    pub(crate) fn kind(&self) -> Result<Kind, TchError> {
        self.weight.f_kind()
    }

    pub(crate) fn entries(&self, name: &str, out: &mut Entries) {
        out.push(name, &self.weight, "weight", Role::Parameter);
        out.push(name, &self.bias, "bias", Role::Parameter);
    }

    /// A copy for use only, which further training of this layer does not change.
    pub(crate) fn frozen(&self) -> Result<Self, TchError> {
        Ok(Self { weight: self.weight.f_detach_copy()?, bias: self.bias.f_detach_copy()? })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }
}

/// The mask of `torch.nn.Dropout(0.5)` in one optimiser step, drawn for `shape`: 0 for what is dropped, and 2 for what
/// is kept, so that the expectation stays.
///
/// # Errors
/// When libtorch fails.
pub fn dropout_mask(seed: u64, step: u64, shape: &[i64]) -> Result<Tensor, TchError> {
    let mut draws = rng::draws(seed, Purpose::Dropout, step);
    let count = shape.iter().product();
    let mask: Vec<f32> = (0_i64..count).map(|_| if draws.next_u32() & 1 == 0 { 2.0 } else { 0.0 }).collect();
    Tensor::f_from_slice(&mask)?.f_reshape(shape)
}

/// `torch.nn.Dropout(0.5)`.
pub(crate) fn dropout(x: &Tensor, pass: Pass) -> Result<Tensor, TchError> {
    match pass.mode {
        Mode::Train { seed, step } => x.f_mul(&dropout_mask(seed, step, &x.size())?),
        Mode::Eval => Ok(x.shallow_clone()),
    }
}
