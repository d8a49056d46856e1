//! Adam, `AdamW` and SGD as `torch.optim` defines them, with their state in PyTorch's layout, so that a run resumes
//! exactly and PyTorch can go on from our checkpoints.

use anneal_api::hyperparameters::{Hyperparameters, Optimizer as Kind};
use anneal_model::{StateError, data_to_tensor, tensor_to_data};
use anneal_pth::{DType, Dict, TensorData, Value};
use tch::{TchError, Tensor, no_grad};

const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;

/// An optimiser over a fixed list of parameters.
pub struct Optimizer {
    kind: Kind,
    learning_rate: f64,
    weight_decay: f64,
    momentum: f64,
    max_norm: Option<f64>,
    parameters: Vec<Tensor>,
    slots: Vec<Slot>,
    steps: u32,
}

/// What an optimiser remembers of one parameter.
enum Slot {
    /// Adam's moving averages of the gradients and of their squares.
    Averages { average: Tensor, squares: Tensor },
    /// SGD's momentum buffer.
    Momentum(Tensor),
    /// SGD without momentum remembers nothing.
    Nothing,
}

/// A saved state does not fit the optimiser.
#[derive(Debug, thiserror::Error)]
pub enum OptimError {
    /// It has another layout.
    #[error(
        "the checkpoint's optimizer_state_dict has no usable {0}; it was saved by another optimiser or for another network"
    )]
    Layout(String),
    /// A tensor in it cannot be used.
    #[error(transparent)]
    Tensor(#[from] StateError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

impl Optimizer {
    /// An optimiser that has not made a step.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn new(parameters: Vec<Tensor>, hyperparameters: &Hyperparameters) -> Result<Self, TchError> {
        let kind = hyperparameters.optimizer;
        let slot = |parameter: &Tensor| {
            let zeros = || parameter.f_detach()?.f_zeros_like();
            Ok::<_, TchError>(match kind {
                Kind::Adam | Kind::AdamW => Slot::Averages { average: zeros()?, squares: zeros()? },
                Kind::Sgd if hyperparameters.momentum > 0.0 => Slot::Momentum(zeros()?),
                Kind::Sgd => Slot::Nothing,
            })
        };
        Ok(Self {
            kind,
            learning_rate: hyperparameters.learning_rate,
            weight_decay: hyperparameters.weight_decay,
            momentum: hyperparameters.momentum,
            max_norm: hyperparameters.max_gradient_norm,
            slots: parameters.iter().map(slot).collect::<Result<_, _>>()?,
            parameters,
            steps: 0,
        })
    }

    /// Adds the gradient of `loss` by each parameter to `sums`, which is empty before the first.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn gradients(&self, loss: &Tensor, sums: &mut Vec<Tensor>) -> Result<(), TchError> {
        let gradients = Tensor::f_run_backward(&[loss], &self.parameters, false, false)?;
        if sums.is_empty() {
            *sums = gradients;
            return Ok(());
        }
        sums.iter_mut().zip(gradients).try_for_each(|(sum, gradient)| sum.f_add_(&gradient).map(drop))
    }

    /// Moves all parameters down these gradients, which are in the order of the parameters, and gives the gradients' norm.
    /// Where that is no number, nothing is moved: no step is made that nobody could go on from.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn apply(&mut self, gradients: &[Tensor], learning_rate: f64) -> Result<f64, TchError> {
        let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
        let norm = Tensor::f_stack(&norms, 0)?.f_norm()?.f_double_value(&[])?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.learning_rate = learning_rate;
        self.steps += 1;
        no_grad(|| {
            let clipped = self.max_norm.map(|max| clipped(gradients, norm, max)).transpose()?;
            let gradients = clipped.as_deref().unwrap_or(gradients);
            for ((parameter, slot), gradient) in self.parameters.iter().zip(&mut self.slots).zip(gradients) {
                let mut parameter = parameter.shallow_clone();
                let gradient = decayed(self.kind, &mut parameter, gradient, learning_rate, self.weight_decay)?;
                match slot {
                    Slot::Averages { average, squares } => {
                        adam(&mut parameter, average, squares, &gradient, learning_rate, self.steps)?;
                    }
                    Slot::Momentum(buffer) => {
                        nesterov(&mut parameter, buffer, &gradient, learning_rate, self.momentum)?;
                    }
                    Slot::Nothing => parameter.f_sub_(&gradient.f_mul_scalar(learning_rate)?).map(drop)?,
                }
            }
            Ok(norm)
        })
    }

    /// The state as `Optimizer.state_dict()` gives it.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn state(&self) -> Result<Value, OptimError> {
        let state = if self.steps == 0 { Vec::new() } else { self.slots_as_values()? };
        Ok(Value::Dict(Dict::plain([
            ("state", Value::Dict(Dict { ordered: false, entries: state })),
            ("param_groups", Value::List(vec![Value::Dict(self.group())])),
        ])))
    }

    /// Takes a state that [`Optimizer::state`] or PyTorch's optimiser of the same kind gave.
    ///
    /// # Errors
    /// When it was saved by another optimiser or for another network.
    pub fn load(&mut self, state: &Value) -> Result<(), OptimError> {
        let layout = |what: &str| OptimError::Layout(what.to_owned());
        let slots = state.as_dict().and_then(|dict| dict.get("state")).and_then(Value::as_dict);
        let slots = slots.ok_or_else(|| layout("state"))?;
        let mut steps = 0;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let index_key = i64::try_from(index).ok();
            let saved = slots.entries.iter().find(|(key, _)| key.as_int() == index_key).and_then(|(_, v)| v.as_dict());
            let saved = || saved.ok_or_else(|| OptimError::Layout(format!("state[{index}]")));
            match slot {
                Slot::Averages { average, squares } => {
                    restore(average, saved()?, "exp_avg", index)?;
                    restore(squares, saved()?, "exp_avg_sq", index)?;
                    let step = saved_step(saved()?);
                    steps = step.ok_or_else(|| OptimError::Layout(format!("state[{index}][\"step\"]")))?;
                }
                Slot::Momentum(buffer) => restore(buffer, saved()?, "momentum_buffer", index)?,
                // Whatever was saved for it counts for nothing.
                Slot::Nothing => {}
            }
        }
        self.steps = steps.max(1);
        // An attempt that has no step left to do saves the rate again as it was.
        if let Some(rate) = saved_rate(state) {
            self.learning_rate = rate;
        }
        Ok(())
    }

    fn slots_as_values(&self) -> Result<Vec<(Value, Value)>, OptimError> {
        let step = f64::from(self.steps);
        #[expect(clippy::cast_possible_truncation, reason = "PyTorch counts steps in float32 too")]
        let step = TensorData::new(DType::F32, Vec::new(), (step as f32).to_le_bytes().to_vec());
        let step = step.map_err(StateError::from)?;
        let tensor = |tensor: &Tensor| -> Result<Value, OptimError> { Ok(Value::Tensor(tensor_to_data(tensor)?)) };
        let value = |slot: &Slot| -> Result<Option<Dict>, OptimError> {
            Ok(match slot {
                Slot::Averages { average, squares } => Some(Dict::plain([
                    ("step", Value::Tensor(step.clone())),
                    ("exp_avg", tensor(average)?),
                    ("exp_avg_sq", tensor(squares)?),
                ])),
                Slot::Momentum(buffer) => Some(Dict::plain([("momentum_buffer", tensor(buffer)?)])),
                Slot::Nothing => None,
            })
        };
        let entries = (0_i64..).zip(&self.slots).map(|(index, slot)| {
            let value = value(slot)?;
            Ok(value.map(|value| (Value::Int(index), Value::Dict(value))))
        });
        entries.filter_map(Result::transpose).collect()
    }

    /// The one parameter group, with every default of PyTorch's.
    fn group(&self) -> Dict {
        let (yes, no, none) = (Value::Bool(true), Value::Bool(false), Value::None);
        let lr = ("lr", Value::Float(self.learning_rate));
        let decay = ("weight_decay", Value::Float(self.weight_decay));
        let params = ("params", Value::List((0_i64..).zip(&self.parameters).map(|(index, _)| index.into()).collect()));
        if self.kind == Kind::Sgd {
            return Dict::plain([
                lr,
                ("momentum", Value::Float(self.momentum)),
                ("dampening", Value::Int(0)),
                decay,
                ("nesterov", Value::Bool(self.momentum > 0.0)),
                ("maximize", no.clone()),
                ("foreach", none.clone()),
                ("differentiable", no),
                ("fused", none),
                params,
            ]);
        }
        Dict::plain([
            lr,
            ("betas", Value::Tuple(vec![BETAS.0.into(), BETAS.1.into()])),
            ("eps", Value::Float(EPS)),
            decay,
            ("amsgrad", no.clone()),
            ("maximize", no.clone()),
            ("foreach", none.clone()),
            ("capturable", no.clone()),
            ("differentiable", no.clone()),
            ("fused", none),
            ("decoupled_weight_decay", if self.kind == Kind::AdamW { yes } else { no }),
            params,
        ])
    }
}

