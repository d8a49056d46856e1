//! Where a run writes: a claim that exists, or one that is made for the run.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Quantity;

/// Where checkpoints and reports go: an existing claim, or one that is made for the run.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.claimName) != has(self.volumeClaimTemplate)").message("set either output.claimName, an existing PersistentVolumeClaim, or output.volumeClaimTemplate, from which one is made"),
    validation = Rule::new("!has(self.whenDeleted) || has(self.volumeClaimTemplate)").message("output.whenDeleted goes with output.volumeClaimTemplate: a claim that existed before is never deleted; remove it")
)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// An existing `PersistentVolumeClaim`. Runs write below `runs/`, published models lie below `models/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: Option<String>,
    /// From which a claim of the run's own is made, named `RUN-output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_claim_template: Option<ClaimTemplate>,
    /// What becomes of the claim made from `volumeClaimTemplate` when the run is deleted: `Retain` (where this is absent)
    /// keeps it, `Delete` deletes it, unless a `ModelDeployment` serves from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_deleted: Option<WhenDeleted>,
}

impl Output {
    /// Name of the claim that a run of this name writes to.
    pub fn claim(&self, run: &str) -> String {
        self.claim_name.clone().unwrap_or_else(|| format!("{run}-output"))
    }
}

/// What becomes of a claim when its run is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenDeleted {
    /// It goes with the run, unless something serves from it.
    Delete,
    /// It stays.
    Retain,
}

/// From which a claim is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimTemplate {
    /// Labels and annotations of the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ClaimMetadata>,
    /// What is claimed.
    pub spec: ClaimSpec,
}

/// Labels and annotations of a claim.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(!has(self.labels) || !self.labels.exists(k, k.startsWith('anneal.dev/'))) && (!has(self.annotations) || !self.annotations.exists(k, k.startsWith('anneal.dev/')))").message("labels and annotations under anneal.dev/ are set by the operator; use a prefix of your own"))]
#[serde(rename_all = "camelCase")]
pub struct ClaimMetadata {
    /// Labels of the claim, beside the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

/// What is claimed: a file system of this size that can be written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// How the volume is mounted: `ReadWriteOnce` by one node, `ReadWriteOncePod` by one pod, `ReadWriteMany` by many nodes.
    #[serde(default = "one_node")]
    #[schemars(length(min = 1, max = 3))]
    pub access_modes: Vec<AccessMode>,
    /// Storage class; the cluster's default where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub storage_class_name: Option<String>,
    /// How large it is.
    pub resources: ClaimResources,
    /// A certain `PersistentVolume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub volume_name: Option<String>,
}

fn one_node() -> Vec<AccessMode> {
    vec![AccessMode::ReadWriteOnce]
}

/// How a volume that is written to is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// By one node at a time.
    ReadWriteOnce,
    /// By one pod at a time.
    ReadWriteOncePod,
    /// By many nodes.
    ReadWriteMany,
}

impl AccessMode {
    /// The word, as a claim's spec has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWriteOnce => "ReadWriteOnce",
            Self::ReadWriteOncePod => "ReadWriteOncePod",
            Self::ReadWriteMany => "ReadWriteMany",
        }
    }
}

/// How large a claim is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimResources {
    /// What is asked for.
    pub requests: ClaimRequests,
}

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRequests {
    /// Size of the volume, for example `20Gi`: a run needs about ten times the size of its published model.
    pub storage: Quantity,
}
