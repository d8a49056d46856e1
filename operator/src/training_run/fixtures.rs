//! What the tests start from.

use anneal_api::resources::TrainingRun;
use serde_json::{Value, json};

/// A run named `cats` on the synthetic set, with these fields of its spec besides.
pub fn run(spec: &Value) -> TrainingRun {
    let mut all = json!({"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}});
    all.as_object_mut().expect("a spec").extend(spec.as_object().expect("a patch").clone());
    let mut run = TrainingRun::new("cats", serde_json::from_value(all).expect("a spec"));
    run.metadata.uid = Some("0123456789".into());
    run
}

/// What a run of this accuracy published: the digest is this digit again and again.
pub fn result(digit: &str, accuracy: f64) -> Value {
    json!({
        "checkpoint": "models/a.pth", "sha256": digit.repeat(64), "bytes": 1, "classes": ["cat", "dog"], "seed": 0,
        "epochs": 1, "metrics": {"accuracy": accuracy, "precision": 1.0, "recall": 1.0, "f1": 1.0},
        "dataset": {"digest": "sha256:1", "images": 1, "skipped": 0},
    })
}
