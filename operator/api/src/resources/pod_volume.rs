//! Volumes that a user may add to generated pods: those of the restricted Pod Security profile, so no host paths.

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretVolumeSource, Volume, VolumeMount,
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A volume, with exactly one source.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.configMap), has(self.csi), has(self.downwardAPI), has(self.emptyDir), has(self.persistentVolumeClaim), has(self.projected), has(self.secret)].filter(x, x).size() == 1").message("a volume needs exactly one of configMap, csi, downwardAPI, emptyDir, persistentVolumeClaim, projected and secret"))]
#[serde(rename_all = "camelCase")]
pub struct PodVolume {
    /// Name of the volume, by which `volumeMounts` refer to it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Files from a `ConfigMap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// A volume of a CSI driver that lives as long as the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csi: Option<CSIVolumeSource>,
    /// Files with facts about the pod.
    #[serde(rename = "downwardAPI", skip_serializing_if = "Option::is_none")]
    pub downward_api: Option<DownwardAPIVolumeSource>,
    /// An empty folder that lives as long as the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
    /// An existing `PersistentVolumeClaim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    /// Several sources in one folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<ProjectedVolumeSource>,
    /// Files from a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
}

impl From<PodVolume> for Volume {
    fn from(volume: PodVolume) -> Self {
        let PodVolume { name, config_map, csi, downward_api, empty_dir, persistent_volume_claim, projected, secret } =
            volume;
        Self {
            name,
            config_map,
            csi,
            downward_api,
            empty_dir,
            persistent_volume_claim,
            projected,
            secret,
            ..Self::default()
        }
    }
}

/// Where a volume is mounted.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.subPath) || (!self.subPath.startsWith('/') && !self.subPath.split('/').exists(part, part == '..'))").message("subPath is relative to the volume's root and must not contain a `..` part"))]
#[serde(rename_all = "camelCase")]
pub struct PodMount {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Absolute path in the container, without a colon.
    #[schemars(length(min = 2, max = 512), regex(pattern = "^/[^:]+$"))]
    pub mount_path: String,
    /// Path in the volume, in place of its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub sub_path: Option<String>,
    /// Whether the container may only read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

impl From<PodMount> for VolumeMount {
    fn from(mount: PodMount) -> Self {
        let PodMount { name, mount_path, sub_path, read_only } = mount;
        Self { name, mount_path, sub_path, read_only, ..Self::default() }
    }
}
