//! What a network makes of labelled photos.

use std::sync::atomic::{AtomicBool, Ordering};

use anneal_api::checkpoint::Preprocessing;
use anneal_figures::Confusion;
use anneal_model::{Mode, Network};
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::{
    answers::Answers,
    batches::{self, Batch, Pass},
    data::load::Photos,
    outcome::Error,
    progress,
    train::Surroundings,
};

/// Photos in a batch; more would only cost memory.
const BATCH: usize = 64;
/// Targets that count for nothing; libtorch's default, and no label of ours.
const IGNORED: i64 = -100;

/// What a network made of labelled photos.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Mean cross entropy.
    pub loss: f64,
    /// Which class was taken for which.
    pub confusion: Confusion,
    /// What was said about each photo, in order.
    pub answers: Answers,
}

/// What the network gets to see of a photo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Views {
    /// The photo.
    #[default]
    Single,
    /// The photo and its mirror image, whose probabilities are averaged.
    Flipped,
}

/// How to evaluate.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// How a photo becomes input.
    pub preprocessing: &'a Preprocessing,
    /// What is seen of each.
    pub views: Views,
    /// Threads to compute with.
    pub threads: usize,
    /// Set when the process was asked to stop.
    pub stop: &'a AtomicBool,
    /// Hears how many photos a batch had.
    pub done: &'a dyn Fn(usize),
}

/// Sums up over batches.
pub struct Tally {
    loss: f64,
    confusion: Confusion,
}

impl Tally {
    /// A tally without photos.
    pub fn new(classes: usize) -> Self {
        Self { loss: 0.0, confusion: Confusion::new(classes) }
    }

    /// Counts a batch by its mean loss, its logits and its labels.
    ///
    /// # Errors
    /// When libtorch fails.
    #[expect(clippy::cast_precision_loss, reason = "a count of photos")]
    pub fn count(&mut self, loss: f64, logits: &Tensor, batch: &Batch) -> Result<(), Error> {
        self.loss += loss * batch.len() as f64;
        let predicted = Vec::<i64>::try_from(&logits.f_argmax(1, false)?)?;
        for (actual, predicted) in batch.labels().zip(predicted) {
            self.confusion.count(actual, usize::try_from(predicted).unwrap_or_default());
        }
        Ok(())
    }

    /// The mean loss so far.
    #[expect(clippy::cast_precision_loss, reason = "a count of photos")]
    pub fn loss(&self) -> f64 {
        self.loss / self.confusion.total().max(1) as f64
    }

    /// The share of right answers so far.
    pub fn accuracy(&self) -> f64 {
        self.confusion.accuracy()
    }
}

/// Lets the network of a run classify every photo, each seen once.
///
/// # Errors
/// When the network does not take the photos, libtorch fails, or the process was asked to stop.
pub fn evaluate(
    network: &Network,
    photos: &Photos,
    preprocessing: &Preprocessing,
    around: &Surroundings<'_>,
) -> Result<Evaluation, Error> {
    let Surroundings { threads, stop, .. } = *around;
    let done = |_: usize| progress::touch(&around.progress);
    let how = How { preprocessing, views: Views::Single, threads, stop, done: &done };
    evaluate_how(network, photos, &how)
}

/// Lets the network classify every photo.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_how(network: &Network, photos: &Photos, how: &How<'_>) -> Result<Evaluation, Error> {
    let mut answers = Answers::new(network.classes());
    let mut tally = Tally::new(network.classes());
    let pass = Pass {
        photos,
        order: (0..photos.len()).collect(),
        batch_size: BATCH,
        size: photos.size,
        preprocessing: how.preprocessing,
        precision: network.precision(),
        change: None,
        workers: batches::workers(how.threads),
    };
    batches::each(&pass, |batch| {
        if how.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("while photos were evaluated".to_owned()));
        }
        no_grad(|| {
            let (images, labels) = batch.tensors()?;
            let said = log_probabilities(network, &images, how.views)?;
            let loss = said.f_nll_loss::<Tensor>(&labels, None, Reduction::Mean, IGNORED)?.f_double_value(&[])?;
            answers.extend(batch.labels(), &Vec::<f32>::try_from(&said.f_reshape([-1])?)?);
            tally.count(loss, &said, &batch)
        })?;
        (how.done)(batch.len());
        Ok(())
    })?;
    Ok(Evaluation { loss: tally.loss(), confusion: tally.confusion, answers })
}

/// Natural logarithms of the classes' probabilities, float32 [N, classes].
///
/// # Errors
/// When the network does not take the images, or libtorch fails.
pub fn log_probabilities(network: &Network, images: &Tensor, views: Views) -> Result<Tensor, Error> {
    let of = |images: &Tensor| -> Result<Tensor, Error> {
        Ok(network.forward(images, Mode::Eval)?.f_log_softmax(1, Kind::Float)?)
    };
    let seen = of(images)?;
    match views {
        Views::Single => Ok(seen),
        Views::Flipped => {
            let mirrored = of(&images.f_flip([3])?)?;
            Ok(seen.f_logaddexp(&mirrored)?.f_sub_scalar(std::f64::consts::LN_2)?)
        }
    }
}
