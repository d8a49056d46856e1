//! Measures the bare optimiser step: `cargo run --release --example step -- SIZE BATCH float32|bfloat16 THREADS SECONDS`
//!
//! Forward pass, loss, gradients and SGD with Nesterov momentum on one batch of noise. Prints images a second.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use anneal_api::{
    hyperparameters::{Hyperparameters, Optimizer as Kind},
    model::Architecture,
};
use anneal_model::{Mode, Network, openmp};
use anneal_trainer::{loss::Loss, optim::Optimizer};
use tch::{Device, Kind as DType, Tensor};

/// Steps before the clock starts.
const WARM_UP: u64 = 5;

fn main() -> Result<(), Box<dyn Error>> {
    openmp::begin_with(openmp::STEPS)?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [size, batch, precision, threads, seconds] = args.as_slice() else {
        return Err("usage: step SIZE BATCH float32|bfloat16 THREADS SECONDS".into());
    };
    let (size, batch): (i64, i64) = (size.parse()?, batch.parse()?);
    tch::set_num_threads(threads.parse()?);
    let limit = Duration::from_secs_f64(seconds.parse()?);

    let precision = serde_json::from_value(precision.as_str().into())?;
    let network = Network::new(Architecture::Improved, 2, 0)?.with_precision(precision);
    let images = Tensor::f_randn([batch, size, size, 3], (DType::Float, Device::Cpu))?.f_permute([0, 3, 1, 2])?;
    let labels = Tensor::f_randint(2, [batch], (DType::Int64, Device::Cpu))?;
    let spec = Hyperparameters { optimizer: Kind::Sgd, weight_decay: 5e-4, ..Hyperparameters::default() };
    let parameters = network.trainable_parameters().into_iter().map(|(_, tensor)| tensor).collect();
    let mut optimizer = Optimizer::new(parameters, &spec)?;

    let loss = Loss::new(None, 0.1)?;
    let mut step = 0;
    let mut next = || -> Result<(), Box<dyn Error>> {
        let logits = network.forward(&images, Mode::Train { seed: 0, step })?;
        let loss = loss.part(&logits, &labels, None, loss.divisor(&labels)?)?;
        let mut gradients = Vec::new();
        optimizer.gradients(&loss, &mut gradients)?;
        optimizer.apply(&gradients, 0.01)?;
        step += 1;
        Ok(())
    };
    for _ in 0..WARM_UP {
        next()?;
    }
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < limit {
        next()?;
        done += batch;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of photos")]
    let rate = done as f64 / begun.elapsed().as_secs_f64();
    println!("{rate:.2}");
    Ok(())
}
