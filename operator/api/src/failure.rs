//! Why a run or a server ended, in words that a person and a program can act on, and the exit codes that carry them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why an attempt ended without a result, or does not begin.
///
/// The first group is told by the process itself through its termination message and exit code; the second is what
/// only the cluster sees. A permanent class is one that the same input would bring about again, so it is not retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FailureClass {
    /// The configuration cannot be used: a field is unknown, malformed or out of range. Permanent; exit code 78.
    BadConfig,
    /// The dataset does not exist or holds no photo. Permanent; exit code 66.
    DataMissing,
    /// The dataset cannot be read or makes no sense. Permanent; exit code 65.
    DataCorrupt,
    /// The loss became NaN or infinite; the message names step and learning rate. Permanent; exit code 70.
    Diverged,
    /// The process itself saw an allocation fail. Exit code 80.
    OutOfMemory,
    /// The volume is full; the last good checkpoint on it is intact. Exit code 81.
    DiskFull,
    /// The checkpoint does not exist. Permanent; exit code 67.
    ModelNotFound,
    /// The checkpoint's SHA-256 is not the declared one. Permanent; exit code 68.
    DigestMismatch,
    /// The checkpoint cannot be loaded. Permanent; exit code 69.
    LoadFailed,
    /// The process was asked to stop, wrote a checkpoint and ended. Exit code 143.
    Interrupted,
    /// Anything else that the process itself reports, or an exit code that says no more. Exit code 1.
    AppError,
    /// The kernel killed the container at its memory limit. Exit code 137.
    OOMKilled,
    /// The kubelet evicted the pod, because its node ran short of memory or disk, or somebody did through the API.
    Evicted,
    /// The pod made room for one of a higher priority.
    Preempted,
    /// The node of the pod is gone, and with it what the pod would have said.
    NodeLost,
    /// The image cannot be pulled.
    ImagePull,
    /// No node takes the pod.
    Unschedulable,
    /// A volume that the pod mounts does not exist or cannot be mounted.
    VolumeMissing,
    /// The run did not start within its start deadline. Permanent.
    StartDeadline,
    /// The run took longer than its active deadline. Permanent.
    #[serde(alias = "Deadline")]
    ActiveDeadline,
    /// The trainer did not move within the run's progress deadline and was ended.
    Stalled,
    /// The attempt was ended because the run was suspended.
    Suspended,
}

impl FailureClass {
    /// Every class, in the order of their definition.
    pub const ALL: [Self; 22] = [
        Self::BadConfig,
        Self::DataMissing,
        Self::DataCorrupt,
        Self::Diverged,
        Self::OutOfMemory,
        Self::DiskFull,
        Self::ModelNotFound,
        Self::DigestMismatch,
        Self::LoadFailed,
        Self::Interrupted,
        Self::AppError,
        Self::OOMKilled,
        Self::Evicted,
        Self::Preempted,
        Self::NodeLost,
        Self::ImagePull,
        Self::Unschedulable,
        Self::VolumeMissing,
        Self::StartDeadline,
        Self::ActiveDeadline,
        Self::Stalled,
        Self::Suspended,
    ];

    /// The exit code by which a process reports this class; 1 for what no process reports. Codes 64 to 78 follow the
    /// BSD `sysexits.h` convention and are permanent: the same input fails again.
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
            Self::OOMKilled => 137,
            Self::Interrupted => 143,
            _ => 1,
        }
    }

    /// The class that an exit code alone tells, for images that write no termination message. SIGKILL's 137 may come
    /// from anyone: only the container's reason tells that the kernel ran out of memory.
    pub fn from_exit_code(code: i32) -> Self {
        let told = Self::ALL.into_iter().filter(|class| *class != Self::OOMKilled);
        told.filter(|class| class.exit_code() != 1).find(|class| class.exit_code() == code).unwrap_or(Self::AppError)
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
                | Self::StartDeadline
                | Self::ActiveDeadline
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
            Self::Preempted => "Preempted",
            Self::NodeLost => "NodeLost",
            Self::ImagePull => "ImagePull",
            Self::Unschedulable => "Unschedulable",
            Self::VolumeMissing => "VolumeMissing",
            Self::StartDeadline => "StartDeadline",
            Self::ActiveDeadline => "ActiveDeadline",
            Self::Stalled => "Stalled",
            Self::Suspended => "Suspended",
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
    /// Optimiser steps that were done over all epochs, where training had begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// Optimiser step of the newest checkpoint, from which the next attempt goes on; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<i64>,
    /// Optimiser step that the attempt itself went on from; absent where it began at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_from_step: Option<i64>,
}

impl Failure {
    /// A failure that says nothing of steps.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), step: None, checkpoint_step: None, resumed_from_step: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_of_its_own_tells_the_class_back() {
        for class in FailureClass::ALL.into_iter().filter(|class| !matches!(class.exit_code(), 1 | 137)) {
            assert_eq!(FailureClass::from_exit_code(class.exit_code()), class);
        }
        assert_eq!(FailureClass::from_exit_code(1), FailureClass::AppError);
        assert_eq!(FailureClass::from_exit_code(-9), FailureClass::AppError);
        assert_eq!(FailureClass::from_exit_code(137), FailureClass::AppError);
    }

    #[test]
    fn the_word_of_a_class_is_its_name_on_the_wire() {
        for class in FailureClass::ALL {
            assert_eq!(serde_json::to_value(class).expect("a word"), class.as_str());
        }
    }

    #[test]
    fn the_words_of_earlier_versions_are_still_understood() {
        let old: Failure = serde_json::from_str(r#"{"class":"Deadline","message":"late"}"#).expect("a failure");
        assert_eq!(old, Failure::new(FailureClass::ActiveDeadline, "late"));
    }
}
