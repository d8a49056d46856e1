//! A run from its configuration to its result: load, go on or begin, train epoch by epoch, evaluate, publish.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anneal_api::{
    checkpoint::{CheckpointInfo, Preprocessing},
    hyperparameters::Hyperparameters,
    termination::{Metrics, RunResult},
};
use anneal_model::{Checkpoint, Mode, Network, checkpoint::FORMAT};
use anneal_pth::Value;
use tracing::{info, warn};

use crate::{
    batches::{self, Batch, Changes, Pass},
    checkpoints::{Checkpoints, Found, Identity},
    config::RunConfig,
    data::{self, load::Dataset},
    evaluate::{Tally, cross_entropy, evaluate},
    history::{Epoch, History},
    optim::Optimizer,
    outcome::Error,
    progress::{Shared, Tracker},
    publish, report, schedule,
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
}

/// Trains as the configuration says and publishes the best epoch.
///
/// # Errors
/// Whatever ends a run without a result; the class of the error tells whether a further attempt can help.
pub fn run(config: &RunConfig, around: &Surroundings<'_>) -> Result<RunResult, Error> {
    let dataset = data::open(config, around)?;
    let run =
        Identity::new(config.model, dataset.classes.clone(), dataset.identity.digest.clone(), &config.hyperparameters);
    let mut checkpoints = Checkpoints::open(&config.checkpoints(), run)?;
    let mut training = Training::begin(config, &dataset, around)?;
    if let Some(found) = checkpoints.find(config.resume_from.as_deref())? {
        training.go_on_from(&found)?;
    }
    training.all_epochs(&mut checkpoints)?;
    conclude(training, &checkpoints)
}

struct Training<'a> {
    config: &'a RunConfig,
    dataset: &'a Dataset,
    around: &'a Surroundings<'a>,
    preprocessing: Preprocessing,
    network: Network,
    optimizer: Optimizer,
    history: History,
    /// Epochs that are done.
    epoch: u32,
}

impl<'a> Training<'a> {
    fn begin(config: &'a RunConfig, dataset: &'a Dataset, around: &'a Surroundings<'a>) -> Result<Self, Error> {
        let network = Network::new(config.model.architecture, dataset.classes.len(), config.seed())?
            .with_precision(config.hyperparameters.precision);
        let parameters = network.named_parameters().into_iter().map(|(_, tensor)| tensor).collect();
        let optimizer = Optimizer::new(parameters, &config.hyperparameters)?;
        let preprocessing = Preprocessing::imagenet(config.model.input_size);
        Ok(Self { config, dataset, around, preprocessing, network, optimizer, history: History::default(), epoch: 0 })
    }

    fn go_on_from(&mut self, found: &Found) -> Result<(), Error> {
        let checkpoint = &found.checkpoint;
        self.network.load(&checkpoint.state)?;
        self.optimizer.load(checkpoint.get("optimizer_state_dict").unwrap_or(&Value::None))?;
        if let Some(history) = checkpoint.get("history").and_then(History::from_value) {
            self.history = history;
        } else {
            warn!("{:?} has no history; curves and the best accuracy begin here", found.path);
        }
        self.epoch = found.epoch;
        info!(epoch = self.epoch, path = %found.path.display(), "going on from a checkpoint");
        Ok(())
    }

    fn all_epochs(&mut self, checkpoints: &mut Checkpoints) -> Result<(), Error> {
        let (epochs, per_epoch) = (self.epochs(), self.steps_per_epoch());
        let step = u64::from(self.epoch) * per_epoch;
        let steps = u64::from(epochs) * per_epoch;
        let mut tracker = Tracker::new(self.around.progress.clone(), self.epoch, step, steps, self.history.best());
        while self.epoch < epochs {
            tracker.begin_epoch(self.epoch + 1, epochs);
            let trained = self.train_epoch(&mut tracker)?;
            let validated = evaluate(
                &self.network,
                &self.dataset.validation,
                &self.preprocessing,
                self.around.threads,
                self.around.stop,
            )?;
            self.epoch += 1;
            let result = Epoch {
                train_loss: trained.loss(),
                train_acc: trained.accuracy(),
                val_loss: validated.loss,
                val_acc: validated.confusion.accuracy(),
            };
            let step = u64::from(self.epoch) * per_epoch;
            check_finite("validation loss", result.val_loss, self.epoch, step, self.learning_rate(step - 1))?;
            self.history.0.push(result);
            checkpoints.save(self.epoch, self.checkpoint()?, self.history.newest_is_best())?;
            tracker.epoch(self.epoch, &result, self.history.best());
        }
        tracker.finish();
        Ok(())
    }

