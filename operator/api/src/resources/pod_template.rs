//! What a user may say about the pods that are made for a resource: an allow-list, without host paths, privileges or
//! ports.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::LazyLock,
};

use k8s_openapi::api::core::v1::{Affinity, EnvFromSource, EnvVar, Toleration, TopologySpreadConstraint};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{PodMount, PodVolume, Quantity};

/// A [`PodTemplate`] that takes no room where it says nothing: ten thousand runs are kept, most of which are over.
#[derive(Clone, Debug, Default)]
pub struct RunPodTemplate(Option<Box<PodTemplate>>);

impl From<PodTemplate> for RunPodTemplate {
    fn from(template: PodTemplate) -> Self {
        Self(Some(template).filter(|template| *template != PodTemplate::default()).map(Box::new))
    }
}

impl Deref for RunPodTemplate {
    type Target = PodTemplate;

    fn deref(&self) -> &PodTemplate {
        static NOTHING: LazyLock<PodTemplate> = LazyLock::new(PodTemplate::default);
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for RunPodTemplate {
    fn deref_mut(&mut self) -> &mut PodTemplate {
        self.0.get_or_insert_default()
    }
}

impl PartialEq for RunPodTemplate {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Serialize for RunPodTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RunPodTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodTemplate::deserialize(deserializer).map(Self::from)
    }
}

impl JsonSchema for RunPodTemplate {
    fn inline_schema() -> bool {
        PodTemplate::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        PodTemplate::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        PodTemplate::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        PodTemplate::json_schema(generator)
    }
}

/// What a user may say about generated pods. Everything else is the operator's: names, ports, probes, privileges.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.env) || !self.env.exists(e, e.name.startsWith('ANNEAL_') || e.name.startsWith('PET_'))").message("env must not set variables that start with ANNEAL_ or PET_: the operator sets them; remove them (arguments of torchrun win over its PET_ variables)"),
    validation = Rule::new("!has(self.labels) || !self.labels.exists(k, k.startsWith('anneal.dev/') || k.startsWith('batch.kubernetes.io/'))").message("labels under anneal.dev/ and batch.kubernetes.io/ are set by the controllers; use a prefix of your own"),
    validation = Rule::new("!has(self.annotations) || !self.annotations.exists(k, k.startsWith('anneal.dev/'))").message("annotations under anneal.dev/ are set by the operator; use a prefix of your own"),
    validation = Rule::new("!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))").message("each of volumeMounts must name one of volumes"),
    validation = Rule::new("!has(self.volumes) || !self.volumes.exists(v, v.name in ['config', 'dataset', 'init', 'models', 'output', 'questions', 'shm', 'tmp'])").message("volumes must not be named config, dataset, init, models, output, questions, shm or tmp: the operator's are; rename them"),
    validation = Rule::new("!has(self.volumeMounts) || !self.volumeMounts.exists(m, ['/output', '/dataset', '/init', '/models', '/etc/anneal'].exists(p, m.mountPath == p || m.mountPath.startsWith(p + '/')))").message("volumeMounts must not be at or below /output, /dataset, /init, /models or /etc/anneal: the operator mounts these; choose another mountPath"),
    validation = Rule::new("!has(self.sharedMemorySize) || !has(self.volumeMounts) || !self.volumeMounts.exists(m, m.mountPath == '/dev/shm')").message("set either sharedMemorySize or a volumeMount at /dev/shm, not both"),
    validation = Rule::new("!has(self.sharedMemorySize) || !has(self.resources) || !has(self.resources.limits) || !('memory' in self.resources.limits) || quantity(self.sharedMemorySize).isLessThan(quantity(string(self.resources.limits['memory'])))").message("sharedMemorySize must be below resources.limits.memory: what lies in shared memory counts to the container's memory")
)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Container image; the operator's own trainer or server where it is absent. A training image of your own is started
    /// as it is (its `ENTRYPOINT` and `CMD`), unless `command` or `args` say otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Entry point of the container in place of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Arguments of the entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Environment variables, beside those that the operator sets (names with `ANNEAL_` and `PET_` are the operator's).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub env: Vec<EnvVar>,
    /// Secrets and `ConfigMap`s whose keys become environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub env_from: Vec<EnvFromSource>,
    /// CPU, memory and devices of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels of the pods, beside the operator's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have to take the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Nodes and other pods that the pods want to be near to, or far from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How the pods spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub priority_class_name: Option<String>,
    /// Scheduler of the pods, where it is not Kubernetes' own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub scheduler_name: Option<String>,
    /// Runtime class of the pods, for example a sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub runtime_class_name: Option<String>,
    /// Service account of the pods. Its token is mounted only where this is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account_name: Option<String>,
    /// Secrets for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<LocalReference>,
    /// Users and groups of the pods, within the restricted Pod Security profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<PodSecurity>,
    /// Volumes beside the operator's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volumes: Vec<PodVolume>,
    /// Where the volumes are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volume_mounts: Vec<PodMount>,
    /// Size of `/dev/shm`, for example `1Gi`: `PyTorch`'s data loaders and Gloo pass tensors through it, and a container
    /// runtime gives 64 MiB. It counts to the container's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = "^[1-9][0-9]*([KMGT]i|[kMGT])?$"))]
    pub shared_memory_size: Option<String>,
    /// Seconds between SIGTERM and SIGKILL: the time that a trainer has to write a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub termination_grace_period_seconds: Option<i64>,
}

