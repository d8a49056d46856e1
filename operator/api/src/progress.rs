//! What a training pod answers on `GET :9090/progress`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest answer that the operator reads, in bytes.
pub const MAX_BYTES: usize = 16 * 1024;

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Epochs that are done.
    pub epoch: i32,
    /// Epochs that the run will do.
    pub epochs: i32,
    /// Optimiser steps that are done, over all epochs.
    pub step: i64,
    /// Optimiser steps that the run will do, over all epochs.
    pub steps: i64,
    /// Optimiser step of the newest checkpoint: what a kill at this moment would not lose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<i64>,
    /// Optimiser step that this attempt went on from; absent where it began at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
    /// Optimiser steps that were done more than once, over all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_lost: Option<i64>,
    /// Mean training loss of the newest epoch, or of its steps so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Best validation accuracy so far, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<f64>,
    /// Training images per second, averaged over the last seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_per_second: Option<f64>,
    /// Share of the time of the last seconds in which the network waited for photos to be prepared, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_wait_share: Option<f64>,
    /// When the run will be done if it goes on at this rate.
    // `default` says to the schema, which sees only a date, that the field may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "date_time")]
    pub estimated_completion_time: Option<Timestamp>,
    /// When the trainer last moved.
    #[schemars(schema_with = "date_time")]
    pub last_update_time: Timestamp,
}

fn date_time(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time"})
}

/// An answer is no progress.
#[derive(Debug, thiserror::Error)]
pub enum NotProgress {
    /// It is not its JSON.
    #[error("the answer is no progress: {0}")]
    Json(#[from] serde_json::Error),
    /// Nothing can be done less than never.
    #[error("the answer is no progress: {0} is negative")]
    Negative(&'static str),
    /// The API server takes no such date.
    #[error("the answer is no progress: {0} is before 1970")]
    Early(&'static str),
}

impl Progress {
    /// Reads what a pod answers. Any image may answer, so that nothing passes which a status cannot hold.
    ///
    /// # Errors
    /// [`NotProgress`] when it is not the JSON of a [`Progress`], counts below zero or tells a time before 1970.
    pub fn parse(text: &str) -> Result<Self, NotProgress> {
        let progress: Self = serde_json::from_str(text)?;
        let counts = [
            ("epoch", Some(progress.epoch.into())),
            ("epochs", Some(progress.epochs.into())),
            ("step", Some(progress.step)),
            ("steps", Some(progress.steps)),
            ("checkpointStep", progress.checkpoint_step),
            ("resumedFromStep", progress.resumed_from_step),
            ("stepsLost", progress.steps_lost),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| count.is_some_and(|count: i64| count < 0)) {
            return Err(NotProgress::Negative(field));
        }
        let times = [
            ("estimatedCompletionTime", progress.estimated_completion_time),
            ("lastUpdateTime", Some(progress.last_update_time)),
        ];
        match times.into_iter().find(|(_, time)| time.is_some_and(|time| time < Timestamp::UNIX_EPOCH)) {
            Some((field, _)) => Err(NotProgress::Early(field)),
            None => Ok(progress),
        }
    }

    /// Whole percent of all steps that are done, 0 to 100.
    pub fn percent(&self) -> i64 {
        if self.steps <= 0 { 0 } else { (self.step.max(0).saturating_mul(100) / self.steps).clamp(0, 100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_no_status_could_hold_is_no_progress() {
        let answer = |field: &str, value: &str| {
            let mut all = serde_json::json!({
                "epoch": 1, "epochs": 2, "step": 3, "steps": 4, "lastUpdateTime": "2026-01-31T12:00:00Z"
            });
            all[field] = serde_json::from_str(value).expect("a value");
            Progress::parse(&all.to_string()).map_err(|problem| problem.to_string())
        };
        assert!(answer("loss", "1e308").is_ok_and(|progress| progress.loss == Some(1e308)));
        for (field, value, why) in [
            ("step", "-1", "step is negative"),
            ("epochs", "-2147483648", "epochs is negative"),
            ("stepsLost", "-9223372036854775808", "stepsLost is negative"),
            ("epoch", "2147483648", "invalid value"),
            ("step", "1.5", "invalid type"),
            ("lastUpdateTime", r#""-009999-01-02T01:59:59Z""#, "lastUpdateTime is before 1970"),
            ("estimatedCompletionTime", r#""1969-12-31T23:59:59Z""#, "estimatedCompletionTime is before 1970"),
            ("lastUpdateTime", "7", "invalid type"),
        ] {
            assert!(answer(field, value).is_err_and(|problem| problem.contains(why)), "{field}: {value}");
        }
        for text in ["", "null", "[]", "{\"loss\": NaN}", "{\"loss\": 1e999}", &"[".repeat(100_000)] {
            assert!(Progress::parse(text).is_err(), "{text:.40} was taken");
        }
    }

    #[test]
    fn percent_is_bounded_whatever_the_pod_says() {
        let at = |step, steps| Progress { epochs: 1, step, steps, ..Progress::default() }.percent();
        assert_eq!(at(1, 3), 33);
        assert_eq!(at(0, 0), 0);
        assert_eq!(at(-5, 10), 0);
        assert_eq!(at(i64::MAX, 1), 100);
    }
}
