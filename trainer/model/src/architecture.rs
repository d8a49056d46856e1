//! The two architectures, with the layers, names and order of the reference's state dicts.

use anneal_api::hyperparameters::Precision;
use tch::{TchError, Tensor};

use crate::{
    fused::Window,
    layers::{ConvNorm, ConvShape, Entries, Folded, Init, Linear, Pass, Then, Unit, dropout},
};

/// Side of the input that `simple` is made for, and of what is left of it before the first linear layer.
pub(crate) const SIMPLE_SIDE: i64 = 224;
const SIMPLE_POOLED: i64 = SIMPLE_SIDE / 8;

/// The layers of a network whose convolutions and `BatchNorm`s are `U`.
pub(crate) enum Layers<U> {
    Improved(Box<Improved<U>>),
    Simple(Box<Simple<U>>),
}

/// A residual network of three stages of two blocks.
pub(crate) struct Improved<U> {
    stem: U,
    stages: [[Block<U>; 2]; 3],
    fc: Linear,
}

/// A residual block: two convolutions beside the identity, or beside a convolution that changes size and width.
struct Block<U> {
    first: U,
    second: U,
    shortcut: Option<U>,
}

/// Three convolutions and two linear layers.
pub(crate) struct Simple<U> {
    convs: [U; 3],
    fc1: Linear,
    fc2: Linear,
}

impl Layers<ConvNorm> {
    pub(crate) fn improved(classes: i64, seed: u64) -> Result<Self, TchError> {
        let init = &mut Init::new(seed);
        let stem = ConvShape { input: 3, output: 64, kernel: 7, stride: 2, bias: true };
        Ok(Self::Improved(Box::new(Improved {
            stem: ConvNorm::new(stem, init)?,
            stages: [stage(64, 64, 1, init)?, stage(64, 128, 2, init)?, stage(128, 256, 2, init)?],
            fc: Linear::new(256, classes, init)?,
        })))
    }

    pub(crate) fn simple(classes: i64, seed: u64) -> Result<Self, TchError> {
        let init = &mut Init::new(seed);
        let mut conv =
            |input, output| ConvNorm::new(ConvShape { input, output, kernel: 3, stride: 1, bias: true }, init);
        Ok(Self::Simple(Box::new(Simple {
            convs: [conv(3, 32)?, conv(32, 64)?, conv(64, 128)?],
            fc1: Linear::new(128 * SIMPLE_POOLED * SIMPLE_POOLED, 256, init)?,
            fc2: Linear::new(256, classes, init)?,
        })))
    }

    /// All tensors, by the names and in the order of the reference's state dict.
    pub(crate) fn entries(&self) -> Entries {
        let mut out = Entries::default();
        match self {
            Self::Improved(net) => {
                net.stem.entries("conv1", "bn1", &mut out);
                for (stage, blocks) in net.stages.iter().enumerate() {
                    for (index, block) in blocks.iter().enumerate() {
                        block.entries(&format!("layer{}.{index}", stage + 1), &mut out);
                    }
                }
                net.fc.entries("fc", &mut out);
            }
            Self::Simple(net) => {
                for (conv, n) in net.convs.iter().zip(1..) {
                    conv.entries(&format!("conv{n}"), &format!("bn{n}"), &mut out);
                }
                net.fc1.entries("fc1", &mut out);
                net.fc2.entries("fc2", &mut out);
            }
        }
        out
    }

    /// The same network for use only, with each `BatchNorm` folded into its convolution.
    /// It computes in `precision` whatever the pass says.
    pub(crate) fn fold(&self, precision: Precision) -> Result<Layers<Folded>, TchError> {
        self.map(|unit| unit.fold(precision), Linear::frozen)
    }
}

impl Layers<Folded> {
    /// A copy that shares all numbers with this one.
    pub(crate) fn shallow_clone(&self) -> Result<Self, TchError> {
        self.map(|unit| Ok(unit.shallow_clone()), |linear| Ok(linear.shallow_clone()))
    }
}

