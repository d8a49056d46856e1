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

impl Progress {
    /// Whole percent of all steps that are done, 0 to 100.
    pub fn percent(&self) -> i64 {
        if self.steps <= 0 { 0 } else { (self.step.max(0).saturating_mul(100) / self.steps).clamp(0, 100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_bounded_whatever_the_pod_says() {
        let at = |step, steps| Progress { epochs: 1, step, steps, ..Progress::default() }.percent();
        assert_eq!(at(1, 3), 33);
        assert_eq!(at(0, 0), 0);
        assert_eq!(at(-5, 10), 0);
        assert_eq!(at(i64::MAX, 1), 100);
    }
}
