//! Anneal's trainer: photos in, a published classifier out.
//!
//! [`train::run`] tells the whole story; the other modules are its parts.

pub mod answers;
pub mod augment;
pub mod batches;
pub mod calibration;
pub mod charts;
pub mod checkpoints;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod ema;
pub mod evaluate;
pub mod export;
pub mod fetch;
pub mod files;
pub mod finished;
pub mod history;
pub mod import;
pub mod init;
pub mod inspect;
pub mod ledger;
pub mod loss;
pub mod machine;
mod memory;
pub mod mixing;
pub mod optim;
pub mod outcome;
pub mod predict;
pub mod progress;
pub mod publish;
pub mod report;
pub mod rng;
pub mod roc;
pub mod saver;
pub mod schedule;
pub mod service;
pub mod synthesize;
pub mod tracking;
pub mod train;
pub mod training;
