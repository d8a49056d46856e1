//! The weights that a run begins with, where it does not begin with random ones.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalReference;
use crate::Sha256;

/// A checkpoint to begin with: what another run published, or a file on a claim. Where the classes differ, the last layer
/// begins anew.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.trainingRunRef) != has(self.claimName)").message("name the checkpoint in initFrom by either trainingRunRef or claimName with path and sha256"),
    validation = Rule::new("has(self.claimName) == has(self.path) && has(self.claimName) == has(self.sha256)").message("initFrom.claimName, path and sha256 belong together: the claim, the file on it, and the digest that `sha256sum FILE` prints"),
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))").message("initFrom.path is relative to the claim's root and must not contain `..`")
)]
#[serde(rename_all = "camelCase")]
pub struct InitFrom {
    /// A `TrainingRun` in the same namespace; this run waits until it has succeeded, and keeps to what it published then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_run_ref: Option<LocalReference>,
    /// `PersistentVolumeClaim` that holds the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: Option<String>,
    /// Path of the checkpoint, relative to the claim's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
    /// SHA-256 of the checkpoint; a file with another one is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Parameters that stay as they are in the checkpoint, by the first parts of their names (`anneal-trainer inspect` lists
    /// them): `["conv1", "bn1", "layer1"]` for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255), regex(pattern = "^[A-Za-z0-9_.]+$")))]
    pub freeze: Vec<String>,
}

/// The checkpoint that a run keeps to, whatever becomes of the one that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InitCheckpoint {
    /// `PersistentVolumeClaim` that holds it.
    #[schemars(length(max = 253))]
    pub claim_name: String,
    /// Its path, relative to the claim's root.
    #[schemars(length(max = 512))]
    pub path: String,
    /// SHA-256 of the checkpoint.
    pub sha256: Sha256,
}