    fn train_epoch(&mut self, tracker: &mut Tracker) -> Result<Tally, Error> {
        let Self { config, dataset, around, epoch, .. } = *self;
        let Hyperparameters { batch_size, label_smoothing, augmentation, .. } = &config.hyperparameters;
        let preprocessing = self.preprocessing.clone();
        let pass = Pass {
            photos: &dataset.train,
            order: batches::shuffled(dataset.train.len(), config.seed(), u64::from(epoch)),
            batch_size: usize::try_from(*batch_size).unwrap_or(1),
            preprocessing: &preprocessing,
            change: Some(Changes { spec: augmentation, seed: config.seed(), epoch: u64::from(epoch) }),
            workers: batches::workers(around.threads),
        };
        let mut tally = Tally::new(dataset.classes.len());
        let mut step = u64::from(epoch) * self.steps_per_epoch();
        batches::each(&pass, |batch| {
            if around.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted(format!("in epoch {} at step {}", epoch + 1, step + 1)));
            }
            self.train_step(&batch, step, *label_smoothing, &mut tally)?;
            step += 1;
            tracker.step(batch.len(), tally.loss());
            Ok(())
        })?;
        Ok(tally)
    }

    fn train_step(&mut self, batch: &Batch, step: u64, smoothing: f64, tally: &mut Tally) -> Result<(), Error> {
        let (images, labels) = batch.tensors()?;
        let logits = self.network.forward(&images, Mode::Train { seed: self.config.seed(), step })?;
        let loss = cross_entropy(&logits, &labels, smoothing)?;
        let value = loss.f_double_value(&[])?;
        let rate = self.learning_rate(step);
        check_finite("training loss", value, self.epoch + 1, step + 1, rate)?;
        self.optimizer.step(&loss, rate)?;
        tally.count(value, &logits, batch)
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let spec = &self.config.hyperparameters;
        let steps = u64::from(self.epochs()) * self.steps_per_epoch();
        schedule::learning_rate(spec.schedule, spec.learning_rate, step, steps)
    }

    fn epochs(&self) -> u32 {
        self.config.hyperparameters.epochs.unsigned_abs()
    }

    fn steps_per_epoch(&self) -> u64 {
        let batch = u64::from(self.config.hyperparameters.batch_size.unsigned_abs());
        (self.dataset.train.len() as u64).div_ceil(batch)
    }

    /// The state after an epoch, in the reference's layout.
    fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let val_acc = self.history.0.last().map_or(0.0, |epoch| epoch.val_acc);
        Ok(Checkpoint {
            info: Some(self.info(None)),
            state: self.network.state()?,
            extra: vec![
                ("epoch".to_owned(), Value::Int(i64::from(self.epoch))),
                ("optimizer_state_dict".to_owned(), self.optimizer.state()?),
                ("val_acc".to_owned(), Value::Float(val_acc)),
                ("history".to_owned(), self.history.to_value()),
            ],
        })
    }

    fn info(&self, metrics: Option<Metrics>) -> CheckpointInfo {
        CheckpointInfo {
            format: FORMAT,
            model: self.config.model,
            classes: self.dataset.classes.clone(),
            preprocessing: self.preprocessing.clone(),
            metrics,
            dataset: Some(self.dataset.identity.clone()),
            run: self.config.name.clone(),
            seed: self.config.hyperparameters.seed,
            libtorch: env!("LIBTORCH_VERSION").to_owned(),
        }
    }
}

fn check_finite(what: &'static str, loss: f64, epoch: u32, step: u64, learning_rate: f64) -> Result<(), Error> {
    if loss.is_finite() { Ok(()) } else { Err(Error::Diverged { what, loss, epoch, step, learning_rate }) }
}

/// Measures the best epoch, writes the reports and publishes the model.
fn conclude(mut training: Training<'_>, checkpoints: &Checkpoints) -> Result<RunResult, Error> {
    let best_epoch = if let Some(best) = checkpoints.best(training.config.resume_from.as_deref())? {
        training.network.load(&best.checkpoint.state)?;
        best.epoch
    } else {
        warn!("the best epoch's checkpoint is not usable; the newest epoch is published");
        training.epoch
    };
    let Training { config, dataset, around, .. } = training;
    let (split, photos) = if dataset.test.is_empty() {
        (data::Split::Validation, &dataset.validation)
    } else {
        (data::Split::Test, &dataset.test)
    };
    let evaluation = evaluate(&training.network, photos, &training.preprocessing, around.threads, around.stop)?;
    let metrics = evaluation.confusion.metrics();
    report::write(
        &config.reports(),
        &report::Report {
            classes: &dataset.classes,
            split,
            evaluation: &evaluation,
            history: &training.history,
            best_epoch,
            broken: &dataset.broken,
        },
    )?;
    let model = Checkpoint {
        info: Some(training.info(Some(metrics))),
        state: training.network.state()?,
        extra: vec![("epoch".to_owned(), Value::Int(i64::from(best_epoch)))],
    };
    let published = publish::publish(model, &config.models, Path::new(&config.output))?;
    Ok(RunResult {
        checkpoint: published.path,
        sha256: published.sha256,
        bytes: i64::try_from(published.bytes).unwrap_or(i64::MAX),
        classes: dataset.classes.clone(),
        metrics,
        dataset: dataset.identity.clone(),
        seed: config.hyperparameters.seed,
        epochs: config.hyperparameters.epochs.max(i32::try_from(training.epoch).unwrap_or(i32::MAX)),
        config_sha256: None,
        resumed_from_step: None,
        exact: None,
        steps_lost: None,
    })
}