/// The learning rate of the first parameter group.
fn saved_rate(state: &Value) -> Option<f64> {
    let Value::List(groups) = state.as_dict()?.get("param_groups")? else { return None };
    match groups.first()?.as_dict()?.get("lr")? {
        Value::Float(rate) => Some(*rate),
        _ => None,
    }
}

/// The gradients of this norm, shortened together to one of at most `max`, as `torch.nn.utils.clip_grad_norm_` does it.
fn clipped(gradients: &[Tensor], norm: f64, max: f64) -> Result<Vec<Tensor>, TchError> {
    let factor = (max / (norm + 1e-6)).min(1.0);
    gradients.iter().map(|gradient| gradient.f_mul_scalar(factor)).collect()
}

/// Weight decay: `AdamW` shrinks the parameter itself, the others add to the gradient.
fn decayed(kind: Kind, parameter: &mut Tensor, gradient: &Tensor, rate: f64, decay: f64) -> Result<Tensor, TchError> {
    if decay == 0.0 {
        return Ok(gradient.shallow_clone());
    }
    if kind == Kind::AdamW {
        let _ = parameter.f_mul_scalar_(1.0 - rate * decay)?;
        return Ok(gradient.shallow_clone());
    }
    gradient.f_add(&parameter.f_mul_scalar(decay)?)
}

