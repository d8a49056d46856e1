//! The exponential moving average of a network's weights, as `torch.optim.swa_utils.AveragedModel` with
//! `get_ema_multi_avg_fn(decay)` and `use_buffers=True` keeps it.

use anneal_model::{Network, StateDict, StateError};
use tch::{Kind, TchError, no_grad};

use crate::outcome::Error;

/// Key of the average in a checkpoint.
pub const KEY: &str = "ema_state_dict";

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
