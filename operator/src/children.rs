//! What every generated object has in common: its owner, its labels, and pods that the restricted Pod Security
//! profile takes.

use std::collections::BTreeMap;

use anneal_api::{
    names::{OPERATOR, label},
    resources::{PodTemplate, Resources},
};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, EnvVar, PodSecurityContext, PodSpec, PodTemplateSpec,
        ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};

/// User and group of generated pods; the images declare the same.
const USER: i64 = 65532;

/// Metadata of an object that `owner` controls.
pub fn metadata<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: String,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: owner.namespace(),
        labels: Some(labels),
        owner_references: owner_reference(owner).map(|reference| vec![reference]),
        ..ObjectMeta::default()
    }
}

fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    owner.controller_owner_ref(&())
}

/// Whether `owner` controls the object.
pub fn is_controlled_by(object: &impl ResourceExt, owner_uid: &str) -> bool {
    object.owner_references().iter().any(|reference| reference.controller == Some(true) && reference.uid == owner_uid)
}

/// Kubernetes' recommended labels for a generated object, and one that names its owner.
pub fn labels(component: &str, owner_label: &str, owner_name: &str) -> BTreeMap<String, String> {
    [(label::NAME, "anneal"), (label::COMPONENT, component), (label::MANAGED_BY, OPERATOR), (owner_label, owner_name)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A label or annotation of the user's that only the operator may set: with it, a pod could join another's Service.
pub fn reserved_key(user: &PodTemplate) -> Option<&String> {
    user.labels.keys().chain(user.annotations.keys()).find(|key| key.starts_with(label::PREFIX))
}

/// A plain environment variable.
pub fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}

/// CPU and memory where the user says nothing.
#[derive(Clone, Copy, Debug)]
pub struct DefaultResources {
    /// Requests: CPU, memory.
    pub requests: (&'static str, &'static str),
    /// Limits: CPU, memory.
    pub limits: (&'static str, &'static str),
}

/// The user's CPU and memory over the defaults. A default never contradicts the user: a default request above the
/// user's limit is lowered to it, a default limit below the user's request is raised to it.
pub fn resources(user: Option<&Resources>, default: DefaultResources) -> ResourceRequirements {
    let given = |map: &BTreeMap<String, anneal_api::resources::Quantity>| -> BTreeMap<String, Quantity> {
        map.iter().map(|(key, value)| (key.clone(), Quantity(value.as_str().to_owned()))).collect()
    };
    let (mut requests, mut limits) =
        user.map_or_else(Default::default, |user| (given(&user.requests), given(&user.limits)));
    for (key, request, limit) in
        [("cpu", default.requests.0, default.limits.0), ("memory", default.requests.1, default.limits.1)]
    {
        let value = |text: &str| amount(text).unwrap_or(f64::MAX);
        if !requests.contains_key(key) {
            let chosen = limits.get(key).filter(|limit| value(&limit.0) < value(request));
            requests.insert(key.to_owned(), chosen.cloned().unwrap_or_else(|| Quantity(request.to_owned())));
        }
        if !limits.contains_key(key) {
            let chosen = requests.get(key).filter(|request| value(&request.0) > value(limit));
            let chosen = chosen.cloned().unwrap_or_else(|| Quantity(limit.to_owned()));
            limits.insert(key.to_owned(), chosen);
        }
    }
    ResourceRequirements { requests: Some(requests), limits: Some(limits), claims: None }
}

/// The number that a quantity stands for; `None` where it is not one.
fn amount(quantity: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| quantity.strip_suffix(suffix).map(|number| (number, *factor)))
        .map_or_else(|| quantity.parse().ok(), |(number, factor)| number.parse::<f64>().ok().map(|n| n * factor))
}

