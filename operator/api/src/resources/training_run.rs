//! `TrainingRun`: one training, from a dataset to a published checkpoint.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Output, PodTemplate, conditions_schema};
use crate::{
    dataset::Dataset, failure::FailureClass, hyperparameters::Hyperparameters, model::ModelSpec, progress::Progress,
    termination::RunResult,
};

/// Attempts that are kept in status; older ones go.
pub const MAX_ATTEMPTS: usize = 20;

/// One training, from a dataset to a published checkpoint.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "anneal.dev",
    version = "v1alpha1",
    kind = "TrainingRun",
    namespaced,
    status = "TrainingRunStatus",
    derive = "PartialEq",
    shortname = "trun",
    category = "anneal",
    doc = "One training, from a dataset to a published checkpoint.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress.percent"),
    printcolumn(name = "Epoch", type_ = "string", json_path = ".status.progress.epochOfEpochs"),
    printcolumn(name = "Loss", type_ = "number", json_path = ".status.progress.loss"),
    printcolumn(name = "Best", type_ = "number", json_path = ".status.progress.best"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name must be at most 40 characters: the names of Jobs and pods are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a letter and hold only a-z, 0-9 and -: the names of pods and Services are made from it")
)]
#[x_kube(
    validation = Rule::new("self.model.architecture != 'simple' || self.model.inputSize == 224").message("model.inputSize must be 224 for architecture simple; leave it out, or choose architecture improved, which takes any size"),
    validation = Rule::new("self.dataset.uri.matches('^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?|file:///.*|synthetic://([?][A-Za-z]+=[0-9]+(&[A-Za-z]+=[0-9]+)*)?)$')").message("dataset.uri must be pvc://CLAIM/PATH, file:///PATH or synthetic://?images=600&size=64"),
    validation = Rule::new("!self.dataset.uri.split('/').exists(part, part == '..')").message("dataset.uri must not contain a `..` part"),
    // The API server cuts a bound's fraction off before it compares a whole number with it.
    validation = Rule::new("self.hyperparameters.learningRate >= 0.000000001").message("hyperparameters.learningRate must be between 0.000000001 and 100"),
    validation = Rule::new("self.hyperparameters.validationShare >= 0.01").message("hyperparameters.validationShare must be between 0.01 and 0.5"),
    validation = Rule::new("self.model == oldSelf.model").message("model is immutable; create a new TrainingRun"),
    validation = Rule::new("self.dataset == oldSelf.dataset").message("dataset is immutable; create a new TrainingRun"),
    validation = Rule::new("self.hyperparameters == oldSelf.hyperparameters").message("hyperparameters are immutable; create a new TrainingRun"),
    validation = Rule::new("self.output == oldSelf.output").message("output is immutable; create a new TrainingRun"),
    validation = Rule::new("self.numNodes == oldSelf.numNodes").message("numNodes is immutable; create a new TrainingRun"),
    validation = Rule::new("self.numNodes == 1 || (has(self.podTemplate) && has(self.podTemplate.image))").message("numNodes above 1 needs podTemplate.image: Anneal's own trainer trains in one pod; bring an image whose program spreads the training over nodes, as torchrun does")
)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRunSpec {
    /// The network: its architecture and the size of its input.
    #[serde(default)]
    pub model: ModelSpec,
    /// What to train on.
    pub dataset: Dataset,
    /// How to train.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Where checkpoints and reports go.
    pub output: Output,
    /// Pods that train together. Above 1 each gets torchrun's `PET_*` variables and finds the others by the Service
    /// `RUN-nodes`; one that fails ends the attempt for all.
    #[serde(default = "one_node")]
    #[schemars(range(min = 1, max = 256))]
    pub num_nodes: i32,
    /// What to say about the training pod.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// How often a run that failed for a reason that may pass is tried again.
    #[serde(default = "default_max_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub max_retries: i32,
    /// Seconds that one attempt may take, the wait for its pod included. An attempt that takes longer ends the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
}

fn one_node() -> i32 {
    1
}

fn default_max_retries() -> i32 {
    3
}

/// Where a run stands. Derived from what was observed; only the end is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RunPhase {
    /// Something that the run needs is not there yet.
    Pending,
    /// The Job exists; its pod is not running yet.
    Preparing,
    /// The pod trains.
    Running,
    /// An attempt failed; the next one starts after a pause.
    Retrying,
    /// The model is published.
    Succeeded,
    /// The run failed and is not tried again.
    Failed,
}

impl RunPhase {
    /// Whether the run is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// The word, for columns and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preparing => "Preparing",
            Self::Running => "Running",
            Self::Retrying => "Retrying",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

impl TrainingRun {
    /// Name of the claim that the run writes to.
    pub fn output_claim(&self) -> String {
        self.spec.output.claim(self.metadata.name.as_deref().unwrap_or_default())
    }
}

/// What the operator knows about a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrainingRunStatus {
    /// Where the run stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RunPhase>,
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Progressing, Stalled, Complete, Failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Number of the newest attempt, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// Attempts that ended, oldest first; the newest 20 are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub attempts: Vec<Attempt>,
    /// How far the newest attempt is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// What the run gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Digest of the image that made the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image_id: Option<String>,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// One attempt that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Number of the attempt, counted from 1.
    pub number: i32,
    /// When its Job was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    pub end_time: Time,
    /// Why it ended, where it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<FailureClass>,
    /// Exit code of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Node that it ran on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// What happened, and what to do.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    #[schemars(length(max = 2048))]
    pub message: String,
}

/// [`Progress`] with the two columns that `kubectl get` prints of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// Steps done of all steps, as text: `45%`.
    #[schemars(length(max = 8))]
    pub percent: String,
    /// Epochs done of all epochs, as text: `4/10`.
    #[schemars(length(max = 24))]
    pub epoch_of_epochs: String,
    /// What the pod said.
    #[serde(flatten)]
    pub reported: Progress,
}

impl From<Progress> for ProgressStatus {
    fn from(reported: Progress) -> Self {
        let round = |value: f64| (value * 1e4).round() / 1e4;
        Self {
            percent: format!("{}%", reported.percent()),
            epoch_of_epochs: format!("{}/{}", reported.epoch, reported.epochs),
            // Four digits are what a column can show, and what a person reads.
            reported: Progress {
                loss: reported.loss.filter(|v| v.is_finite()).map(round),
                best: reported.best.filter(|v| v.is_finite()).map(round),
                images_per_second: reported
                    .images_per_second
                    .filter(|v| v.is_finite())
                    .map(|v| (v * 10.0).round() / 10.0),
                ..reported
            },
        }
    }
}
