//! How far a run is: what `/progress` and `/metrics` answer, the bar on a terminal, and the lines in a log.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{IsTerminal, stderr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anneal_api::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use tracing::info;

use crate::history::Epoch;

/// The rate is averaged over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Between two lines in a log.
const QUIET: Duration = Duration::from_secs(10);

/// What others read of a run's progress.
pub type Shared = Arc<Mutex<Progress>>;

/// Follows one run.
pub struct Tracker {
    shared: Shared,
    recent: VecDeque<Point>,
    /// Of this attempt so far.
    images: i64,
    waited: Duration,
    /// How long the epochs before this one were trained, and how long the network waited in them.
    earlier: Waiting,
    /// Where the epoch's training began.
    epoch_began: Point,
    last_line: Instant,
    bar: ProgressBar,
    on_terminal: bool,
}

/// What was done up to a moment.
#[derive(Clone, Copy)]
struct Point {
    at: Instant,
    images: i64,
    /// How long the network waited for photos.
    waited: Duration,
}

impl Point {
    fn waiting_since(&self, earlier: &Self) -> Waiting {
        Waiting { of: self.at - earlier.at, waited: self.waited.saturating_sub(earlier.waited) }
    }
}

/// For how much of a time the network waited for photos.
#[derive(Clone, Copy, Default)]
struct Waiting {
    of: Duration,
    waited: Duration,
}

impl Waiting {
    fn share(&self) -> Option<f64> {
        (!self.of.is_zero()).then(|| (self.waited.as_secs_f64() / self.of.as_secs_f64()).min(1.0))
    }

    fn and(&self, other: &Self) -> Self {
        Self { of: self.of + other.of, waited: self.waited + other.waited }
    }
}

/// How fast an epoch was trained.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Images per second, over the epoch's last seconds.
    pub images_per_second: Option<f64>,
    /// Share of the time of the epoch's training in which the network waited for photos.
    pub data_wait_share: Option<f64>,
}

/// A run that has not begun.
pub fn not_begun(epochs: i32) -> Shared {
    Arc::new(Mutex::new(Progress { epochs, last_update_time: Timestamp::now(), ..Progress::default() }))
}

