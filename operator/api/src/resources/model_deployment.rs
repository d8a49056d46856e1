//! `ModelDeployment`: a checkpoint behind a Service, rolled out revision by revision, each through its gate.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CanaryStatus, LocalReference, PodTemplate, Strategy, conditions_schema};
use crate::{Sha256, smoke::SmokeReport, termination::Metrics};

/// A checkpoint behind a Service, rolled out revision by revision, each through its gate.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "anneal.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    shortname = "mdep",
    category = "anneal",
    doc = "A checkpoint behind a Service, rolled out revision by revision, each through its gate.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableRevision"),
    printcolumn(name = "Candidate", type_ = "string", json_path = ".status.candidateRevision"),
    printcolumn(name = "Smoke", type_ = "string", json_path = ".status.smoke.verdict"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".status.canary.weight", priority = 1),
    printcolumn(name = "Agreement", type_ = "number", json_path = ".status.canary.shadow.agreement", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name must be at most 40 characters: the names of Deployments, Services and Jobs are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a letter and hold only a-z, 0-9 and -: it becomes the Service's name")
)]
#[x_kube(
    validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("set either replicas or autoscaling, not both; leave both out for autoscaling between 2 and 10 replicas")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentSpec {
    /// The checkpoint to serve.
    pub model: ModelSource,
    /// What a revision must pass before it gets traffic.
    #[serde(default)]
    pub gate: Gate,
    /// How a revision that has passed its gate gets the traffic.
    #[serde(default)]
    pub strategy: Strategy,
    /// How well the model has to do once it serves, as its pods count the feedback that comes back, and what happens
    /// where it does not. Nothing is read from the pods where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Feedback>,
    /// Number of pods, where no autoscaling is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// How the number of pods follows the load. 2 to 10 replicas at 70 % CPU and 80 % memory where both this and
    /// `replicas` are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// The Service in front of the pods; it has the name of the `ModelDeployment`.
    #[serde(default)]
    pub service: ServiceSpec,
    /// What to say about the inference pods.
    #[serde(default)]
    pub pod_template: PodTemplate,
    /// Starts no rollout and goes no further with one that is under way, until it is false again. A switch that has
    /// begun is finished, and a soak that fails still gives the traffic back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Name of a former revision that is to serve, whatever `model` and `podTemplate` say: the way back. It is one of
    /// `status.revisions`; at once while its pods are still held, else through its smoke test again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 8), regex(pattern = "^[0-9a-f]{8}$"))]
    pub pinned_revision: Option<String>,
    /// Former revisions that are kept, beside the live one.
    #[serde(default = "default_history")]
    #[schemars(range(min = 0, max = 20))]
    pub revision_history_limit: i32,
    /// Seconds within which a revision must be loaded, smoke-tested and scaled up before it counts as failed.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 10, max = 86_400))]
    pub progress_deadline_seconds: i32,
}

fn default_history() -> i32 {
    3
}

fn default_deadline() -> i32 {
    600
}

/// The checkpoint to serve: what a `TrainingRun` published, a file on a claim, or one at a server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("(has(self.trainingRunRef) ? 1 : 0) + (has(self.trainingRunSelector) ? 1 : 0) + (has(self.claimName) ? 1 : 0) + (has(self.uri) ? 1 : 0) == 1").message("name the model by trainingRunRef, by claimName with path and sha256, or by uri with sha256, or follow runs by trainingRunSelector: one of the four"),
    validation = Rule::new("has(self.claimName) == has(self.path) && (has(self.claimName) || has(self.uri)) == has(self.sha256)").message("claimName, path and sha256 belong together, and so do uri and sha256: where the file is, and the digest that `sha256sum FILE` prints"),
    validation = Rule::new("!has(self.uri) || self.uri.matches('^(https?|s3|gs)://[^/@ ]+/[^ ]+$')").message("uri must be http(s)://HOST/FILE, s3://BUCKET/KEY or gs://BUCKET/KEY, without a user in it; credentials go into credentialsSecretRef"),
    validation = Rule::new("!has(self.credentialsSecretRef) || has(self.uri)").message("credentialsSecretRef is for the server that uri names; leave it out"),
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))").message("path is relative to the claim's root and must not contain `..`")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A `TrainingRun` in the same namespace; its published checkpoint is served once it has succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_run_ref: Option<LocalReference>,
    /// Follows the `TrainingRuns` in the same namespace that carry these labels: the one that succeeded last is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_run_selector: Option<RunSelector>,
    /// `PersistentVolumeClaim` that holds the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: Option<String>,
    /// Path of the checkpoint, relative to the claim's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
    /// Address of the checkpoint at a server: `https://`, `http://` (for servers inside the cluster), `s3://` or `gs://`.
    /// Each pod fetches it before it serves, to a folder of its own, so that no volume need be shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub uri: Option<String>,
    /// Secret whose keys are the environment of the fetch: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT_KEY`, or `ANNEAL_HTTP_AUTHORIZATION`, the whole value of that header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalReference>,
    /// SHA-256 of the checkpoint; a file with another one is never served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// Chooses runs by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSelector {
    /// Labels that a run must carry, all of them.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
}

