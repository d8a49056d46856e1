//! Manifests that say only what matters to a test, over defaults that two cores carry.

use serde_json::{Value, json};

/// A claim for models.
pub fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    })
}

/// A `TrainingRun` that is done in seconds, with `spec` merged over it; `null` takes a field away. Its model is good
/// for nothing but being served: see [`well_trained`].
pub fn training_run(name: &str, spec: Value) -> Value {
    let mut all = json!({
        "model": {"architecture": "improved", "inputSize": 32},
        "dataset": {"uri": "synthetic://?images=40&size=32"},
        "hyperparameters": {"epochs": 1, "batchSize": 8, "threads": 1},
        "output": {"claimName": "models"},
        "podTemplate": {"resources": {
            "requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}
        }}
    });
    merge(&mut all, spec);
    json!({"apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun", "metadata": {"name": name}, "spec": all})
}

/// What [`training_run`] is given to tell a cat from a dog, and to take long enough to be watched.
pub fn well_trained(seed: i64) -> Value {
    json!({
        "dataset": {"uri": "synthetic://?images=400&size=32"},
        "hyperparameters": {
            "epochs": 3, "batchSize": 16, "seed": seed,
            "augmentation": {
                "rotationDegrees": 0, "translate": 0, "scale": 0, "brightness": 0, "contrast": 0, "saturation": 0,
                "hue": 0
            }
        }
    })
}

/// A `ModelDeployment` of one replica, with `spec` merged over it; `null` takes a field away.
pub fn model_deployment(name: &str, spec: Value) -> Value {
    let mut all = json!({
        "gate": {"soakSeconds": 5},
        "replicas": 1,
        "podTemplate": {"resources": {
            "requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}
        }}
    });
    merge(&mut all, spec);
    json!({"apiVersion": "anneal.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": all})
}

/// A `TrainingSweep` over the run that [`training_run`] makes, with `spec` merged over it; `null` takes a field away.
pub fn training_sweep(name: &str, spec: Value) -> Value {
    let mut all = json!({"template": template(), "parallelism": 2});
    merge(&mut all, spec);
    json!({"apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingSweep", "metadata": {"name": name}, "spec": all})
}

/// A `CronTrainingRun` of the run that [`training_run`] makes, with `spec` merged over it; `null` takes a field away.
pub fn cron_training_run(name: &str, spec: Value) -> Value {
    let mut all = json!({"template": template(), "schedule": "* * * * *"});
    merge(&mut all, spec);
    json!({"apiVersion": "anneal.dev/v1alpha1", "kind": "CronTrainingRun", "metadata": {"name": name}, "spec": all})
}

fn template() -> Value {
    json!({"spec": training_run("", json!({}))["spec"]})
}

/// A `ConfigMap` with one file, given in Base64.
pub fn file(name: &str, file: &str, base64: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "binaryData": {file: base64}})
}

/// A smoke case about a file of a `ConfigMap`.
pub fn smoke_case(files: &str, file: &str, expected_class: &str) -> Value {
    json!({
        "name": file.trim_end_matches(".png"),
        "image": {"configMapKeyRef": {"name": files, "key": file}},
        "expectedClass": expected_class
    })
}

/// A JSON merge patch (RFC 7386).
pub fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, patch) => *into = patch,
    }
}
