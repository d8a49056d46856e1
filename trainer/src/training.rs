//! Training: optimiser steps over epochs, with a state between any two steps that a checkpoint holds completely.

use std::sync::atomic::Ordering;

use anneal_api::{
    checkpoint::{CheckpointInfo, Machine, Position, Preprocessing, Running},
    hyperparameters::{ClassWeights, Hyperparameters, Precision},
    termination::Metrics,
};
use anneal_model::{
    Checkpoint, CheckpointError, Mode, Network,
    checkpoint::{FORMAT, digest_of},
};
use anneal_pth::Value;
use tch::Tensor;
use tracing::{info, warn};

use crate::{
    batches::{self, Batch, Changes, Pass},
    checkpoints::Found,
    config::RunConfig,
    data::load::Dataset,
    ema::{self, Ema},
    evaluate::evaluate,
    history::{Epoch, History},
    ledger::Ledger,
    loss::{Divisor, Loss},
    machine, memory, mixing,
    optim::{OptimError, Optimizer},
    outcome::Error,
    progress::Tracker,
    rng::{Draws, Purpose},
    saver::{Saver, Snapshot},
    schedule,
    train::Surroundings,
};

/// A training and where it stands.
pub struct Training<'a> {
    /// What to train.
    pub config: &'a RunConfig,
    /// What to train on.
    pub dataset: &'a Dataset,
    /// Where to train.
    pub around: &'a Surroundings<'a>,
    /// How a photo becomes input.
    pub preprocessing: Preprocessing,
    /// The network.
    pub network: Network,
    /// All epochs so far.
    pub history: History,
    /// Epochs that are done.
    pub epoch: u32,
    /// Whether all steps were done on machines that compute alike.
    pub exact: bool,
    /// Share of the time of this attempt's training in which the network waited for photos.
    pub data_wait_share: Option<f64>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    loss: Loss,
    /// Optimiser steps that are done, over all epochs.
    step: u64,
    /// The training photos of the epoch so far.
    running: Running,
    machine: Machine,
    resumed_from: Option<u64>,
}

/// What came of a forward pass.
struct Passed {
    /// What its images add to the mean of the step.
    loss: Tensor,
    /// Images whose own class came first.
    right: u64,
}

impl<'a> Training<'a> {
    /// A training that has not made a step, with random weights. What is to be frozen is frozen.
    ///
    /// # Errors
    /// When the network cannot be made, or has no such parameters to freeze.
    pub fn begin(config: &'a RunConfig, dataset: &'a Dataset, around: &'a Surroundings<'a>) -> Result<Self, Error> {
        let mut network = Network::new(config.model.architecture, dataset.classes.len(), config.seed())?
            .with_precision(config.hyperparameters.precision);
        let freeze = config.init_from.as_ref().map_or(&[][..], |init| &init.freeze);
        if !freeze.is_empty() {
            let frozen = network.freeze(freeze)?;
            info!(parameters = frozen.len(), names = frozen.join(", "), "frozen");
        }
        let parameters = network.trainable_parameters().into_iter().map(|(_, tensor)| tensor).collect();
        let ema = config.hyperparameters.ema_decay.map(|decay| Ema::new(&network, decay)).transpose()?;
        let class_weights = match config.hyperparameters.class_weights {
            ClassWeights::Equal => None,
            ClassWeights::Balanced => Some(balanced(dataset)),
        };
        Ok(Self {
            config,
            dataset,
            around,
            ema,
            loss: Loss::new(class_weights.as_deref(), config.hyperparameters.label_smoothing)?,
            preprocessing: Preprocessing::imagenet(config.model.input_size),
            optimizer: Optimizer::new(parameters, &config.hyperparameters)?,
            network,
            history: History::default(),
            epoch: 0,
            exact: true,
            data_wait_share: None,
            step: 0,
            running: Running::default(),
            machine: machine::identity(around.threads, config.hyperparameters.precision),
            resumed_from: None,
        })
    }

