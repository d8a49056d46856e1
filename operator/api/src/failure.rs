//! Why a run or a server ended, in words that a person and a program can act on, and the exit codes that carry them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a container ended without a result.
///
/// The first group is told by the process itself through its termination message and exit code; the second is what
/// only the cluster sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FailureClass {
    /// The configuration cannot be used.
    BadConfig,
    /// The dataset does not exist or is empty.
    DataMissing,
    /// The dataset cannot be read or makes no sense.
    DataCorrupt,
    /// The loss became NaN or infinite.
    Diverged,
    /// An allocation failed.
    OutOfMemory,
    /// The volume is full.
    DiskFull,
    /// The checkpoint does not exist.
    ModelNotFound,
    /// The checkpoint's SHA-256 is not the declared one.
    DigestMismatch,
    /// The checkpoint cannot be loaded.
    LoadFailed,
    /// The process was asked to stop.
    Interrupted,
    /// Anything else that the process itself reports, or an exit code that says no more.
    AppError,
    /// The kernel killed the container at its memory limit.
    OOMKilled,
    /// The pod was evicted or preempted.
    Evicted,
    /// The node of the pod is gone.
    NodeLost,
    /// The image cannot be pulled.
    ImagePull,
    /// No node takes the pod.
    Unschedulable,
    /// A deadline of the run has passed.
    Deadline,
}

impl FailureClass {
    /// The exit code by which a process reports this class. Codes 64 to 78 follow the BSD `sysexits.h` convention and
    /// are permanent: the same input fails again.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::DataCorrupt => 65,
            Self::DataMissing => 66,
            Self::ModelNotFound => 67,
            Self::DigestMismatch => 68,
            Self::LoadFailed => 69,
            Self::Diverged => 70,
            Self::BadConfig => 78,
            Self::OutOfMemory => 80,
            Self::DiskFull => 81,
            Self::Interrupted => 143,
            Self::OOMKilled => 137,
            Self::AppError
            | Self::Evicted
            | Self::NodeLost
            | Self::ImagePull
            | Self::Unschedulable
            | Self::Deadline => 1,
        }
    }

    /// The class that an exit code alone tells, for images that write no termination message.
    pub fn from_exit_code(code: i32) -> Self {
        [
            Self::DataCorrupt,
            Self::DataMissing,
            Self::ModelNotFound,
            Self::DigestMismatch,
            Self::LoadFailed,
            Self::Diverged,
            Self::BadConfig,
            Self::OutOfMemory,
            Self::DiskFull,
            Self::Interrupted,
        ]
        .into_iter()
        .find(|class| class.exit_code() == code)
        .unwrap_or(Self::AppError)
    }

    /// Whether the same input would fail again, so that a retry is useless.
    pub fn is_permanent(self) -> bool {
        matches!(
            self,
            Self::BadConfig
                | Self::DataMissing
                | Self::DataCorrupt
                | Self::Diverged
                | Self::ModelNotFound
                | Self::DigestMismatch
                | Self::LoadFailed
                | Self::Deadline
        )
    }

    /// The `CamelCase` word, for conditions and Events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadConfig => "BadConfig",
            Self::DataMissing => "DataMissing",
            Self::DataCorrupt => "DataCorrupt",
            Self::Diverged => "Diverged",
            Self::OutOfMemory => "OutOfMemory",
            Self::DiskFull => "DiskFull",
            Self::ModelNotFound => "ModelNotFound",
            Self::DigestMismatch => "DigestMismatch",
            Self::LoadFailed => "LoadFailed",
            Self::Interrupted => "Interrupted",
            Self::AppError => "AppError",
            Self::OOMKilled => "OOMKilled",
            Self::Evicted => "Evicted",
            Self::NodeLost => "NodeLost",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::Deadline => "Deadline",
        }
    }
}

/// A failure: its class and what happened, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The failure's class.
    pub class: FailureClass,
    /// What happened, where, and what to do.
    #[schemars(length(max = 2048))]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_of_its_own_tells_the_class_back() {
        for class in
            [FailureClass::BadConfig, FailureClass::Diverged, FailureClass::DiskFull, FailureClass::Interrupted]
        {
            assert_eq!(FailureClass::from_exit_code(class.exit_code()), class);
        }
        assert_eq!(FailureClass::from_exit_code(1), FailureClass::AppError);
        assert_eq!(FailureClass::from_exit_code(-9), FailureClass::AppError);
    }

    #[test]
    fn the_word_of_a_class_is_its_name_on_the_wire() {
        for class in [FailureClass::OOMKilled, FailureClass::BadConfig, FailureClass::DigestMismatch] {
            assert_eq!(serde_json::to_value(class).expect("a word"), class.as_str());
        }
    }
}
