//! Any bytes as the trainer's configuration.
#![no_main]

#[allow(dead_code, reason = "the trainer uses the rest")]
#[path = "../../../trainer/src/config.rs"]
mod config;

use std::path::Path;

use config::{Overrides, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(run) = parse(text, Path::new("run.yaml"), Overrides::default()) else { return };
    let numbers = &run.hyperparameters;
    assert!((1..=10_000).contains(&numbers.epochs) && (1..=4096).contains(&numbers.batch_size));
    assert!(numbers.learning_rate.is_finite() && numbers.learning_rate > 0.0);
    for epoch in [0, 1, numbers.epochs.unsigned_abs() - 1] {
        assert!((32..=1024).contains(&run.train_size(epoch)));
    }
    assert!((32..=1024).contains(&run.input_size()));
});