    /// Takes everything from a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is not one of this training.
    pub fn go_on_from(&mut self, found: &Found) -> Result<(), Error> {
        let checkpoint = &found.checkpoint;
        self.optimizer.load(checkpoint.get("optimizer_state_dict").unwrap_or(&Value::None))?;
        if let Some(ema) = &mut self.ema {
            let weights = ema::Weights::of(checkpoint)?.ok_or(OptimError::Layout(ema::TRAINED.to_owned()))?;
            self.network.load(&weights.trained)?;
            ema.load(&weights.average)?;
        } else {
            self.network.load(&checkpoint.state)?;
        }
        if let Some(history) = checkpoint.get("history").and_then(History::from_value) {
            self.history = history;
        } else {
            warn!("{:?} has no history; curves and the best accuracy begin here", found.path);
        }
        self.epoch = found.epoch;
        self.step = u64::from(self.epoch) * self.steps_per_epoch();
        self.exact = false;
        let position = checkpoint.info.as_ref().and_then(|info| info.position.as_ref());
        if let Some(position) = position
            .filter(|position| position.step.checked_sub(self.step).is_some_and(|done| done <= self.steps_per_epoch()))
        {
            (self.step, self.running) = (position.step, position.running);
            self.exact = position.exact && position.machine == self.machine;
            if position.machine != self.machine {
                let (there, here) = (&position.machine, &self.machine);
                let words = "the checkpoint was computed on another machine, or by another program; numbers may differ";
                warn!(?there, ?here, "{words}");
            }
        } else {
            // Without a position, or with one that counts other photos than there are now.
            warn!("{:?} does not tell where in this epoch it was written; the epoch begins anew", found.path);
        }
        self.resumed_from = Some(self.step);
        let (epoch, step, exact) = (self.epoch, self.step, self.exact);
        info!(epoch, step, exact, path = %found.path.display(), "going on from a checkpoint");
        Ok(())
    }

    /// Trains to the end of the last epoch. Where the process is asked to stop, a checkpoint is written first.
    ///
    /// # Errors
    /// Whatever ends a training.
    pub fn all_epochs(&mut self, saver: &mut Saver) -> Result<(), Error> {
        let path = self.config.checkpoints().join("steps");
        let mut ledger = Ledger::open(&path, self.step).map_err(Error::writing(path))?;
        let steps = u64::from(self.epochs()) * self.steps_per_epoch();
        let shared = self.around.progress.clone();
        let mut tracker = Tracker::new(shared, self.epoch, self.step, steps, self.history.best());
        tracker.resumed(self.resumed_from, ledger.lost());
        tracker.durable(self.resumed_from);
        let done = match self.remaining_epochs(saver, &mut tracker, &mut ledger) {
            Ok(()) => saver.wait(),
            Err(Error::Interrupted(when)) => self.keep(saver).and(Err(Error::Interrupted(when))),
            Err(failure) => Err(failure),
        };
        tracker.durable(saver.settled());
        tracker.finish();
        self.data_wait_share = tracker.data_wait_share();
        done
    }

    /// Writes the steps that no checkpoint has yet.
    fn keep(&self, saver: &mut Saver) -> Result<(), Error> {
        if self.step > saver.handed() {
            self.check_weights()?;
            saver.save(self.snapshot(false)?)?;
        }
        saver.wait()
    }

    fn remaining_epochs(&mut self, saver: &mut Saver, tracker: &mut Tracker, ledger: &mut Ledger) -> Result<(), Error> {
        let epochs = self.epochs();
        while self.epoch < epochs && !self.stops_early() {
            tracker.begin_epoch(self.epoch + 1, epochs);
            self.train_epoch(saver, tracker, ledger)?;
            self.check_weights()?;
            let Self { dataset, preprocessing, around, .. } = &*self;
            let validated = evaluate(self.result(), &dataset.validation, preprocessing, around)?;
            memory::give_back();
            let result = Epoch {
                train_loss: self.train_loss(),
                train_acc: share(self.running.right, self.running.images),
                val_loss: validated.loss,
                val_acc: validated.confusion.accuracy(),
            };
            let rate = self.learning_rate(self.step.saturating_sub(1));
            check_finite("validation loss", result.val_loss, self.epoch + 1, self.step, rate)?;
            self.epoch += 1;
            self.running = Running::default();
            self.history.0.push(result);
            saver.save(self.snapshot(self.history.newest_is_best())?)?;
            let speed = tracker.epoch(self.epoch, &result, self.history.best());
            self.around.recorder.epoch(self.epoch, &result, rate, speed);
        }
        Ok(())
    }

    /// The network that is validated and published: the average of the weights where there is one.
    pub fn result(&self) -> &Network {
        self.ema.as_ref().map_or(&self.network, Ema::network)
    }

    fn stops_early(&self) -> bool {
        let patience =
            self.config.hyperparameters.early_stopping_epochs.and_then(|epochs| usize::try_from(epochs).ok());
        let since = self.history.epochs_since_best();
        let stops = patience.is_some_and(|patience| since >= patience);
        if stops {
            info!(epoch = self.epoch, epochs_since_best = since, "no better epoch came, training ends early");
        }
        stops
    }

