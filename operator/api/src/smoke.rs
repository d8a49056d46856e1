//! What a smoke test asks of the pods that will take the traffic, and what it reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::termination::cut;

/// What `anneal-server smoke --config` reads, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SmokeConfig {
    /// Revision that every answer must name in its [`crate::names::REVISION_HEADER`].
    pub revision: String,
    /// Base addresses of the pods under test, such as `http://10.0.0.7:8000`. Each is asked every case.
    pub targets: Vec<String>,
    /// Name of the model, for cases with tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The cases; none means the default gate only.
    pub cases: Vec<SmokeCase>,
    /// Bound on the 95th percentile of the time of an answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_p95_milliseconds: Option<i32>,
    /// Time within which the whole test must come to a verdict.
    pub timeout_seconds: i32,
}

/// One case: an image, or tensors, and what the model must say about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SmokeCase {
    /// Name of the case, for the report.
    pub name: String,
    /// Path of the image file in the smoke pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Path of a file in the smoke pod that holds the JSON to infer from, in place of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<String>,
    /// Class that the model must predict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_class: Option<String>,
    /// Least probability of the expected (or else the predicted) class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_probability: Option<f64>,
    /// Probability that it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<Probability>,
}

/// A probability, with how much it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probability {
    /// The probability.
    pub value: f64,
    /// How much more or less it may be.
    pub tolerance: f64,
}

/// How a smoke test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Every case passed on every pod.
    Passed,
    /// A pod gave a wrong answer.
    Failed,
    /// No answer could be had, so that nothing is known about the model.
    Inconclusive,
}

impl Verdict {
    /// The word, for columns and Events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "Passed",
            Self::Failed => "Failed",
            Self::Inconclusive => "Inconclusive",
        }
    }
}

/// What a smoke test found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SmokeReport {
    /// How it ended.
    pub verdict: Verdict,
    /// Checks that passed.
    pub passed: i32,
    /// Checks that failed.
    pub failed: i32,
    /// 95th percentile of the time of an answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_milliseconds: Option<f64>,
    /// The first failures, or a sentence about the success.
    #[schemars(length(max = 2048))]
    pub message: String,
}

impl SmokeReport {
    /// The same with a short message.
    #[must_use]
    pub fn shortened(&self) -> Self {
        Self { message: cut(&self.message, 400), ..self.clone() }
    }
}