impl RunSelector {
    /// Whether a run of these labels is chosen. A selector without labels chooses nothing.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let carried = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        !self.match_labels.is_empty() && self.match_labels.iter().all(carried)
    }
}

/// What a revision must pass before it gets traffic. An empty gate still asks every pod for a sane answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gate {
    /// Least accuracy of the training run, 0 to 1. Needs a model that a run made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_accuracy: Option<f64>,
    /// By how much the accuracy of the training run may be below that of the revision that serves, 0 to 1. Needs a model
    /// that a run made; a revision of unknown accuracy sets no bar.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_accuracy_drop: Option<f64>,
    /// Questions that the candidate's own pods must answer.
    pub smoke_test: SmokeTest,
    /// Who decides that a revision which has passed gets the traffic.
    pub approval: Approval,
    /// Bounds on what a revision does under real traffic, while the former one is still held. One that exceeds them
    /// gives the traffic back at once.
    pub soak_test: SoakTest,
    /// Seconds that the former revision is kept at its size after the switch.
    #[schemars(range(min = 0, max = 86_400))]
    pub soak_seconds: i32,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            min_accuracy: None,
            max_accuracy_drop: None,
            smoke_test: SmokeTest::default(),
            approval: Approval::Automatic,
            soak_test: SoakTest::default(),
            soak_seconds: 60,
        }
    }
}

/// Who decides that a revision which has passed its gate gets the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Approval {
    /// The gate alone.
    #[default]
    Automatic,
    /// A person, by the annotation `anneal.dev/approve`.
    Manual,
}

/// Bounds on what a revision does under real traffic, as its own pods count it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SoakTest {
    /// Predictions in percent that may be answered with status 500 and above. It takes three such answers to fail.
    #[schemars(range(min = 0, max = 100))]
    pub max_error_percentage: i32,
    /// Bound on the 95th percentile of the time of an answer, in milliseconds. It takes 20 answers to fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600_000))]
    pub max_p95_milliseconds: Option<i32>,
}

impl Default for SoakTest {
    fn default() -> Self {
        Self { max_error_percentage: 5, max_p95_milliseconds: None }
    }
}

/// How well the model has to do once it serves, as its pods count it: over the newest 1,000 predictions whose true class
/// was sent, and the newest 1,000 predictions, of each pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.action != 'Rollback' || has(self.minAccuracy) || has(self.maxCalibrationError)").message("feedback.action Rollback needs minAccuracy or maxCalibrationError: drift is about the photos, and a former revision sees the same ones"))]
#[serde(rename_all = "camelCase")]
pub struct Feedback {
    /// Least share of right predictions among those whose true class is known, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_accuracy: Option<f64>,
    /// Most that confidence and accuracy may be apart, 0 to 1: the expected calibration error over ten bins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_calibration_error: Option<f64>,
    /// Most that the predictions may have moved from those on the validation set, as a population stability index: 0.1 is
    /// little, 0.25 is much. Always tells, never rolls back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub max_drift: Option<f64>,
    /// True classes that must be known before accuracy and calibration are judged.
    #[serde(default = "default_min_count")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_count: i32,
    /// What happens when accuracy or calibration are out of bounds.
    #[serde(default)]
    pub action: FeedbackAction,
}

impl Default for Feedback {
    fn default() -> Self {
        Self {
            min_accuracy: None,
            max_calibration_error: None,
            max_drift: None,
            min_count: default_min_count(),
            action: FeedbackAction::Alert,
        }
    }
}

fn default_min_count() -> i32 {
    100
}

/// What happens when a model does worse than it has to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FeedbackAction {
    /// The condition `PerformanceDegraded` and an Event tell of it.
    #[default]
    Alert,
    /// The former revision gets the traffic back as well, where one is kept: at once while its pods are held, else
    /// through its gate.
    Rollback,
}