impl<U: Unit> Layers<U> {
    /// Logits [N, classes] of images [N, 3, H, W].
    pub(crate) fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor, TchError> {
        match self {
            Self::Improved(net) => {
                let mut x = net.stem.pooled(x, 3, Window { stride: 2, padding: 1 }, pass)?;
                for block in net.stages.iter().flatten() {
                    x = block.forward(&x, pass)?;
                }
                // A mean over many numbers of 16 bits is taken in more.
                let kind = net.fc.kind()?;
                net.fc.forward(&x.f_mean_dim(&[2_i64, 3][..], false, kind)?)
            }
            Self::Simple(net) => {
                let (mut x, window) = (x.shallow_clone(), Window { stride: 2, padding: 0 });
                for conv in &net.convs {
                    x = conv.pooled(&x, 2, window, pass)?;
                }
                let x = net.fc1.forward(&x.f_flatten(1, -1)?)?.f_relu_()?;
                net.fc2.forward(&dropout(&x, pass)?)
            }
        }
    }

    fn map<V>(
        &self,
        unit: impl Fn(&U) -> Result<V, TchError>,
        linear: impl Fn(&Linear) -> Result<Linear, TchError>,
    ) -> Result<Layers<V>, TchError> {
        Ok(match self {
            Self::Improved(net) => {
                let stage =
                    |[first, second]: &[Block<U>; 2]| Ok::<_, TchError>([first.map(&unit)?, second.map(&unit)?]);
                let [one, two, three] = &net.stages;
                Layers::Improved(Box::new(Improved {
                    stem: unit(&net.stem)?,
                    stages: [stage(one)?, stage(two)?, stage(three)?],
                    fc: linear(&net.fc)?,
                }))
            }
            Self::Simple(net) => {
                let [one, two, three] = &net.convs;
                Layers::Simple(Box::new(Simple {
                    convs: [unit(one)?, unit(two)?, unit(three)?],
                    fc1: linear(&net.fc1)?,
                    fc2: linear(&net.fc2)?,
                }))
            }
        })
    }
}

fn stage(input: i64, output: i64, stride: i64, init: &mut Init) -> Result<[Block<ConvNorm>; 2], TchError> {
    Ok([Block::new(input, output, stride, init)?, Block::new(output, output, 1, init)?])
}

impl Block<ConvNorm> {
    fn new(input: i64, output: i64, stride: i64, init: &mut Init) -> Result<Self, TchError> {
        let shape = ConvShape { input, output, kernel: 3, stride, bias: false };
        Ok(Self {
            first: ConvNorm::new(shape, init)?,
            second: ConvNorm::new(ConvShape { input: output, stride: 1, ..shape }, init)?,
            shortcut: if stride == 1 && input == output {
                None
            } else {
                Some(ConvNorm::new(ConvShape { kernel: 1, ..shape }, init)?)
            },
        })
    }

    fn entries(&self, name: &str, out: &mut Entries) {
        self.first.entries(&format!("{name}.conv1"), &format!("{name}.bn1"), out);
        self.second.entries(&format!("{name}.conv2"), &format!("{name}.bn2"), out);
        if let Some(shortcut) = &self.shortcut {
            shortcut.entries(&format!("{name}.shortcut.0"), &format!("{name}.shortcut.1"), out);
        }
    }
}

impl<U: Unit> Block<U> {
    fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor, TchError> {
        let inner = self.first.forward(x, Then::Relu, pass)?;
        let beside = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, Then::Nothing, pass)?,
            None => x.shallow_clone(),
        };
        self.second.forward(&inner, Then::AddRelu(beside), pass)
    }

    fn map<V>(&self, unit: &impl Fn(&U) -> Result<V, TchError>) -> Result<Block<V>, TchError> {
        Ok(Block {
            first: unit(&self.first)?,
            second: unit(&self.second)?,
            shortcut: self.shortcut.as_ref().map(unit).transpose()?,
        })
    }
}
