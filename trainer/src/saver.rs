//! Checkpoints written beside training: the state is copied at the end of a step, and a thread brings it to the volume.

use std::{
    panic,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anneal_api::config::CheckpointInterval;
use anneal_model::Checkpoint;
use tracing::info;

use crate::{checkpoints::Checkpoints, outcome::Error};

/// Writes one checkpoint at a time.
pub struct Saver {
    writing: Writing,
    interval: CheckpointInterval,
    /// Step of the newest state that was handed over, and when.
    handed: (u64, Instant),
    durable: Option<u64>,
}

enum Writing {
    Nothing(Box<Checkpoints>),
    Thread(JoinHandle<(Box<Checkpoints>, Result<u64, Error>)>),
    /// A write has failed; the run ends.
    Failed,
}

/// What to write.
pub struct Snapshot {
    /// Epochs that are done.
    pub epoch: u32,
    /// Optimiser steps that are done.
    pub step: u64,
    /// Whether this is the best epoch.
    pub is_best: bool,
    /// The state.
    pub checkpoint: Checkpoint,
}

impl Saver {
    /// Writes to these checkpoints, of which the one of step `durable` is the newest.
    pub fn new(checkpoints: Checkpoints, interval: CheckpointInterval, durable: Option<u64>) -> Self {
        Self {
            writing: Writing::Nothing(Box::new(checkpoints)),
            interval,
            handed: (durable.unwrap_or(0), Instant::now()),
            durable,
        }
    }

    /// Whether it is time for a checkpoint of `step`.
    pub fn is_due(&self, step: u64) -> bool {
        let (handed, at) = self.handed;
        at.elapsed() >= Duration::from_secs(self.interval.interval_seconds.into())
            || self.interval.interval_steps.is_some_and(|steps| step >= handed + steps)
    }

    /// Step of the newest state that was handed over to be written.
    pub fn handed(&self) -> u64 {
        self.handed.0
    }

    /// Begins to write a state, after the one before it is written.
    ///
    /// # Errors
    /// When the one before it cannot be written.
    pub fn save(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let mut checkpoints = self.idle()?;
        self.handed = (snapshot.step, Instant::now());
        let write = move || {
            let Snapshot { epoch, step, is_best, checkpoint } = snapshot;
            let begun = Instant::now();
            let done = checkpoints.save(epoch, step, checkpoint, is_best).map(|()| {
                info!(step, seconds = begun.elapsed().as_secs_f64(), "checkpoint written");
                step
            });
            (checkpoints, done)
        };
        let thread = thread::Builder::new().name("checkpoint".to_owned()).spawn(write);
        self.writing = Writing::Thread(thread.map_err(|error| Error::Internal(format!("no thread: {error}")))?);
        Ok(())
    }

    /// Step of the newest checkpoint that a crash leaves whole.
    ///
    /// # Errors
    /// When the last one could not be written.
    pub fn durable(&mut self) -> Result<Option<u64>, Error> {
        if matches!(&self.writing, Writing::Thread(thread) if thread.is_finished()) {
            self.wait()?;
        }
        Ok(self.durable)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// When the last one could not be written.
    pub fn wait(&mut self) -> Result<(), Error> {
        let checkpoints = self.idle()?;
        self.writing = Writing::Nothing(checkpoints);
        Ok(())
    }

    /// Step of the newest checkpoint that is whole, once nothing is being written, whether or not the last one failed.
    pub fn settled(&mut self) -> Option<u64> {
        // Whoever asks at the end of a run knows why it ends.
        drop(self.wait());
        self.durable
    }

    /// The checkpoints, after everything is written.
    ///
    /// # Errors
    /// When the last one could not be written.
    pub fn finish(mut self) -> Result<Checkpoints, Error> {
        Ok(*self.idle()?)
    }

    fn idle(&mut self) -> Result<Box<Checkpoints>, Error> {
        match std::mem::replace(&mut self.writing, Writing::Failed) {
            Writing::Nothing(checkpoints) => Ok(checkpoints),
            Writing::Thread(thread) => {
                let (checkpoints, done) = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
                self.durable = Some(done?);
                Ok(checkpoints)
            }
            Writing::Failed => Err(Error::Internal("an earlier checkpoint could not be written".to_owned())),
        }
    }
}

impl Drop for Saver {
    /// Whatever ends the run: what was handed over is still written.
    fn drop(&mut self) {
        if let Writing::Thread(thread) = std::mem::replace(&mut self.writing, Writing::Failed) {
            // Its own failure is no news where the run fails already.
            drop(thread.join());
        }
    }
}
