//! Which network a run trains.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Architectures that the trainer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// A residual network with global average pooling; takes any input size. 2,783,362 parameters for two classes.
    #[default]
    Improved,
    /// Three convolutions and two linear layers; fixed at 224 x 224. 25,784,578 parameters for two classes.
    Simple,
}

impl Architecture {
    /// The class name of the architecture in PyTorch, which the reference's `/model/info` reports.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Improved => "ImprovedCNN",
            Self::Simple => "SimpleCNN",
        }
    }
}

/// The network: its architecture and the side of its square input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Architecture: `improved` (residual, any input size) or `simple` (input size 224).
    #[serde(default)]
    pub architecture: Architecture,
    /// Side of the square input in pixels, 32 to 1024. `simple` takes 224 only.
    #[serde(default = "default_input_size")]
    #[schemars(range(min = 32, max = 1024))]
    pub input_size: i32,
}

fn default_input_size() -> i32 {
    224
}

impl Default for ModelSpec {
    fn default() -> Self {
        Self { architecture: Architecture::default(), input_size: default_input_size() }
    }
}