fn adam(
    parameter: &mut Tensor,
    average: &mut Tensor,
    squares: &mut Tensor,
    gradient: &Tensor,
    rate: f64,
    step: u32,
) -> Result<(), TchError> {
    let step = f64::from(step);
    let _ = average.f_lerp_(gradient, 1.0 - BETAS.0)?;
    let _ = squares.f_mul_scalar_(BETAS.1)?.f_addcmul_(&gradient.f_mul_scalar(1.0 - BETAS.1)?, gradient)?;
    let corrections = (1.0 - BETAS.0.powf(step), 1.0 - BETAS.1.powf(step));
    let mut scale = squares.f_sqrt()?;
    let scale = scale.f_div_scalar_(corrections.1.sqrt())?.f_add_scalar_(EPS)?;
    let _ = parameter.f_addcdiv_(&average.f_mul_scalar(-rate / corrections.0)?, &scale)?;
    Ok(())
}

fn nesterov(
    parameter: &mut Tensor,
    buffer: &mut Tensor,
    gradient: &Tensor,
    rate: f64,
    momentum: f64,
) -> Result<(), TchError> {
    let _ = buffer.f_mul_scalar_(momentum)?.f_add_(gradient)?;
    let ahead = gradient.f_add(&buffer.f_mul_scalar(momentum)?)?;
    let _ = parameter.f_sub_(&ahead.f_mul_scalar(rate)?)?;
    Ok(())
}

