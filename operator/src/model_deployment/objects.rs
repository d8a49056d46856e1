//! The objects of a deployment, made from checked values: nothing here can fail or asks the cluster.

use std::collections::BTreeMap;

use anneal_api::{
    names::{SERVER_PORT, env, label, path},
    resources::{Autoscaling, ModelDeployment},
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        autoscaling::v2::{
            CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior,
            HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget, ResourceMetricSource,
        },
        core::v1::{
            Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, HTTPGetAction,
            PersistentVolumeClaimVolumeSource, PodSpec, PodTemplateSpec, Probe, SecretEnvSource, Service, ServicePort,
            ServiceSpec, TopologySpreadConstraint, Volume, VolumeMount,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt;

use super::{
    gate::Gated,
    revision::{ModelFile, Place, Revision, RevisionName},
    validate::ValidDeployment,
};
use crate::{
    children::{self, DefaultResources, PodPlan},
    context::Settings,
};

/// Annotations of generated objects.
pub mod annotation {
    /// On a Deployment: hash of the gate that the revision was last put to.
    pub const GATE: &str = "anneal.dev/gate";
    /// On a smoke test's Job: the rollout and the gate that it belongs to.
    pub const ROLLOUT: &str = "anneal.dev/rollout";
    /// On a smoke test's Job: UIDs of the pods that it asks.
    pub const PODS: &str = "anneal.dev/pods";
}

/// Value of the revision label in a selector that chooses no pod.
const NO_REVISION: &str = "none";
/// Port of the Services that callers do not see.
pub const BACKEND_PORT: i32 = 80;

/// CPU and memory of an inference pod. The memory request is more than twice what an idle server uses, or an autoscaler
/// that looks at memory would never come down again.
const SERVER_RESOURCES: DefaultResources = DefaultResources { requests: ("500m", "512Mi"), limits: ("2", "2Gi") };

/// CPU and memory of the container that fetches a checkpoint: it holds a packet at a time.
const FETCH_RESOURCES: DefaultResources = DefaultResources { requests: ("100m", "128Mi"), limits: ("1", "512Mi") };

/// Name of the Service that shows the candidate.
pub fn preview_name(deployment: &str) -> String {
    format!("{deployment}-preview")
}

/// Name of a revision's Deployment and disruption budget.
pub fn revision_name(deployment: &str, revision: &RevisionName) -> String {
    format!("{deployment}-{revision}")
}

/// Labels by which a revision's pods are chosen.
pub fn selector(deployment: &str, revision: &str) -> BTreeMap<String, String> {
    [(label::DEPLOYMENT, deployment), (label::REVISION, revision)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Labels of an object that belongs to a deployment, and to a revision where one is given.
pub fn revision_labels(component: &str, deployment: &str, revision: Option<&RevisionName>) -> BTreeMap<String, String> {
    let mut labels = children::labels(component, label::DEPLOYMENT, deployment);
    labels.extend(revision.map(|revision| (label::REVISION.to_owned(), revision.to_string())));
    labels
}

/// The Deployment of a revision, with the pods that are written down for it. It is never rendered again: another version
/// of the operator may render other pods, and must not restart those that serve.
pub fn deployment(
    owner: &ModelDeployment,
    revision: &RevisionName,
    replicas: i32,
    gate: &str,
    template: PodTemplateSpec,
) -> Deployment {
    let name = owner.name_any();
    let mut metadata =
        children::metadata(owner, revision_name(&name, revision), revision_labels("server", &name, Some(revision)));
    metadata.annotations = Some(BTreeMap::from([(annotation::GATE.to_owned(), gate.to_owned())]));
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: chosen_by(selector(&name, revision.as_str())),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            revision_history_limit: Some(0),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A label selector of these labels.
pub fn chosen_by(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

/// The pods of a revision, as this version of the operator renders them.
pub fn server_pod(deployment: &str, revision: &Revision, settings: &Settings) -> PodTemplateSpec {
    let model = &revision.inputs.model;
    let mut pod = children::pod(
        PodPlan {
            container: "server",
            image: settings.server_image.clone(),
            image_pull_policy: settings.image_pull_policy.clone(),
            args: vec!["serve".to_owned()],
            env: vec![
                children::env(env::MODEL_PATH, format!("{}/{}", path::MODELS, model.path())),
                children::env(env::MODEL_SHA256, model.sha256.as_str()),
                children::env(env::MODEL_NAME, deployment),
                children::env(env::REVISION, revision.name.as_str()),
            ],
            resources: SERVER_RESOURCES,
            labels: revision_labels("server", deployment, Some(&revision.name)),
            volumes: vec![(models_volume(model), models_mount(true))],
            // A server goes on for some seconds after it was told to stop, and then ends the requests under way.
            grace_seconds: 45,
        },
        &revision.inputs.pod_template,
    );
    if let Some(spec) = pod.spec.as_mut() {
        let spread = TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(chosen_by(selector(deployment, revision.name.as_str()))),
            ..TopologySpreadConstraint::default()
        };
        spec.topology_spread_constraints.get_or_insert_with(|| vec![spread]);
        spec.init_containers = fetch(model, spec, settings).map(|fetch| vec![fetch]);
        if let Some(container) = spec.containers.first_mut() {
            container.ports = Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: SERVER_PORT.into(),
                ..ContainerPort::default()
            }]);
            // Ten minutes for loading: a rollout's own deadline comes first unless the user raised it.
            container.startup_probe = Some(probe("/readyz", 1, 600));
            container.readiness_probe = Some(probe("/readyz", 2, 2));
            container.liveness_probe = Some(probe("/livez", 10, 3));
        }
    }
    pod
}

fn models_volume(model: &ModelFile) -> Volume {
    let mut volume = Volume { name: "models".to_owned(), ..Volume::default() };
    match model.claim() {
        Some(claim) => {
            let (claim_name, read_only) = (claim.to_owned(), Some(true));
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource { claim_name, read_only });
        }
        None => volume.empty_dir = Some(EmptyDirVolumeSource::default()),
    }
    volume
}

fn models_mount(read_only: bool) -> VolumeMount {
    VolumeMount {
        name: "models".to_owned(),
        mount_path: path::MODELS.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

/// The container that fetches a checkpoint from a server before the pod serves it. Only this one gets the credentials.
fn fetch(model: &ModelFile, pod: &PodSpec, settings: &Settings) -> Option<Container> {
    let Place::Server { uri, credentials_secret } = &model.place else { return None };
    let secret = credentials_secret.as_ref().map(|name| EnvFromSource {
        secret_ref: Some(SecretEnvSource { name: name.clone(), optional: Some(false) }),
        ..EnvFromSource::default()
    });
    let to = format!("{}/{}", path::MODELS, model.path());
    Some(Container {
        name: "fetch".to_owned(),
        image: Some(settings.trainer_image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        args: Some(["fetch", uri, "--sha256", model.sha256.as_str(), "--to", &to].map(str::to_owned).to_vec()),
        env_from: secret.map(|secret| vec![secret]),
        resources: Some(children::resources(None, FETCH_RESOURCES)),
        volume_mounts: Some(vec![models_mount(false)]),
        security_context: pod.containers.first().and_then(|server| server.security_context.clone()),
        ..Container::default()
    })
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

/// Where a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination(String);

impl Destination {
    /// To no pod.
    pub fn none() -> Self {
        Self(NO_REVISION.to_owned())
    }

    /// To a revision that passed its gate.
    pub fn gated(revision: &Gated) -> Self {
        Self(revision.name().to_string())
    }

    /// To where it led when it was observed.
    pub fn unchanged(live: Option<&RevisionName>) -> Self {
        live.map_or_else(Self::none, |live| Self(live.to_string()))
    }
}

/// The Service that callers use.
pub fn service(owner: &ModelDeployment, spec: &ValidDeployment, to: &Destination) -> Service {
    let mut service = plain_service(owner, spec.name.clone(), "service", selector(&spec.name, &to.0));
    if let Some(body) = service.spec.as_mut() {
        body.type_ = Some(spec.service.kind.as_str().to_owned());
        body.ports = Some(vec![port(spec.service.port)]);
    }
    service
}

/// The Service that shows the candidate, gated or not.
pub fn preview(owner: &ModelDeployment, spec: &ValidDeployment, to: Option<&RevisionName>) -> Service {
    let chosen = selector(&spec.name, to.map_or(NO_REVISION, RevisionName::as_str));
    plain_service(owner, preview_name(&spec.name), "preview", chosen)
}

/// A Service inside the cluster with this selector.
pub fn plain_service(
    owner: &ModelDeployment,
    name: String,
    component: &str,
    selector: BTreeMap<String, String>,
) -> Service {
    Service {
        metadata: children::metadata(owner, name, revision_labels(component, &owner.name_any(), None)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![port(BACKEND_PORT)]),
            selector: Some(selector),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(port: i32) -> ServicePort {
    ServicePort {
        name: Some("http".to_owned()),
        port,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::Int(SERVER_PORT.into())),
        ..ServicePort::default()
    }
}

/// The disruption budget of a revision: a drain takes one pod at a time.
pub fn budget(owner: &ModelDeployment, revision: &RevisionName) -> PodDisruptionBudget {
    let name = owner.name_any();
    let labels = revision_labels("server", &name, Some(revision));
    PodDisruptionBudget {
        metadata: children::metadata(owner, revision_name(&name, revision), labels),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(chosen_by(selector(&name, revision.as_str()))),
            // A pod that serves nobody must not block a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// The autoscaler of the revision that has the traffic. While `hold` is set it never takes a pod away.
pub fn autoscaler(
    owner: &ModelDeployment,
    autoscaling: &Autoscaling,
    target: &Gated,
    hold: bool,
) -> HorizontalPodAutoscaler {
    let name = owner.name_any();
    let utilization = |resource: &str, percent: i32| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: resource.to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    };
    HorizontalPodAutoscaler {
        metadata: children::metadata(owner, name.clone(), revision_labels("autoscaler", &name, None)),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: revision_name(&name, target.name()),
            },
            min_replicas: Some(autoscaling.min_replicas),
            max_replicas: autoscaling.max_replicas,
            metrics: Some(vec![
                utilization("cpu", autoscaling.target_cpu_utilization_percentage),
                utilization("memory", autoscaling.target_memory_utilization_percentage),
            ]),
            behavior: Some(HorizontalPodAutoscalerBehavior {
                scale_down: Some(HPAScalingRules {
                    select_policy: Some(if hold { "Disabled" } else { "Max" }.to_owned()),
                    ..HPAScalingRules::default()
                }),
                scale_up: None,
            }),
        }),
        status: None,
    }
}
