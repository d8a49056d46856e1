//! What a rollout must do, in sentences about a small cluster in memory.

mod canary;
mod feedback;
pub mod fixtures;
mod histories;
mod past;
mod peers;
mod requests;
mod rollout;
mod shadow;
pub mod simulation;
mod soak;
mod switch;
mod takeover;
mod waiting;

use serde_json::{Value, json};

/// A short soak, so that histories stay short.
fn brief() -> Value {
    json!({"gate": {"soakSeconds": 5}})
}