    /// The steps of an epoch that are not done yet.
    fn train_epoch(&mut self, saver: &mut Saver, tracker: &mut Tracker, ledger: &mut Ledger) -> Result<(), Error> {
        let Self { config, dataset, around, epoch, .. } = *self;
        let Hyperparameters { batch_size, augmentation, .. } = &config.hyperparameters;
        let preprocessing = self.preprocessing.clone();
        let batch_size = usize::try_from(*batch_size).unwrap_or(1);
        let done = usize::try_from(self.step - u64::from(epoch) * self.steps_per_epoch()).unwrap_or(usize::MAX);
        let mut order = batches::shuffled(dataset.train.len(), config.seed(), u64::from(epoch));
        order.drain(..done.saturating_mul(batch_size).min(order.len()));
        let pass = Pass {
            photos: &dataset.train,
            order,
            batch_size,
            size: config.train_size(epoch),
            preprocessing: &preprocessing,
            // Mixed photos are rounded once, as others are.
            precision: if augmentation.mixup > 0.0 { Precision::Float32 } else { self.network.precision() },
            change: Some(Changes { spec: augmentation, seed: config.seed(), epoch: u64::from(epoch) }),
            workers: batches::workers(around.threads),
        };
        batches::each(&pass, |batch| {
            self.train_step(&batch)?;
            tracker.step(batch.len(), batch.waited, self.train_loss());
            if let Err(error) = ledger.reach(self.step) {
                warn!("steps that are done twice are not counted: {error}");
            }
            tracker.durable(saver.durable()?);
            // The end of an epoch has a checkpoint of its own, after its validation.
            if saver.is_due(self.step) && self.step < u64::from(epoch + 1) * self.steps_per_epoch() {
                self.check_weights()?;
                saver.save(self.snapshot(false)?)?;
            }
            Ok(())
        })
    }

    /// An optimiser step, or none where the process is asked to stop before all of its passes are done.
    fn train_step(&mut self, batch: &Batch) -> Result<(), Error> {
        let (images, labels) = batch.tensors()?;
        let spec = &self.config.hyperparameters;
        let count = i64::try_from(batch.len()).unwrap_or_default();
        let each = spec.micro_batch_size.map_or(count, i64::from).min(count);
        let rate = self.learning_rate(self.step);
        // The passes of a step that is not ended move the running statistics.
        let before = if each < count { Some(self.network.buffers()?) } else { None };
        let whole = self.loss.divisor(&labels)?;
        let mut gradients = Vec::new();
        let (mut loss, mut right) = (0.0, 0);
        for (pass, begin) in (0_u64..).zip((0..count).step_by(usize::try_from(each).unwrap_or(1))) {
            if self.around.stop.load(Ordering::Relaxed) {
                before.iter().try_for_each(|before| self.network.set_buffers(before))?;
                return Err(Error::Interrupted(format!("in epoch {} after step {}", self.epoch + 1, self.step)));
            }
            let length = each.min(count - begin);
            let part = |of: &Tensor| of.f_narrow(0, begin, length);
            let done = self.pass(&part(&images)?, &part(&labels)?, whole, pass)?;
            let value = done.loss.f_double_value(&[])?;
            check_finite("training loss", value, self.epoch + 1, self.step + 1, rate)?;
            loss += value;
            right += done.right;
            self.optimizer.gradients(&done.loss, &mut gradients)?;
        }
        let norm = self.optimizer.apply(&gradients, rate)?;
        check_finite("norm of the gradients", norm, self.epoch + 1, self.step + 1, rate)?;
        if let Some(ema) = &mut self.ema {
            ema.follow(&self.network)?;
        }
        self.step += 1;
        let images = batch.len() as u64;
        self.running.images += images;
        self.running.right += right;
        self.running.loss += loss * float(images);
        Ok(())
    }