/// Questions that the candidate's own pods must answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SmokeTest {
    /// Images, or tensors, with what the model must say about them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub cases: Vec<SmokeTestCase>,
    /// Bound on the 95th percentile of the time of an answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600_000))]
    pub max_p95_milliseconds: Option<i32>,
    /// Seconds that one smoke test may take.
    #[schemars(range(min = 5, max = 3600))]
    pub timeout_seconds: i32,
    /// How often a smoke test that came to no verdict is repeated.
    #[schemars(range(min = 0, max = 10))]
    pub retries: i32,
}

impl Default for SmokeTest {
    fn default() -> Self {
        Self { cases: Vec::new(), max_p95_milliseconds: None, timeout_seconds: 120, retries: 2 }
    }
}

/// A question with what the model must say about it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("has(self.image) != has(self.tensors)").message("a case asks about either an image or tensors"),
    validation = Rule::new("!(has(self.minProbability) && has(self.probability))").message("give either minProbability or probability with its tolerance")
)]
#[serde(rename_all = "camelCase")]
pub struct SmokeTestCase {
    /// Name of the case, for the report.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The picture that is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// The tensors that are sent in place of a picture, as the Open Inference Protocol has them: the body of
    /// `POST /v2/models/NAME/infer`, in JSON. What is expected is expected of each row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<TensorSource>,
    /// Class that the model must predict; any class passes where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub expected_class: Option<String>,
    /// Least probability of the expected (or else the predicted) class, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_probability: Option<f64>,
    /// Probability that it must have, with how much it may be off: a golden answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<ExpectedProbability>,
}

/// A probability, with how much it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedProbability {
    /// The probability, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub value: f64,
    /// How much more or less it may be.
    #[serde(default = "default_tolerance")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tolerance: f64,
}

fn default_tolerance() -> f64 {
    0.01
}

/// Where the image of a smoke case lies.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.configMapKeyRef), has(self.inline), has(self.path)].exists_one(given, given)").message("give the image by configMapKeyRef, inline in Base64, or by its path on the model's claim: one of the three"),
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))").message("path is relative to the root of the model's claim and must not contain `..`")
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// A file in a `ConfigMap`, as `kubectl create configmap smoke --from-file=cat.jpg` makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKey>,
    /// The image itself, in Base64: at most 18 kB of it. A model sees no more than its own input size.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 4, max = 24_576), regex(pattern = "^[A-Za-z0-9+/]+={0,2}$"))]
    pub inline: Option<String>,
    /// A file on the claim that the model is on, relative to its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
}

/// Where the tensors of a smoke case lie.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.configMapKeyRef), has(self.inline), has(self.path)].exists_one(given, given)").message("give the tensors by configMapKeyRef, inline as JSON, or by their path on the model's claim: one of the three"),
    validation = Rule::new("!has(self.path) || (!self.path.startsWith('/') && !self.path.split('/').exists(part, part == '..'))").message("path is relative to the root of the model's claim and must not contain `..`")
)]
#[serde(rename_all = "camelCase")]
pub struct TensorSource {
    /// A file in a `ConfigMap`, as `kubectl create configmap smoke --from-file=cat.json` makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKey>,
    /// The JSON itself: at most 24 kB of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 24_576))]
    pub inline: Option<String>,
    /// A file on the claim that the model is on, relative to its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
}

/// A key of a `ConfigMap` in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the `ConfigMap`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How the number of pods follows the load.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("autoscaling.minReplicas must not be above maxReplicas"))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Least number of pods.
    #[serde(default = "default_min_replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Largest number of pods.
    #[serde(default = "default_max_replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// CPU use that the autoscaler aims at, in percent of the request.
    #[serde(rename = "targetCPUUtilizationPercentage", default = "default_cpu_target")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_utilization_percentage: i32,
    /// Memory use that the autoscaler aims at, in percent of the request.
    #[serde(default = "default_memory_target")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_memory_utilization_percentage: i32,
}

fn default_min_replicas() -> i32 {
    2
}

fn default_max_replicas() -> i32 {
    10
}

fn default_cpu_target() -> i32 {
    70
}

fn default_memory_target() -> i32 {
    80
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            min_replicas: default_min_replicas(),
            max_replicas: default_max_replicas(),
            target_cpu_utilization_percentage: default_cpu_target(),
            target_memory_utilization_percentage: default_memory_target(),
        }
    }
}

/// The Service in front of the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Type of the Service.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

impl Default for ServiceSpec {
    fn default() -> Self {
        Self { kind: ServiceType::ClusterIP, port: 80 }
    }
}

/// Types of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reached from inside the cluster.
    ClusterIP,
    /// Reached through a port of every node.
    NodePort,
    /// Reached through the cloud's load balancer.
    LoadBalancer,
}

