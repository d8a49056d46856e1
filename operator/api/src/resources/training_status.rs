//! What the operator knows about a run: its phase, conditions, attempts and progress.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{InitCheckpoint, conditions_schema};
use crate::{Sha256, failure::FailureClass, progress::Progress, termination::RunResult};

/// Attempts that are kept in status; older ones go.
pub const MAX_ATTEMPTS: usize = 20;
/// Longest tail of an attempt's log in status, in bytes.
pub const MAX_LOG: usize = 4096;

/// The types of a run's conditions. `Ready`, `Progressing` and `Stalled` are what kstatus reads.
pub mod run_condition {
    /// The run has succeeded.
    pub const READY: &str = "Ready";
    /// The run moves by itself.
    pub const PROGRESSING: &str = "Progressing";
    /// Nothing of the run is running, because it is suspended.
    pub const SUSPENDED: &str = "Suspended";
    /// The run has succeeded: what `kubectl wait --for=condition=Complete` waits for.
    pub const COMPLETE: &str = "Complete";
    /// The run has failed for good.
    pub const FAILED: &str = "Failed";
    /// Nothing moves until somebody changes something.
    pub const STALLED: &str = "Stalled";
}

/// The reasons of a run's conditions, beside the words of [`FailureClass`] and of what the API server refuses.
pub mod run_reason {
    /// The claim does not exist.
    pub const CLAIM_NOT_FOUND: &str = "ClaimNotFound";
    /// The claim is being deleted.
    pub const CLAIM_DELETING: &str = "ClaimDeleting";
    /// The claim lost its volume.
    pub const CLAIM_LOST: &str = "ClaimLost";
    /// The checkpoint to begin with is known now.
    pub const INIT_FOUND: &str = "InitFound";
    /// The run whose model is to be begun with failed.
    pub const INIT_RUN_FAILED: &str = "InitRunFailed";
    /// The run whose model is to be begun with does not exist.
    pub const INIT_RUN_NOT_FOUND: &str = "InitRunNotFound";
    /// The run whose model is to be begun with has not succeeded yet.
    pub const INIT_RUN_NOT_READY: &str = "InitRunNotReady";
    /// The run whose model is to be begun with published none.
    pub const INIT_RUN_WITHOUT_MODEL: &str = "InitRunWithoutModel";
    /// The configuration cannot be written.
    pub const INVALID_CONFIGURATION: &str = "InvalidConfiguration";
    /// The Job is there, its pod is not yet.
    pub const JOB_CREATED: &str = "JobCreated";
    /// Somebody else suspended the Job, a queue for example.
    pub const JOB_SUSPENDED: &str = "JobSuspended";
    /// The pod starts.
    pub const POD_STARTING: &str = "PodStarting";
    /// A pod of an earlier attempt has not stopped yet.
    pub const POD_STOPPING: &str = "PodStopping";
    /// The pod is started again, because `podTemplate` changed before it ran.
    pub const POD_TEMPLATE_CHANGED: &str = "PodTemplateChanged";
    /// The model is published.
    pub const PUBLISHED: &str = "Published";
    /// `spec.suspend` is true and the pod is writing its last checkpoint.
    pub const SUSPENDING: &str = "Suspending";
    /// `spec.suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// The pod trains.
    pub const TRAINING: &str = "Training";
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
    /// The run is to be suspended; its pod has not ended yet.
    Suspending,
    /// Nothing runs until the run is resumed.
    Suspended,
    /// An attempt failed; the next one starts after a pause.
    Retrying,
    /// The model is published.
    Succeeded,
    /// The run failed and is not tried again.
    Failed,
}

impl RunPhase {
    /// Every phase, in the order of a run's life.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Preparing,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
    ];

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
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Retrying => "Retrying",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// What the operator knows about a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct TrainingRunStatus {
    /// Where the run stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RunPhase>,
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Progressing, Suspended, Complete, Failed, Stalled.
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
    /// How many attempts failed, by class, also those that `attempts` no longer shows: what the limits of retries are
    /// held against. What was suspended is not among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["class"]))]
    pub failures: Vec<FailureCount>,
    /// The attempt that is due or under way.
    // Boxed, like its progress: most runs are over, and ten thousand of them are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_attempt: Option<Box<CurrentAttempt>>,
    /// How far the newest attempt is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Box<ProgressStatus>>,
    /// What the run gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<RunResult>,
    /// Digest of the image that the newest pod runs or ran: the one that made the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image_id: Option<String>,
    /// The checkpoint that the run begins with, where `spec.initFrom` asks for one: written down before the first
    /// attempt, so that every attempt begins with the same weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<InitCheckpoint>,
    /// SHA-256 of the trainer's configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_sha256: Option<Sha256>,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run last went on after it was suspended. The active deadline counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_time: Option<Time>,
    /// When the run was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// How many attempts failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureCount {
    /// The failure class that is counted.
    pub class: FailureClass,
    /// How many attempts.
    #[schemars(range(min = 0))]
    pub count: i32,
}

/// The attempt that is due or under way: what must be known of it when its pod, its Job or the operator is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CurrentAttempt {
    /// Number of the attempt, counted from 1.
    pub number: i32,
    /// Since when it is due. The start deadline counts from here.
    pub due_time: Time,
    /// When its pod began to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_time: Option<Time>,
    /// Node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Optimiser step that it went on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
    /// Why the cluster takes its pod away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disruption: Option<Disruption>,
    /// Why the operator ends it before its time. Written before anything is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// Why the cluster takes a pod away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// The failure class.
    pub class: FailureClass,
    /// What the cluster says.
    #[schemars(length(max = 2048))]
    pub message: String,
}

/// What the operator ends an attempt for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StopReason {
    /// The run is suspended.
    Suspend,
    /// `podTemplate` changed before the pod ran.
    Replace,
    /// A deadline has passed.
    Deadline,
}

/// An end that the operator has decided upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// What the attempt is ended for: Suspend, Replace or Deadline.
    pub reason: StopReason,
    /// The failure class of the attempt once it has ended.
    pub class: FailureClass,
    /// What happened, and what to do.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// When it was decided.
    pub time: Time,
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
    /// Optimiser step that it went on from; absent where it began at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
    /// Last optimiser step that is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// Optimiser step of the newest checkpoint that it left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<i64>,
    /// Optimiser steps that it did and that its successor had to do again, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_lost: Option<i64>,
    /// What happened, and what to do.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    #[schemars(length(max = 2048))]
    pub message: String,
    /// The end of its log, where `spec.failureLogLines` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log: Option<String>,
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
                data_wait_share: reported.data_wait_share.filter(|v| v.is_finite()).map(round),
                ..reported
            },
        }
    }
}
