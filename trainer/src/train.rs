//! A run from its configuration to its result: load, go on or begin, train epoch by epoch, evaluate, publish.

use std::{path::Path, sync::atomic::AtomicBool};

use anneal_api::{checkpoint::CheckpointInfo, termination::RunResult};
use anneal_model::{Checkpoint, Network};
use anneal_pth::Value;
use tracing::{info, warn};

use crate::{
    calibration,
    checkpoints::{self, Checkpoints, Identity},
    config::RunConfig,
    data, ema,
    evaluate::evaluate,
    finished, init, memory,
    outcome::Error,
    progress::{self, Shared},
    publish, report,
    saver::Saver,
    tracking::{Measured, Recorder},
    training::Training,
};

/// What a run does not read from its configuration.
pub struct Surroundings<'a> {
    /// Threads to compute with.
    pub threads: usize,
    /// Bytes of memory that the process may use, if that is known.
    pub memory: Option<u64>,
    /// Set when the process was asked to stop.
    pub stop: &'a AtomicBool,
    /// Where progress is told.
    pub progress: Shared,
    /// What is recorded beside the run's own directory.
    pub recorder: &'a Recorder,
}

/// Trains as the configuration says and publishes the best epoch. A run that is done already gives its result again.
///
/// # Errors
/// Whatever ends a run without a result; the class of the error tells whether a further attempt can help.
pub fn run(config: &RunConfig, around: &Surroundings<'_>) -> Result<RunResult, Error> {
    if let Some(result) = finished::read(config) {
        info!(dir = %config.output.display(), "this run is done already; remove the directory to train it anew");
        return Ok(result);
    }
    let known = checkpoints::newest_step(&config.checkpoints()).map(progress::whole);
    progress::change(&around.progress, |progress| progress.checkpoint_step = known);
    attempt(config, around).map_err(|error| error.with_checkpoint(progress::snapshot(&around.progress).checkpoint_step))
}

fn attempt(config: &RunConfig, around: &Surroundings<'_>) -> Result<RunResult, Error> {
    let dataset = data::open(config, around)?;
    around.recorder.begin(config, &dataset);
    let run =
        Identity::new(config.model, dataset.classes.clone(), dataset.identity.digest.clone(), &config.hyperparameters)
            .beginning_with(config.init_from.as_ref());
    let checkpoints = Checkpoints::open(&config.checkpoints(), run)?;
    let found = checkpoints.find(config.resume_from.as_deref())?;
    let mut training = Training::begin(config, &dataset, around)?;
    if let Some(found) = &found {
        training.go_on_from(found)?;
    } else if let Some(init) = &config.init_from {
        init::load(init, &dataset.classes, &mut training.network)?;
    }
    let mut saver = Saver::new(checkpoints, config.interval, found.map(|found| found.step));
    memory::give_back();
    training.all_epochs(&mut saver)?;
    memory::give_back();
    conclude(training, &saver.finish()?)
}

/// Measures the best epoch, writes the reports, publishes the model and remembers the result.
fn conclude(mut training: Training<'_>, checkpoints: &Checkpoints) -> Result<RunResult, Error> {
    let (state, best_epoch) = if let Some(best) = checkpoints.best(training.config.resume_from.as_deref())? {
        let weights = ema::Weights::of(&best.checkpoint)?.map(|weights| weights.average);
        (weights.unwrap_or(best.checkpoint.state), best.epoch)
    } else {
        warn!("the best epoch's checkpoint is not usable; the newest epoch is published");
        // Without the loss of the file, another epoch's network would have been published.
        training.exact &= training.history.newest_is_best();
        (training.result().state()?, training.epoch)
    };
    let Training { config, dataset, around, data_wait_share, .. } = training;
    // Whatever takes a while from here on is followed by a sign of life: whoever watches the run would take it for stalled.
    let moved = || progress::touch(&around.progress);
    moved();
    // In float32, whatever it was trained in: as it will be served.
    let mut network = Network::new(config.model.architecture, dataset.classes.len(), config.seed())?;
    network.load(&state)?;
    let measure = |photos| evaluate(&network, photos, &training.preprocessing, around);
    let validation = measure(&dataset.validation)?;
    let profile = calibration::profile(&validation.answers);
    moved();
    let (split, photos, evaluation) = if dataset.test.is_empty() {
        (data::Split::Validation, &dataset.validation, validation)
    } else {
        (data::Split::Test, &dataset.test, measure(&dataset.test)?)
    };
    let metrics = evaluation.confusion.metrics();
    report::write(
        &config.reports(),
        &report::Report {
            name: &config.name,
            classes: &dataset.classes,
            split,
            photos,
            evaluation: &evaluation,
            temperature: profile.calibration.temperature,
            training: Some(report::Trained {
                config,
                dataset,
                history: &training.history,
                best_epoch,
                data_wait_share,
            }),
        },
        &moved,
    )?;
    let model = Checkpoint {
        info: Some(CheckpointInfo { validation: Some(profile), ..training.info(Some(metrics), None)? }),
        state: network.state()?,
        extra: vec![("epoch".to_owned(), Value::Int(i64::from(best_epoch)))],
    };
    let model = publish::with_golden_set(model, photos)?;
    moved();
    let tracked = around.recorder.wants_model().then(|| model.clone());
    let published = publish::publish(model, &config.models, Path::new(&config.output))?;
    moved();
    let measured = Measured { split, epoch: best_epoch, evaluation: &evaluation };
    around.recorder.result(measured, config, tracked.as_ref(), &published);
    moved();
    let progress = progress::snapshot(&around.progress);
    let result = RunResult {
        checkpoint: published.path,
        sha256: published.sha256,
        bytes: i64::try_from(published.bytes).unwrap_or(i64::MAX),
        classes: dataset.classes.clone(),
        metrics,
        best: training.history.best(),
        loss: training.history.0.last().map(|epoch| epoch.train_loss),
        dataset: dataset.identity.clone(),
        seed: config.hyperparameters.seed,
        epochs: i32::try_from(training.epoch).unwrap_or(i32::MAX),
        config_sha256: Some(config.sha256.clone()),
        resumed_from_step: progress.resumed_from_step,
        exact: Some(training.exact),
        steps_lost: progress.steps_lost,
    };
    finished::write(config, &result)?;
    Ok(result)
}