    /// A forward pass of the next step, of which this is the `number`-th.
    fn pass(&self, images: &Tensor, labels: &Tensor, whole: Divisor, number: u64) -> Result<Passed, Error> {
        let augmentation = &self.config.hyperparameters.augmentation;
        // A stream of draws for each pass: no step has more passes than images.
        let draw = (number << 48) | self.step;
        let mut draws = Draws::new(self.config.seed(), Purpose::Mixing, 0, draw);
        let side = i64::try_from(self.config.train_size(self.epoch)).unwrap_or_default();
        let mix = mixing::draw(augmentation, side, &mut draws);
        let mixed = mix.map(|mix| mix.images(images)).transpose()?;
        let mode = Mode::Train { seed: self.config.seed(), step: draw };
        let logits = self.network.forward(mixed.as_ref().unwrap_or(images), mode)?;
        let loss = self.loss.part(&logits, labels, mix, whole)?;
        let right = logits.f_argmax(1, false)?.f_eq_tensor(labels)?.f_sum(tch::Kind::Int64)?.f_int64_value(&[])?;
        Ok(Passed { loss, right: right.unsigned_abs() })
    }

    fn train_loss(&self) -> f64 {
        self.running.loss / float(self.running.images.max(1))
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let spec = &self.config.hyperparameters;
        let steps = u64::from(self.epochs()) * self.steps_per_epoch();
        let decay = u64::from(spec.step_size.unsigned_abs()) * self.steps_per_epoch();
        schedule::learning_rate(spec.schedule, spec.learning_rate, step, steps, decay)
    }

    fn epochs(&self) -> u32 {
        self.config.hyperparameters.epochs.unsigned_abs()
    }

    fn steps_per_epoch(&self) -> u64 {
        let batch = u64::from(self.config.hyperparameters.batch_size.unsigned_abs());
        (self.dataset.train.len() as u64).div_ceil(batch)
    }

    /// Whether there is anything to go on from in the epoch that is trained: no other weights are written.
    fn check_weights(&self) -> Result<(), Error> {
        let rate = self.learning_rate(self.step.saturating_sub(1));
        [&self.network, self.result()]
            .into_iter()
            .try_for_each(|network| check_finite("largest weight", network.largest()?, self.epoch + 1, self.step, rate))
    }

    /// The state between two steps, in the reference's layout; `anneal` says where it stands.
    fn snapshot(&self, is_best: bool) -> Result<Snapshot, Error> {
        let val_acc = self.history.0.last().map_or(0.0, |epoch| epoch.val_acc);
        let position =
            Position { step: self.step, running: self.running, exact: self.exact, machine: self.machine.clone() };
        let mut extra = vec![
            ("epoch".to_owned(), Value::Int(i64::from(self.epoch))),
            ("optimizer_state_dict".to_owned(), self.optimizer.state()?),
            ("val_acc".to_owned(), Value::Float(val_acc)),
            ("history".to_owned(), self.history.to_value()),
        ];
        if self.ema.is_some() {
            extra.push((ema::TRAINED.to_owned(), self.network.state()?.into_value()));
        }
        let info = Some(self.info(None, Some(position))?);
        let checkpoint = Checkpoint { info, state: self.result().state()?, extra };
        Ok(Snapshot { epoch: self.epoch, step: self.step, is_best, checkpoint })
    }

    /// What a checkpoint of this training says about itself.
    ///
    /// # Errors
    /// When it cannot be put into words.
    pub fn info(
        &self,
        metrics: Option<Metrics>,
        position: Option<Position>,
    ) -> Result<CheckpointInfo, CheckpointError> {
        Ok(CheckpointInfo {
            format: FORMAT,
            model: self.config.model,
            classes: self.dataset.classes.clone(),
            preprocessing: self.preprocessing.clone(),
            preprocessing_sha256: Some(digest_of(&self.preprocessing)?),
            metrics,
            dataset: Some(self.dataset.identity.clone()),
            run: self.config.name.clone(),
            seed: self.config.hyperparameters.seed,
            validation: None,
            libtorch: env!("LIBTORCH_VERSION").to_owned(),
            position,
        })
    }
}

/// A weight for each class in inverse proportion to its count of training photos; their mean over all photos is 1.
#[expect(clippy::cast_possible_truncation, reason = "weights are float32 as logits are")]
fn balanced(dataset: &Dataset) -> Vec<f32> {
    let count = |class| dataset.train.labels.iter().filter(|label| **label == class).count() as u64;
    let share =
        |class| float(dataset.train.len() as u64) / (float(count(class).max(1)) * float(dataset.classes.len() as u64));
    (0..dataset.classes.len()).map(|class| share(class) as f32).collect()
}

fn check_finite(what: &'static str, value: f64, epoch: u32, step: u64, learning_rate: f64) -> Result<(), Error> {
    if value.is_finite() { Ok(()) } else { Err(Error::Diverged { what, value, epoch, step, learning_rate }) }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) }
}

#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
fn float(count: u64) -> f64 {
    count as f64
}