fn restore(target: &mut Tensor, saved: &Dict, name: &str, index: usize) -> Result<(), OptimError> {
    let wrong = || OptimError::Layout(format!("state[{index}][{name:?}]"));
    let source = data_to_tensor(saved.get(name).and_then(Value::as_tensor).ok_or_else(wrong)?)?;
    // `copy_` would broadcast a wrong shape in silence.
    if source.size() != target.size() {
        return Err(wrong());
    }
    target.f_copy_(&source)?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of steps, checked to be one")]
fn saved_step(saved: &Dict) -> Option<u32> {
    let bytes: [u8; 4] = saved.get("step")?.as_tensor()?.data().try_into().ok()?;
    let step = f32::from_le_bytes(bytes);
    (step >= 1.0 && step.fract() == 0.0).then_some(step as u32)
}

#[cfg(test)]
mod tests {
    use tch::Kind as Number;

    use super::*;

    /// Two steps at a learning rate of 0.1 from 1.0 with gradients 0.5 and -0.25.
    fn two_steps(kind: Kind, weight_decay: f64) -> (f64, Optimizer) {
        let parameter = Tensor::from_slice(&[1.0_f32]);
        let spec = Hyperparameters { optimizer: kind, weight_decay, ..Hyperparameters::default() };
        let mut optimizer = Optimizer::new(vec![parameter.shallow_clone()], &spec).expect("an optimiser");
        for gradient in [0.5_f32, -0.25] {
            optimizer.apply(&[Tensor::from_slice(&[gradient])], 0.1).expect("a step");
        }
        (parameter.double_value(&[0]), optimizer)
    }

    #[test]
    fn adam_moves_as_computed_by_hand() {
        // First step: both averages are corrected to the gradient itself, so the step is the learning rate: 0.9.
        // Second: m = 0.9 * 0.05 - 0.1 * 0.25 = 0.02, v = 0.999 * 0.00025 + 0.001 * 0.0625 = 0.00031225;
        // m / 0.19 = 0.105263, sqrt(v / 0.001999) = 0.395224; 0.9 - 0.1 * 0.266338 = 0.873366.
        let (value, _) = two_steps(Kind::Adam, 0.0);
        assert!((value - 0.873_366).abs() < 1e-5, "{value}");
    }

    #[test]
    fn adamw_shrinks_the_parameter_apart_from_the_gradient() {
        // 1 * 0.99 - 0.1 = 0.89; 0.89 * 0.99 - 0.026634 = 0.854466.
        let (value, _) = two_steps(Kind::AdamW, 0.1);
        assert!((value - 0.854_466).abs() < 1e-5, "{value}");
    }

    #[test]
    fn sgd_looks_ahead_by_its_momentum() {
        // b = 0.5: 1 - 0.1 * (0.5 + 0.45) = 0.905; b = 0.45 - 0.25 = 0.2: 0.905 - 0.1 * (-0.25 + 0.18) = 0.912.
        let (value, _) = two_steps(Kind::Sgd, 0.0);
        assert!((value - 0.912).abs() < 1e-6, "{value}");
    }

    #[test]
    fn a_restored_optimiser_goes_on_as_if_nothing_had_been() {
        for kind in [Kind::Adam, Kind::AdamW, Kind::Sgd] {
            let (value, mut kept) = two_steps(kind, 0.01);
            #[expect(clippy::cast_possible_truncation, reason = "it was a float32")]
            let parameter = Tensor::from_slice(&[value as f32]);
            let spec = Hyperparameters { optimizer: kind, weight_decay: 0.01, ..Hyperparameters::default() };
            let mut restored = Optimizer::new(vec![parameter], &spec).expect("an optimiser");
            restored.load(&kept.state().expect("a state")).expect("a fitting state");
            for optimizer in [&mut kept, &mut restored] {
                optimizer.apply(&[Tensor::from_slice(&[0.3_f32])], 0.05).expect("a step");
            }
            let last = |optimizer: &Optimizer| optimizer.parameters[0].to_kind(Number::Double).double_value(&[0]);
            assert_eq!(last(&kept).to_bits(), last(&restored).to_bits(), "{kind:?}");
        }
    }

    #[test]
    fn gradients_that_are_no_numbers_move_nothing() {
        for (gradient, max_gradient_norm) in [(f32::NAN, None), (f32::INFINITY, Some(1.0)), (f32::NAN, Some(1.0))] {
            let parameter = Tensor::from_slice(&[1.0_f32]);
            let spec = Hyperparameters { max_gradient_norm, ..Hyperparameters::default() };
            let mut optimizer = Optimizer::new(vec![parameter.shallow_clone()], &spec).expect("an optimiser");
            let norm = optimizer.apply(&[Tensor::from_slice(&[gradient])], 0.1).expect("a norm");
            assert!(!norm.is_finite());
            assert_eq!((parameter.double_value(&[0]).to_bits(), optimizer.steps), (1.0_f64.to_bits(), 0));
        }
    }

    #[test]
    fn another_optimisers_state_is_refused() {
        let (_, sgd) = two_steps(Kind::Sgd, 0.0);
        let (_, mut adam) = two_steps(Kind::Adam, 0.0);
        let message = adam.load(&sgd.state().expect("a state")).expect_err("a refusal").to_string();
        assert!(message.contains("exp_avg"), "{message}");
    }
}