impl ServiceType {
    /// The word, as a Service's spec has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DeploymentPhase {
    /// Something that the rollout needs is not there yet.
    Pending,
    /// The candidate's first pod starts and loads the model.
    Loading,
    /// The candidate's pods are asked the questions of the gate.
    SmokeTesting,
    /// The candidate grows to the size that it needs.
    ScalingUp,
    /// The candidate has passed and waits for a person's word.
    AwaitingApproval,
    /// `paused` keeps the candidate where it is.
    Paused,
    /// The candidate gets copies of the requests that come through a Gateway, and its answers are compared.
    Shadowing,
    /// The candidate has a share of the requests that come through a Gateway.
    Canary,
    /// The Service moves to the candidate.
    Promoting,
    /// The candidate has the traffic; the former revision is held.
    Soaking,
    /// The candidate failed under traffic; the Service moves back to the former revision.
    RollingBack,
    /// One revision serves, and it is the wanted one.
    Stable,
    /// The wanted revision was rejected; the former one serves, untouched.
    Degraded,
    /// The wanted revision was rejected, and none serves.
    Failed,
}

impl DeploymentPhase {
    /// The word, for columns and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Loading => "Loading",
            Self::SmokeTesting => "SmokeTesting",
            Self::ScalingUp => "ScalingUp",
            Self::AwaitingApproval => "AwaitingApproval",
            Self::Paused => "Paused",
            Self::Shadowing => "Shadowing",
            Self::Canary => "Canary",
            Self::Promoting => "Promoting",
            Self::Soaking => "Soaking",
            Self::RollingBack => "RollingBack",
            Self::Stable => "Stable",
            Self::Degraded => "Degraded",
            Self::Failed => "Failed",
        }
    }
}

/// What the operator knows about a rollout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct ModelDeploymentStatus {
    /// Where the rollout stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<DeploymentPhase>,
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Progressing, Stalled, Available, Degraded, `AutoscalingImpaired`; `RouteAccepted` where
    /// `strategy.canary` is set, `PerformanceDegraded` where `spec.feedback` is, and `PreviewImpaired` where the Service
    /// that shows the candidate cannot be made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Hash of the revision that the Service points at.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub stable_revision: Option<String>,
    /// Hash of the revision that is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub candidate_revision: Option<String>,
    /// The newest revisions and how each fared, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 24))]
    pub revisions: Vec<RevisionStatus>,
    /// The newest smoke test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoke: Option<SmokeReport>,
    /// The switch that is under way: written before the Service's selector is touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotion: Option<Promotion>,
    /// The share of the requests through a Gateway that the candidate is to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    /// How well the revision does that has the traffic, with `spec.feedback`. Written when it has changed by more than
    /// chance, every five minutes at most, and at once when a bound is passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
    /// Where callers inside the cluster reach the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// Pods of the stable revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Ready pods of all pods of the stable revision, as text: `2/2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub ready: Option<String>,
    /// Label selector of the stable revision's pods, for `/scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
}

/// A revision and how it fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Hash of the revision.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// SHA-256 of its checkpoint.
    pub sha256: Sha256,
    /// `TrainingRun` that made its checkpoint, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub training_run: Option<String>,
    /// Metrics of that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// When its rollout began. Deadlines count from here, so that a restart of the operator never moves them.
    pub start_time: Time,
    /// When it had passed its gate and began to wait for approval, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_time: Option<Time>,
    /// When somebody approved of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_time: Option<Time>,
    /// When it got the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted_time: Option<Time>,
    /// Why it was rejected, where it was: it is not tried again until the spec changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<Rejection>,
}

/// Why a revision was rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// The reason in one `CamelCase` word.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// What happened, and what to do.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// When it was rejected.
    pub time: Time,
}

/// How well a revision does, over all of its pods: of each the newest 1,000 predictions, and the newest 1,000 whose true
/// class was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Performance {
    /// Hash of the revision.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// Predictions whose true class is known.
    pub feedback_count: i64,
    /// Share of right ones among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Expected calibration error over ten bins: how far confidence and accuracy are apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_error: Option<f64>,
    /// Population stability index of the predictions against the validation set: the larger one of classes and
    /// confidences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<f64>,
    /// Pods that were read.
    pub pods: i32,
    /// When this was so.
    pub time: Time,
}

/// A switch of the Service's selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// The revision that had the traffic; absent for the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub from: Option<String>,
    /// The revision that gets the traffic.
    #[schemars(length(max = 63))]
    pub to: String,
    /// When the switch began.
    pub start_time: Time,
}