/// Changes what is shared.
pub fn change(shared: &Shared, change: impl FnOnce(&mut Progress)) {
    change(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Says that the run has moved, though nothing that is counted has changed.
pub fn touch(shared: &Shared) {
    change(shared, |progress| progress.last_update_time = Timestamp::now());
}

/// A copy of what is shared.
pub fn snapshot(shared: &Shared) -> Progress {
    shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A bar for counting photos while they are loaded; it stays hidden where no terminal is.
pub fn loading_bar(photos: usize) -> ProgressBar {
    bar(photos as u64, "decoding {bar:40} {pos}/{len} photos, {per_sec}, {eta} left")
}

/// A bar for counting files while they are downloaded.
pub fn download_bar(files: usize) -> ProgressBar {
    bar(files as u64, "downloading {bar:40} {pos}/{len} files, {per_sec}, {eta} left")
}

/// A bar for counting photos while they are classified.
pub fn answering_bar(photos: usize) -> ProgressBar {
    bar(photos as u64, "classifying {bar:40} {pos}/{len} photos, {per_sec}, {eta} left")
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = if stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    ProgressStyle::with_template(template).map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

impl Tracker {
    /// Follows a run that has done `epoch` epochs and `step` of `steps` optimiser steps.
    pub fn new(shared: Shared, epoch: u32, step: u64, steps: u64, best: Option<f64>) -> Self {
        let bar = bar(steps, "epoch {prefix} {bar:40} {pos}/{len} steps, {msg}, {eta} left");
        bar.set_position(step);
        bar.reset_eta();
        let begin = Point { at: Instant::now(), images: 0, waited: Duration::ZERO };
        let tracker = Self {
            shared,
            recent: VecDeque::from([begin]),
            images: 0,
            waited: Duration::ZERO,
            earlier: Waiting::default(),
            epoch_began: begin,
            last_line: begin.at,
            bar,
            on_terminal: stderr().is_terminal(),
        };
        tracker.change(|progress| {
            progress.epoch = i32::try_from(epoch).unwrap_or(i32::MAX);
            progress.step = whole(step);
            progress.steps = whole(steps);
            progress.best = best;
        });
        tracker
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self::change(&self.shared, |progress| {
            change(progress);
            progress.last_update_time = Timestamp::now();
        });
    }

    fn now(&self) -> Point {
        Point { at: Instant::now(), images: self.images, waited: self.waited }
    }

    /// An optimiser step is done, for whose images the network waited so long; `loss` is the mean of the epoch so far.
    pub fn step(&mut self, images: usize, waited: Duration, loss: f64) {
        self.images += whole(images as u64);
        self.waited += waited;
        let point = self.now();
        let now = point.at;
        self.recent.push_back(point);
        while self.recent.len() > 2 && now - self.recent[0].at > WINDOW {
            self.recent.pop_front();
        }
        let since = self.recent[0];
        let seconds = (now - since.at).as_secs_f64();
        let rate = rate(self.images - since.images, seconds);
        let steps_per_second = rate_of_steps(self.recent.len(), seconds);
        self.change(|progress| {
            progress.step += 1;
            progress.loss = Some(loss);
            progress.images_per_second = rate;
            progress.data_wait_share = point.waiting_since(&since).share();
            progress.estimated_completion_time = steps_per_second.and_then(|rate| finish(progress, rate));
        });
        self.bar.inc(1);
        self.bar.set_message(format!("loss {loss:.4}, {:.0} images/s", rate.unwrap_or_default()));
        if !self.on_terminal && now - self.last_line >= QUIET {
            self.last_line = now;
            let progress = snapshot(&self.shared);
            info!(step = progress.step, steps = progress.steps, loss, images_per_second = rate, "training");
        }
    }

    /// The checkpoint of this step is what a kill would not lose.
    pub fn durable(&self, step: Option<u64>) {
        if let Some(step) = step {
            change(&self.shared, |progress| progress.checkpoint_step = Some(whole(step)));
        }
    }

    /// The run went on from a step, and this many steps were done twice.
    pub fn resumed(&self, from: Option<u64>, lost: u64) {
        change(&self.shared, |progress| {
            progress.resumed_from_step = from.map(whole);
            progress.steps_lost = Some(whole(lost));
        });
    }

    /// A new epoch begins, counted from 1; the time since the last step was for something else.
    pub fn begin_epoch(&mut self, epoch: u32, epochs: u32) {
        self.earlier = self.earlier.and(&self.in_epoch());
        self.epoch_began = self.now();
        self.recent = VecDeque::from([self.epoch_began]);
        self.bar.set_prefix(format!("{epoch}/{epochs}"));
    }

    /// An epoch is done, counted from 1; tells how fast it was trained.
    pub fn epoch(&mut self, epoch: u32, result: &Epoch, best: Option<f64>) -> Speed {
        self.change(|progress| {
            progress.epoch = i32::try_from(epoch).unwrap_or(i32::MAX);
            progress.loss = Some(result.train_loss);
            progress.best = best;
        });
        self.last_line = Instant::now();
        let Epoch { train_loss, train_acc, val_loss, val_acc } = *result;
        let images_per_second = snapshot(&self.shared).images_per_second;
        let data_wait_share = self.in_epoch().share();
        self.bar.suspend(|| {
            info!(
                epoch,
                train_loss, train_acc, val_loss, val_acc, best, images_per_second, data_wait_share, "epoch done"
            );
        });
        Speed { images_per_second, data_wait_share }
    }

    /// Share of the time of this attempt's training in which the network waited for photos.
    pub fn data_wait_share(&self) -> Option<f64> {
        self.earlier.and(&self.in_epoch()).share()
    }

    /// Of the epoch's training, which ended with its last step so far.
    fn in_epoch(&self) -> Waiting {
        self.recent.back().map_or_else(Waiting::default, |last| last.waiting_since(&self.epoch_began))
    }

    /// Training is over.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A count as the API writes it.
pub fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts of images")]
fn rate(images: i64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| images as f64 / seconds)
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn rate_of_steps(points: usize, seconds: f64) -> Option<f64> {
    (seconds > 0.0 && points > 1).then(|| (points - 1) as f64 / seconds)
}

#[expect(clippy::cast_precision_loss, reason = "a count of steps")]
fn finish(progress: &Progress, steps_per_second: f64) -> Option<Timestamp> {
    let left = (progress.steps - progress.step).max(0) as f64 / steps_per_second;
    let left = SignedDuration::try_from_secs_f64(left.round()).ok()?;
    Timestamp::now().checked_add(left).ok()
}

/// The progress in Prometheus' text format.
pub fn metrics(progress: &Progress) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of steps")]
    let float = |count: i64| count as f64;
    let gauges = [
        ("epoch", "Epochs that are done.", Some(f64::from(progress.epoch))),
        ("epochs", "Epochs that the run will do.", Some(f64::from(progress.epochs))),
        ("step", "Optimiser steps that are done.", Some(float(progress.step))),
        ("steps", "Optimiser steps that the run will do.", Some(float(progress.steps))),
        ("checkpoint_step", "Optimiser step of the newest checkpoint.", progress.checkpoint_step.map(float)),
        ("steps_lost", "Optimiser steps that were done more than once.", progress.steps_lost.map(float)),
        ("loss", "Mean training loss of the newest epoch.", progress.loss),
        ("best_accuracy", "Best validation accuracy so far.", progress.best),
        ("images_per_second", "Training images per second.", progress.images_per_second),
        ("data_wait_share", "Share of the time in which the network waits for photos.", progress.data_wait_share),
    ];
    gauges.into_iter().fold(String::new(), |mut text, (name, help, value)| {
        if let Some(value) = value {
            let name = format!("anneal_training_{name}");
            // Writing to a String cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: Epoch = Epoch { train_loss: 0.5, train_acc: 0.7, val_loss: 0.6, val_acc: 0.8 };

    #[test]
    fn a_run_is_followed_from_where_it_went_on() {
        let shared = not_begun(4);
        let mut tracker = Tracker::new(shared.clone(), 2, 20, 40, Some(0.75));
        tracker.begin_epoch(3, 4);
        for _ in 0..10 {
            tracker.step(32, Duration::ZERO, 0.6);
        }
        let progress = snapshot(&shared);
        assert_eq!(progress.data_wait_share, Some(0.0));
        assert_eq!((progress.epoch, progress.step, progress.percent()), (2, 30, 75));
        assert!(progress.images_per_second.is_some_and(|rate| rate > 0.0));
        assert!(progress.estimated_completion_time.is_some());
        tracker.epoch(3, &RESULT, Some(0.8));
        let progress = snapshot(&shared);
        assert_eq!((progress.epoch, progress.loss, progress.best), (3, Some(0.5), Some(0.8)));
    }

    #[test]
    fn a_network_that_does_nothing_but_wait_waits_all_the_time() {
        let shared = not_begun(1);
        let mut tracker = Tracker::new(shared.clone(), 0, 0, 2, None);
        tracker.begin_epoch(1, 1);
        tracker.step(32, tracker.epoch_began.at.elapsed(), 0.6);
        let share = snapshot(&shared).data_wait_share.expect("a share");
        assert!(share > 0.0 && share <= 1.0, "{share}");
        assert!(metrics(&snapshot(&shared)).contains("anneal_training_data_wait_share 0."), "{share}");
    }

    #[test]
    fn what_is_waited_for_photos_is_told_of_each_epoch_and_of_all_without_what_lies_between_them() {
        let second = Duration::from_secs(1);
        let mut tracker = Tracker::new(not_begun(2), 0, 0, 2, None);
        assert_eq!(tracker.data_wait_share(), None);
        let mut shares = Vec::new();
        for (epoch, of, waited) in [(1, 4, 1), (2, 6, 4)] {
            // What lies between the epochs, such as validation, is no training.
            tracker.begin_epoch(epoch, 2);
            tracker.waited += waited * second;
            let end = Point { at: tracker.epoch_began.at + of * second, ..tracker.now() };
            tracker.recent.push_back(end);
            shares.push(tracker.epoch(epoch, &RESULT, None).data_wait_share);
        }
        assert_eq!(shares, [Some(1.0 / 4.0), Some(4.0 / 6.0)]);
        assert_eq!(tracker.data_wait_share(), Some(5.0 / 10.0));
    }

    #[test]
    fn metrics_name_only_what_is_known() {
        let text = metrics(&snapshot(&not_begun(4)));
        assert!(text.contains("anneal_training_epochs 4\n"));
        assert!(!text.contains("anneal_training_loss"));
    }
}
