//! The one JSON object that a pod leaves behind in its termination message.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Sha256,
    failure::{Failure, FailureClass},
    smoke::SmokeReport,
};

/// Largest message that a pod writes, in bytes. The kubelet keeps only the last 4,096 bytes of a longer one, which
/// would no longer be JSON.
pub const MAX_BYTES: usize = 3 * 1024;

/// What a pod says when it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TerminationMessage {
    /// A training run is done.
    Result(RunResult),
    /// The process ended without a result.
    Failure(Failure),
    /// A smoke test came to a verdict.
    Smoke(SmokeReport),
}

/// What a finished training run gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunResult {
    /// Path of the published checkpoint, relative to the root of the output claim: `models/<sha256>.pth`.
    #[schemars(length(max = 256))]
    pub checkpoint: String,
    /// SHA-256 of the published checkpoint.
    pub sha256: Sha256,
    /// Size of the published checkpoint in bytes.
    pub bytes: i64,
    /// Classes in the order of the model's outputs.
    #[schemars(length(max = 1000), inner(length(max = 255)))]
    pub classes: Vec<String>,
    /// Metrics of the published checkpoint on the test set, or on the validation set where there is no test set.
    pub metrics: Metrics,
    /// What it was trained on.
    pub dataset: DatasetResult,
    /// Seed of every random draw.
    pub seed: i64,
    /// Epochs that were trained, those of earlier attempts included.
    pub epochs: i32,
    /// SHA-256 of the configuration file that it was trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_sha256: Option<Sha256>,
    /// Optimiser step that the last attempt went on from; absent where one attempt did it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
    /// Whether the weights are bit for bit those of a run that was never interrupted; false where an attempt went on
    /// with another processor, count of threads or libtorch than the one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Optimiser steps that were done more than once, over all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_lost: Option<i64>,
}

/// Classification metrics, macro-averaged over classes, each between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Share of images whose class was right.
    pub accuracy: f64,
    /// Mean over classes of true positives by predicted positives.
    pub precision: f64,
    /// Mean over classes of true positives by actual positives.
    pub recall: f64,
    /// Mean over classes of the harmonic mean of precision and recall.
    pub f1: f64,
}

/// What a run was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetResult {
    /// `sha256:` and the digest of the sorted list of files, each with its own digest.
    #[schemars(length(max = 80))]
    pub digest: String,
    /// Images that were read, all splits together.
    pub images: i64,
    /// Files that were skipped because no image could be read from them.
    pub skipped: i64,
}

/// A message is not one of ours.
#[derive(Debug, thiserror::Error)]
#[error("the termination message is not one of Anneal's: {0}")]
pub struct NotOurs(#[from] serde_json::Error);

impl TerminationMessage {
    /// A failure with its message cut so that the whole stays within [`MAX_BYTES`].
    pub fn failure(class: FailureClass, message: impl Into<String>) -> Self {
        Self::Failure(Failure::new(class, cut(&message.into(), 2048)))
    }

    /// The message as JSON of at most [`MAX_BYTES`] bytes.
    ///
    /// # Errors
    /// When a part of it cannot be written as JSON, or the list of classes makes it too long.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let text = serde_json::to_string(self)?;
        if text.len() <= MAX_BYTES {
            return Ok(text);
        }
        let failure = match self {
            // Escapes can triple a message: cut it until it fits.
            Self::Failure(failure) => Self::Failure(Failure { message: cut(&failure.message, 400), ..failure.clone() }),
            Self::Smoke(report) => Self::Smoke(report.shortened()),
            Self::Result(result) => Self::Result(RunResult { classes: Vec::new(), ..result.clone() }),
        };
        serde_json::to_string(&failure)
    }

    /// Reads the message that a container left behind.
    ///
    /// # Errors
    /// [`NotOurs`] when it is not the JSON of a [`TerminationMessage`]; another image may write what it likes.
    pub fn parse(text: &str) -> Result<Self, NotOurs> {
        Ok(serde_json::from_str(text.trim())?)
    }
}

/// The text, cut to at most `bytes` bytes at a character's boundary.
pub fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_failure_always_fits_into_what_the_kubelet_keeps(message in "\\PC{0,6000}") {
            let json = TerminationMessage::failure(FailureClass::AppError, message).to_json().expect("json");
            prop_assert!(json.len() <= MAX_BYTES, "{} bytes", json.len());
            prop_assert!(TerminationMessage::parse(&json).is_ok());
        }

        #[test]
        fn cutting_never_splits_a_character(text in "\\PC{0,64}", bytes in 3_usize..80) {
            prop_assert!(cut(&text, bytes).len() <= bytes.max(text.len().min(bytes)));
        }
    }

    #[test]
    fn another_images_last_words_are_not_taken_for_ours() {
        for text in ["", "Killed", "{}", r#"{"result":1}"#, "[1"] {
            assert!(TerminationMessage::parse(text).is_err(), "{text} was taken");
        }
    }
}
