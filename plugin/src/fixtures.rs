//! Objects for tests that say only what matters to the case.

use anneal_api::resources::{ModelDeployment, TrainingRun, TrainingSweep};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// When tests are: ten minutes after everything was made.
pub fn now() -> Timestamp {
    "2026-01-02T03:14:05Z".parse().expect("a time")
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": "demo", "uid": "1", "generation": 1, "creationTimestamp": "2026-01-02T03:04:05Z"})
}

/// A condition that is true.
pub fn condition(kind: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": "2026-01-02T03:04:05Z"})
}

/// A run named `cats` with this status.
pub fn run(status: &Value) -> TrainingRun {
    let run = json!({
        "apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun", "metadata": metadata("cats"), "status": status,
        "spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}
    });
    serde_json::from_value(run).expect("a run")
}

/// A deployment named `cats` with this status.
pub fn deployment(status: &Value) -> ModelDeployment {
    let deployment = json!({
        "apiVersion": "anneal.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata("cats"), "status": status,
        "spec": {"model": {"trainingRunRef": {"name": "cats"}}}
    });
    serde_json::from_value(deployment).expect("a deployment")
}

/// A sweep named `rates` with this status.
pub fn sweep(status: &Value) -> TrainingSweep {
    let sweep = json!({
        "apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingSweep", "metadata": metadata("rates"), "status": status,
        "spec": {
            "parameters": [{"name": "hyperparameters.learningRate", "values": [0.001, 0.01]}],
            "template": {"spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}}
        }
    });
    serde_json::from_value(sweep).expect("a sweep")
}

/// A pod with these labels and this status.
pub fn pod(name: &str, labels: &Value, status: &Value) -> Pod {
    let mut metadata = metadata(name);
    metadata["labels"] = labels.clone();
    serde_json::from_value(
        json!({"metadata": metadata, "spec": {"containers": [], "nodeName": "node-1"}, "status": status}),
    )
    .expect("a pod")
}
