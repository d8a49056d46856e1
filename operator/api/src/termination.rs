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
    /// Best validation accuracy of all epochs, 0 to 1; absent where the image does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<f64>,
    /// Mean training loss of the last epoch; absent where the image does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
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
pub enum NotOurs {
    /// It is not the JSON of one.
    #[error("the termination message is not one of Anneal's: {0}")]
    Json(#[from] serde_json::Error),
    /// A result that no status could hold.
    #[error("the termination message is not one of Anneal's: {0} of its result {1}")]
    Result(&'static str, &'static str),
}

/// Longest message of a failure or a smoke test that a status takes, in bytes.
const MAX_MESSAGE: usize = 2048;
/// Longest path of a checkpoint, in bytes.
const MAX_PATH: usize = 256;
/// Most classes, and the longest name of one in bytes.
const MAX_CLASSES: usize = 1000;
const MAX_CLASS: usize = 255;
/// Longest digest of a dataset, in bytes.
const MAX_DIGEST: usize = 80;

impl TerminationMessage {
    /// A failure with its message cut so that the whole stays within [`MAX_BYTES`].
    pub fn failure(class: FailureClass, message: impl Into<String>) -> Self {
        Self::Failure(Failure::new(class, cut(&message.into(), MAX_MESSAGE)))
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

    /// Reads the message that a container left behind. Any image may write one, so that what passes fits into a status and
    /// moves no terminal's cursor.
    ///
    /// # Errors
    /// [`NotOurs`] when it is not the JSON of a [`TerminationMessage`], or its result is beyond what a status takes.
    pub fn parse(text: &str) -> Result<Self, NotOurs> {
        Ok(match serde_json::from_str(text.trim())? {
            Self::Failure(failure) => Self::Failure(Failure { message: shown(&failure.message), ..failure }),
            Self::Smoke(report) => Self::Smoke(SmokeReport { message: shown(&report.message), ..report }),
            Self::Result(result) => Self::Result(result.checked()?),
        })
    }
}

impl RunResult {
    fn checked(self) -> Result<Self, NotOurs> {
        let is_below = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let is_shown = |text: &str| !text.contains(char::is_control);
        let Self { checkpoint, classes, dataset, .. } = &self;
        let wrong = if checkpoint.len() > MAX_PATH || !is_below(checkpoint) || !is_shown(checkpoint) {
            Some(("checkpoint", "is no path below the output claim, or too long"))
        } else if classes.len() > MAX_CLASSES {
            Some(("classes", "are too many"))
        } else if classes.iter().any(|class| class.len() > MAX_CLASS || !is_shown(class)) {
            Some(("classes", "have a name that is too long or has control characters"))
        } else if dataset.digest.len() > MAX_DIGEST || !is_shown(&dataset.digest) {
            Some(("dataset.digest", "is no digest"))
        } else {
            None
        };
        wrong.map_or(Ok(self), |(field, why)| Err(NotOurs::Result(field, why)))
    }
}

/// A message as it may be shown: what would move a terminal's cursor is replaced, and it is as long as a status takes.
fn shown(text: &str) -> String {
    let harmless = |letter: char| matches!(letter, '\n' | '\t') || !letter.is_control();
    let text: String = text.chars().map(|letter| if harmless(letter) { letter } else { '\u{fffd}' }).collect();
    cut(&text, MAX_MESSAGE)
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
    use serde_json::{Value, json};

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
    fn a_message_moves_no_cursor_and_fits_into_a_status() {
        let said = json!({"failure": {"class": "AppError", "message": format!("red\u{1b}[31m\0\r\nnext\tcolumn{}", "é".repeat(2000))}});
        let Ok(TerminationMessage::Failure(failure)) = TerminationMessage::parse(&said.to_string()) else {
            panic!("it is one of ours")
        };
        assert!(failure.message.starts_with("red\u{fffd}[31m\u{fffd}\u{fffd}\nnext\tcolumn"), "{}", failure.message);
        assert!(failure.message.len() <= MAX_MESSAGE);
    }

    #[test]
    fn a_result_that_no_status_could_hold_is_none() {
        let result = |field: &str, value: Value| {
            let mut result = json!({
                "checkpoint": "models/a.pth", "sha256": "0".repeat(64), "bytes": 1, "classes": ["cat"], "seed": 0, "epochs": 1,
                "metrics": {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0},
                "dataset": {"digest": "", "images": 1, "skipped": 0},
            });
            *result.pointer_mut(field).expect("a field") = value;
            TerminationMessage::parse(&json!({"result": result}).to_string()).map_err(|problem| problem.to_string())
        };
        assert!(result("/checkpoint", json!("models/b.pth")).is_ok());
        assert!(result("/classes", json!(vec!["é"; 1000])).is_ok());
        for (field, value) in [
            ("/checkpoint", json!("m".repeat(257))),
            ("/checkpoint", json!("models/../../etc/passwd")),
            ("/checkpoint", json!("/etc/passwd")),
            ("/checkpoint", json!("models/\u{1b}[2J.pth")),
            ("/classes", json!(vec![""; 1001])),
            ("/classes", json!(["c".repeat(256)])),
            ("/classes", json!(["cat\n"])),
            ("/dataset/digest", json!("d".repeat(81))),
            ("/sha256", json!("no digest")),
        ] {
            assert!(result(field, value.clone()).is_err(), "{field}: {value} was taken");
        }
    }

    #[test]
    fn another_images_last_words_are_not_taken_for_ours() {
        for text in ["", "Killed", "{}", r#"{"result":1}"#, "[1"] {
            assert!(TerminationMessage::parse(text).is_err(), "{text} was taken");
        }
    }
}
