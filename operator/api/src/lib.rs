//! Anneal's custom resources, and what the operator and its pods say to each other.
//!
//! The contract half (everything but [`resources`]) is plain serde: the trainer and the server speak it without
//! knowing Kubernetes. The `resources` feature adds the custom resources in `anneal.dev/v1alpha1`.

pub mod checkpoint;
pub mod config;
pub mod count;
pub mod dataset;
pub mod failure;
pub mod hyperparameters;
pub mod model;
pub mod names;
pub mod performance;
pub mod progress;
pub mod sha256;
pub mod shadow;
pub mod smoke;
pub mod termination;
pub mod tracking;

#[cfg(feature = "resources")]
pub mod resources;

pub use sha256::Sha256;
