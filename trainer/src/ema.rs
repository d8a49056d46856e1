//! The exponential moving average of a network's weights, as `torch.optim.swa_utils.AveragedModel` with
//! `get_ema_multi_avg_fn(decay)` and `use_buffers=True` keeps it.
//!
//! The average is what is validated, so it is what a checkpoint holds as its weights: whoever loads the file gets what the
//! numbers beside it were measured on. What only going on needs, the weights that are trained, lies under a key of its own.

use anneal_model::{Checkpoint, Network, StateDict, StateError};
use tch::{Kind, TchError, no_grad};

use crate::outcome::Error;

/// Key of the weights that are trained, in a checkpoint whose weights are their average.
pub const TRAINED: &str = "anneal_trained_state_dict";
/// Key of the average in a checkpoint of an earlier version, whose weights are those that are trained.
const AVERAGE: &str = "ema_state_dict";

/// The weights of a checkpoint of a run with an average.
pub struct Weights {
    /// Those that are trained.
    pub trained: StateDict,
    /// Their average.
    pub average: StateDict,
}

impl Weights {
    /// Both of a checkpoint's, if it has both.
    ///
    /// # Errors
    /// When what lies there is no state dict.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, StateError> {
        let under = |key| checkpoint.get(key).map(|value| StateDict::from_value(value.clone())).transpose();
        let weights = || checkpoint.state.clone();
        if let Some(trained) = under(TRAINED)? {
            return Ok(Some(Self { trained, average: weights() }));
        }
        Ok(under(AVERAGE)?.map(|average| Self { trained: weights(), average }))
    }
}

/// A network whose numbers follow those of another one slowly.
pub struct Ema {
    network: Network,
    decay: f64,
    begun: bool,
}

impl Ema {
    /// An average of nothing yet.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn new(of: &Network, decay: f64) -> Result<Self, Error> {
        Ok(Self { network: of.try_clone()?, decay, begun: false })
    }

    /// Takes an average that an earlier attempt began.
    ///
    /// # Errors
    /// When it is not one of this network.
    pub fn load(&mut self, state: &StateDict) -> Result<(), StateError> {
        self.begun = true;
        self.network.load(state)
    }

    /// The averaged network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Follows one step of the network. The first step is taken as it is; running statistics are averaged as the weights
    /// are, and counters are copied.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn follow(&mut self, of: &Network) -> Result<(), TchError> {
        let pairs = |network: &Network| network.named_parameters().into_iter().chain(network.named_buffers());
        no_grad(|| {
            for ((_, mut own), (_, new)) in pairs(&self.network).zip(pairs(of)) {
                if self.begun && own.f_kind()? == Kind::Float {
                    let _ = own.f_lerp_(&new, 1.0 - self.decay)?;
                } else {
                    own.f_copy_(&new)?;
                }
            }
            self.begun = true;
            Ok(())
        })
    }
}
