//! The controllers of `TrainingRun`, `TrainingSweep`, `CronTrainingRun` and `ModelDeployment`.
//!
//! Each reconcile is five steps: observe (reads only), validate, plan (pure), apply, record. The crate never links
//! libtorch: it knows the trainer and the server only by the contract in `anneal-api`.

pub mod api_server;
pub mod check;
pub mod children;
pub mod clock;
pub mod cluster;
pub mod context;
pub mod controller;
pub mod cron_training_run;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod model_deployment;
pub mod options;
pub mod performance;
pub mod pod_http;
#[cfg(test)]
mod policies;
pub mod progress;
pub mod queue;
mod room;
mod rotation;
mod rounds;
pub mod runs;
pub mod shadow;
pub mod signals;
pub mod training_run;
pub mod training_sweep;
pub mod turns;
pub mod uses;
