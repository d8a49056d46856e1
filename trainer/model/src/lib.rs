//! Networks, their checkpoints and their preprocessing, for the trainer and the server.
//!
//! Training takes a [`Network`], whose parameters the caller's optimiser changes in place:
//!
//! ```no_run
//! use anneal_api::{checkpoint::Preprocessing, hyperparameters::Precision, model::Architecture};
//! use anneal_model::{Checkpoint, Mode, Network, preprocess};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut network = Network::new(Architecture::Improved, 2, /* seed */ 0)?.with_precision(Precision::BFloat16);
//! let image = preprocess::decode(&std::fs::read("cat.jpg")?, &preprocess::ImageLimits::default())?;
//! let image = preprocess::resize_bilinear(&image, 128, 128)?;
//! let batch = preprocess::normalise(&preprocess::batch_u8(&[image])?, &Preprocessing::imagenet(128))?;
//! let logits = network.forward(&batch, Mode::Train { seed: 0, step: 0 })?;
//! let loss = logits.cross_entropy_for_logits(&tch::Tensor::from_slice(&[0_i64]));
//! loss.f_backward()?;
//! for (name, parameter) in network.named_parameters() {
//!     println!("{name}: {:?}", parameter.grad().size());
//! }
//! let checkpoint = Checkpoint { info: None, state: network.state()?, extra: vec![("epoch".into(), 1.into())] };
//! let saved = checkpoint.save("last_checkpoint.pth")?;
//! println!("{} bytes, sha256 {}", saved.bytes, saved.sha256);
//! network.load(&Checkpoint::load("last_checkpoint.pth")?.state)?;
//! # Ok(()) }
//! ```
//!
//! Serving takes a [`Classifier`], one shallow clone a thread:
//!
//! ```no_run
//! use anneal_model::{Classifier, preprocess};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let classifier = Classifier::load("best_model.pth")?;
//! let image = preprocess::decode(&std::fs::read("cat.jpg")?, &preprocess::ImageLimits::default())?;
//! let input = preprocess::to_tensor(&[image], &classifier.contract().preprocessing)?;
//! for (class, p) in classifier.contract().classes.iter().zip(&classifier.probabilities(&input)?[0]) {
//!     println!("{class} {p:.3}");
//! }
//! # Ok(()) }
//! ```

mod architecture;
pub mod checkpoint;
mod foreign;
mod fused;
pub mod golden;
pub mod infer;
mod layers;
pub mod network;
pub mod openmp;
mod pool;
pub mod preprocess;
mod rng;
pub mod state;

pub use checkpoint::{Checkpoint, CheckpointError, Contract, Saved, sha256_file};
pub use golden::GoldenSet;
pub use infer::Classifier;
pub use layers::{Mode, dropout_mask};
pub use network::{ModelError, Network};
pub use state::{StateDict, StateError, data_to_tensor, tensor_to_data};