/// What the operator decides about a pod; the rest is the user's [`PodTemplate`].
#[derive(Debug)]
pub struct PodPlan {
    /// Name of its one container.
    pub container: &'static str,
    /// Image where the user names none.
    pub image: String,
    /// Pull policy of the image.
    pub image_pull_policy: Option<String>,
    /// Arguments where the user gives neither command nor arguments.
    pub args: Vec<String>,
    /// Environment that the operator sets; it wins over the user's.
    pub env: Vec<EnvVar>,
    /// CPU and memory where the user says nothing.
    pub resources: DefaultResources,
    /// Labels that the operator sets; they win over the user's.
    pub labels: BTreeMap<String, String>,
    /// Volumes and where they are mounted.
    pub volumes: Vec<(Volume, VolumeMount)>,
}

/// A pod with one container that the restricted Pod Security profile takes: non-root, no privileges, read-only root
/// file system with an empty `/tmp`, and no API token unless the user names a service account.
pub fn pod(plan: PodPlan, user: &PodTemplate) -> PodTemplateSpec {
    let (mut volumes, mut mounts): (Vec<_>, Vec<_>) = plan.volumes.into_iter().unzip();
    volumes.push(Volume {
        name: "tmp".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    });
    mounts.push(VolumeMount { name: "tmp".to_owned(), mount_path: "/tmp".to_owned(), ..VolumeMount::default() });

    let own: Vec<&str> = plan.env.iter().map(|variable| variable.name.as_str()).collect();
    let mut env: Vec<EnvVar> =
        user.env.iter().filter(|variable| !own.contains(&variable.name.as_str())).cloned().collect();
    env.extend(plan.env);

    let own_entry_point = user.command.is_empty() && user.args.is_empty();
    let container = Container {
        name: plan.container.to_owned(),
        image: Some(user.image.clone().unwrap_or(plan.image)),
        image_pull_policy: plan.image_pull_policy,
        command: some(user.command.clone()),
        args: some(if own_entry_point { plan.args } else { user.args.clone() }),
        env: some(env),
        resources: Some(resources(user.resources.as_ref(), plan.resources)),
        volume_mounts: Some(mounts),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };

    let mut labels = user.labels.clone();
    labels.extend(plan.labels);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(user.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            volumes: Some(volumes),
            automount_service_account_token: Some(user.service_account_name.is_some()),
            service_account_name: user.service_account_name.clone(),
            enable_service_links: Some(false),
            node_selector: Some(user.node_selector.clone()).filter(|selector| !selector.is_empty()),
            tolerations: some(user.tolerations.clone()),
            priority_class_name: user.priority_class_name.clone(),
            image_pull_secrets: some(
                user.image_pull_secrets
                    .iter()
                    .map(|secret| k8s_openapi::api::core::v1::LocalObjectReference { name: secret.name.clone() })
                    .collect(),
            ),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                // A claim with many checkpoints would otherwise be walked at every start.
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: DefaultResources = DefaultResources { requests: ("500m", "512Mi"), limits: ("2", "2Gi") };

    fn user(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Resources {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        Resources { requests: map(requests), limits: map(limits) }
    }

    #[test]
    fn a_default_never_contradicts_what_the_user_says() {
        let merged = resources(Some(&user(&[("memory", "4Gi")], &[("cpu", "100m")])), DEFAULT);
        let requests = merged.requests.expect("requests");
        let limits = merged.limits.expect("limits");
        assert_eq!((requests["cpu"].0.as_str(), limits["cpu"].0.as_str()), ("100m", "100m"));
        assert_eq!((requests["memory"].0.as_str(), limits["memory"].0.as_str()), ("4Gi", "4Gi"));
    }

    #[test]
    fn every_pod_has_requests_and_limits() {
        let merged = resources(None, DEFAULT);
        assert_eq!(merged.requests.expect("requests").len(), 2);
        assert_eq!(merged.limits.expect("limits").len(), 2);
    }

    #[test]
    fn quantities_compare_across_their_suffixes() {
        assert_eq!(amount("500m"), Some(0.5));
        assert_eq!(amount("1Gi"), Some(1_073_741_824.0));
        assert_eq!(amount("1e3"), Some(1000.0));
        assert_eq!(amount("lots"), None);
    }
}
