//! What the tests start from.

use anneal_api::{Sha256, resources::ModelDeployment};
use serde_json::{Value, json};

use crate::model_deployment::validate::{ValidDeployment, validate};

/// A deployment named `cats` with this spec.
pub fn deployment(spec: &Value) -> ModelDeployment {
    serde_json::from_value(json!({
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "cats", "namespace": "demo", "uid": "owner", "generation": 1},
        "spec": spec,
    }))
    .expect("a deployment")
}

/// The spec of a deployment of a file.
pub fn valid(name: &str) -> ValidDeployment {
    let mut deployment = deployment(&json!({
        "model": {"claimName": "models", "path": "models/a.pth", "sha256": "a".repeat(64)},
    }));
    deployment.metadata.name = Some(name.to_owned());
    validate(&deployment).expect("a valid spec")
}

/// A digest of one digit.
pub fn digest(digit: char) -> Sha256 {
    digit.to_string().repeat(64).parse().expect("a digest")
}
