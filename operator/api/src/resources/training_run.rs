//! `TrainingRun`: one training, from a dataset to a published checkpoint.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{InitFrom, Output, RetryRule, RunPodTemplate, TrainingRunStatus};
use crate::{dataset::Dataset, hyperparameters::Hyperparameters, model::ModelSpec, tracking::Tracking};

/// The word in `managedBy` that means this operator, as does its absence.
pub const MANAGER: &str = "anneal.dev/operator";

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
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = 1),
    printcolumn(name = "Images/s", type_ = "number", json_path = ".status.progress.imagesPerSecond", priority = 1),
    printcolumn(name = "Heartbeat", type_ = "date", json_path = ".status.progress.lastUpdateTime", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name must be at most 40 characters: the names of Jobs and pods are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a letter and hold only a-z, 0-9 and -: the names of pods and Services are made from it"),
    validation = Rule::new("!has(self.spec.initFrom) || !has(self.spec.initFrom.trainingRunRef) || self.spec.initFrom.trainingRunRef.name != self.metadata.name").message("initFrom.trainingRunRef names this very run; a run goes on from its own checkpoints by itself, so name another one"),
    // Compared last: a write that changes the status cannot change the specification, and to compare all of these costs the API
    // server more than all other rules together.
    validation = Rule::new("has(self.status) != has(oldSelf.status) || (has(self.status) && self.status != oldSelf.status) || self.spec.hyperparameters == oldSelf.spec.hyperparameters").message("hyperparameters are immutable; create a new TrainingRun")
)]
#[x_kube(
    validation = Rule::new("self.model.architecture != 'simple' || self.model.inputSize == 224").message("model.inputSize must be 224 for architecture simple; leave it out, or choose architecture improved, which takes any size"),
    validation = Rule::new("self.dataset.uri.matches('^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?|(https?|s3|gs)://[^/@ ]+(/[^ ]*)?|dvc[+](https?|s3|gs)://[^/@ ]+(/[^ ]*)?|dvc[+]file:///.*|file:///.*|synthetic://([?][A-Za-z]+=[0-9]+(&[A-Za-z]+=[0-9]+)*)?)$')").message("dataset.uri must be pvc://CLAIM/PATH, http(s)://HOST/SET.tar, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, dvc+http(s)://HOST/SET.dvc, file:///PATH or synthetic://?images=600&size=64"),
    validation = Rule::new("!self.dataset.uri.matches('^https?://') || self.dataset.uri.matches('^https?://[^?#]*[.]tar([?#].*)?$')").message("dataset.uri: over HTTP a folder cannot be listed; name a file that ends in .tar, or use s3://, gs:// or dvc+http(s)://"),
    validation = Rule::new("!has(self.dataset.digest) || !self.dataset.digest.startsWith('md5:') || self.dataset.uri.startsWith('dvc+')").message("dataset.digest: md5 is what a .dvc file names; give the sha256 that status.result.dataset.digest of a run shows"),
    validation = Rule::new("!has(self.dataset.credentialsSecretRef) || !self.dataset.uri.matches('^(pvc|file|synthetic)://')").message("dataset.credentialsSecretRef is for servers; leave it out where dataset.uri is pvc://, file:// or synthetic://"),
    validation = Rule::new("!self.dataset.uri.split('/').exists(part, part == '..')").message("dataset.uri must not contain a `..` part"),
    validation = Rule::new("!has(self.tracking) || !has(self.tracking.mlflow) || !has(self.tracking.mlflow.alias) || has(self.tracking.mlflow.registeredModel)").message("tracking.mlflow.alias is set on a version of a registered model; name that in tracking.mlflow.registeredModel, or leave alias out"),
    validation = Rule::new("!has(self.tracking) || !has(self.tracking.mlflow) || !has(self.tracking.mlflow.alias) || !self.tracking.mlflow.alias.matches('^(latest|v[0-9]+)$')").message("tracking.mlflow.alias must not be latest, or v and a number: MLflow keeps these for itself"),
    // The API server cuts a bound's fraction off before it compares a whole number with it.
    validation = Rule::new("self.hyperparameters.learningRate >= 0.000000001").message("hyperparameters.learningRate must be between 0.000000001 and 100"),
    validation = Rule::new("self.hyperparameters.validationShare >= 0.01").message("hyperparameters.validationShare must be between 0.01 and 0.5"),
    validation = Rule::new("self.hyperparameters.augmentation.cropArea >= 0.01").message("hyperparameters.augmentation.cropArea must be between 0.01 and 1; 1 crops nothing"),
    validation = Rule::new("self.model.architecture != 'simple' || !has(self.hyperparameters.trainSizes) || self.hyperparameters.trainSizes.all(size, size == 224)").message("hyperparameters.trainSizes must be 224 for architecture simple; leave it out, or choose architecture improved, which takes any size"),
    validation = Rule::new("self.model == oldSelf.model").message("model is immutable; create a new TrainingRun"),
    validation = Rule::new("self.dataset == oldSelf.dataset").message("dataset is immutable; create a new TrainingRun"),
    validation = Rule::new("has(self.tracking) == has(oldSelf.tracking) && (!has(self.tracking) || self.tracking == oldSelf.tracking)").message("tracking is immutable; create a new TrainingRun"),
    validation = Rule::new("self.output == oldSelf.output").message("output is immutable; create a new TrainingRun"),
    validation = Rule::new("has(self.initFrom) == has(oldSelf.initFrom) && (!has(self.initFrom) || self.initFrom == oldSelf.initFrom)").message("initFrom is immutable; create a new TrainingRun"),
    validation = Rule::new("self.numNodes == oldSelf.numNodes").message("numNodes is immutable; create a new TrainingRun"),
    validation = Rule::new("self.numNodes == 1 || (has(self.podTemplate) && has(self.podTemplate.image))").message("numNodes above 1 needs podTemplate.image: Anneal's own trainer trains in one pod; bring an image whose program spreads the training over nodes, as torchrun does"),
    validation = Rule::new("has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)").message("managedBy is immutable, also when it comes or goes: two managers would work on one run; create a new TrainingRun")
)]
#[serde(rename_all = "camelCase")]
pub struct TrainingRunSpec {
    /// The network: its architecture and the size of its input.
    #[serde(default)]
    pub model: ModelSpec,
    /// The weights to begin with: what another run published, or a file on a claim. Random ones where it is absent.
    /// Immutable.
    // Boxed, like what the template of pods says: see there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<Box<InitFrom>>,
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
    /// Where the run is recorded beside its own volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// What to say about the training pod.
    #[serde(default)]
    pub pod_template: RunPodTemplate,
    /// How often a run that failed for a reason that may pass is tried again. Evictions, preemptions and lost nodes cost
    /// none of it. 3 by default.
    #[serde(default = "default_max_retries")]
    #[schemars(range(min = 0, max = 100))]
    pub max_retries: i32,
    /// What to do about failures of a class, where the default is not wanted: one rule for each class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["class"]))]
    pub retry_rules: Vec<RetryRule>,
    /// While true, nothing runs: a pod that trains is told to stop, writes a checkpoint, and ends. False again, the run
    /// goes on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Who brings this run about. Anything but `anneal.dev/operator` (also what absence means) and the operator does not
    /// touch it, for example `kueue.x-k8s.io/multikueue`. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub managed_by: Option<String>,
    /// Seconds within which an attempt's pod must run, counted from when the attempt is due. An attempt that waits longer
    /// (for a claim, an image, a node) fails with the class of what it waits for. One hour by default.
    #[serde(default = "default_start_deadline")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub start_deadline_seconds: i64,
    /// Seconds that the run may be active, all attempts and the pauses between them together, counted from its first
    /// attempt or, once it was suspended, from when it went on. A run that takes longer fails. No limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// Seconds after which a trainer whose `progress.lastUpdateTime` does not move counts as stalled, and its attempt as
    /// failed. Only for images that answer `GET :9090/progress`. No limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 31_536_000))]
    pub progress_deadline_seconds: Option<i64>,
    /// Seconds after its end when the run is deleted, with its Jobs and pods. A run whose model a `ModelDeployment` names,
    /// follows as the newest or serves is spared. Never by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
    /// Lines from the end of a failed attempt's log that go into `status.attempts`. The operator must have been installed
    /// with the right to read logs (`failureLogs.enabled`). None by default: logs may tell what status readers must not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_log_lines: Option<i32>,
}

fn default_start_deadline() -> i64 {
    3600
}

fn one_node() -> i32 {
    1
}

fn default_max_retries() -> i32 {
    3
}

impl TrainingRun {
    /// Name of the claim that the run writes to.
    pub fn output_claim(&self) -> String {
        self.spec.output.claim(self.metadata.name.as_deref().unwrap_or_default())
    }

    /// Whether this operator brings the run about.
    pub fn is_ours(&self) -> bool {
        self.spec.managed_by.as_deref().is_none_or(|manager| manager == MANAGER)
    }
}
