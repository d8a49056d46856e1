//! What every generated object has in common: its owner, its labels, and pods that the restricted Pod Security
//! profile takes.

mod pod;

use std::collections::BTreeMap;

use anneal_api::{
    names::{OPERATOR, label},
    resources::{PodTemplate, Resources},
};
use k8s_openapi::{
    api::core::v1::{EnvVar, ResourceRequirements},
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{Resource, ResourceExt};
pub use pod::{PodPlan, pod};

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