/// A map of labels: the API server takes values of at most 63 characters.
fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
        }
    })
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// Where the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word, as a container's spec has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Users and groups of the pods. Privileges stay as the restricted Pod Security profile has them: none.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.runAsUser) || self.runAsUser > 0").message("securityContext.runAsUser must not be 0: pods keep to the restricted Pod Security profile, which takes no root user; choose another number, or build the image for any user"),
    validation = Rule::new("!has(self.runAsNonRoot) || self.runAsNonRoot").message("securityContext.runAsNonRoot must be true: pods keep to the restricted Pod Security profile; remove it")
)]
#[serde(rename_all = "camelCase")]
pub struct PodSecurity {
    /// User of the processes; 65532 where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_user: Option<i64>,
    /// First group of the processes; 65532 where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_group: Option<i64>,
    /// Always true; taken so that a manifest may say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
    /// Group that volumes are given to; 65532 where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub fs_group: Option<i64>,
    /// Whether all files are given to the group at every start (`Always`), or only where the volume's root does not belong
    /// to it yet (`OnRootMismatch`, the default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_group_change_policy: Option<FsGroupChangePolicy>,
    /// Further groups of the processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 0, max = 2_147_483_647)))]
    pub supplemental_groups: Vec<i64>,
    /// Whether the image's own files are read-only, `/tmp` aside; true where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_root_filesystem: Option<bool>,
}

/// When the files of a volume are given to the pods' group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FsGroupChangePolicy {
    /// Where the volume's root does not belong to the group yet.
    OnRootMismatch,
    /// At every start.
    Always,
}

impl FsGroupChangePolicy {
    /// The word, as a pod's spec has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnRootMismatch => "OnRootMismatch",
            Self::Always => "Always",
        }
    }
}

/// CPU, memory and devices of a container.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.requests) || self.requests.all(k, k in ['cpu', 'memory', 'ephemeral-storage'] || k.contains('/') || k.startsWith('hugepages-'))").message("resources.requests knows cpu, memory, ephemeral-storage, hugepages-SIZE and devices such as nvidia.com/gpu; correct the name"),
    validation = Rule::new("!has(self.limits) || self.limits.all(k, k in ['cpu', 'memory', 'ephemeral-storage'] || k.contains('/') || k.startsWith('hugepages-'))").message("resources.limits knows cpu, memory, ephemeral-storage, hugepages-SIZE and devices such as nvidia.com/gpu; correct the name"),
    validation = Rule::new("!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)").message("resources.requests must not be above resources.limits; lower the request or raise the limit"),
    validation = Rule::new("!has(self.requests) || self.requests.all(k, k in ['cpu', 'memory', 'ephemeral-storage'] || (has(self.limits) && k in self.limits && quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) == 0))").message("devices and huge pages cannot be shared: give the same number under resources.limits, or only there")
)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}

/// An object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
