//! The model as MLflow keeps models: ONNX with a description beside it.

use std::{fs, path::Path};

use anneal_model::Checkpoint;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    export::{self, Format},
    files,
    outcome::Error,
};

/// What MLflow's flavour needs to load the model.
const REQUIREMENTS: [&str; 4] = ["mlflow", "numpy", "onnx", "onnxruntime"];
const PYTHON: &str = "3.12";

/// Writes the folder that `mlflow.onnx.load_model` loads.
///
/// # Errors
/// When the checkpoint cannot be exported or the file system refuses.
pub(super) fn write_model(checkpoint: &Checkpoint, dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::writing(dir))?;
    let contract = checkpoint.contract()?;
    let bytes = export::to_file(checkpoint, Format::Onnx, &dir.join("model.onnx"))?;
    let side = contract.preprocessing.size;
    let classes = contract.classes.len();
    let tensor = |name: &str, shape: Value| json!({"name": name, "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": shape}});
    let inputs = json!([tensor("input", json!([-1, 3, side, side]))]);
    let outputs = json!([tensor("logits", json!([-1, classes])), tensor("probabilities", json!([-1, classes]))]);
    let description = json!({
        "artifact_path": "model",
        "flavors": {
            "onnx": {"code": null, "data": "model.onnx", "onnx_version": "1.17.0", "providers": ["CPUExecutionProvider"]},
            "python_function": {
                "data": "model.onnx",
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.onnx",
                "python_version": PYTHON,
            },
        },
        "metadata": {"classes": contract.classes, "preprocessing": contract.preprocessing},
        "model_size_bytes": bytes,
        "signature": {"inputs": inputs.to_string(), "outputs": outputs.to_string()},
        "utc_time_created": Timestamp::now().strftime("%Y-%m-%d %H:%M:%S.%6f").to_string(),
    });
    let conda = json!({
        "channels": ["conda-forge"],
        "dependencies": [format!("python={PYTHON}"), "pip", {"pip": REQUIREMENTS}],
        "name": "mlflow-env",
    });
    let python = json!({"python": PYTHON, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]});
    let yaml = |value: &Value| serde_yaml::to_string(value).map_err(|error| Error::Internal(error.to_string()));
    for (name, content) in [
        ("conda.yaml", yaml(&conda)?),
        ("python_env.yaml", yaml(&python)?),
        ("requirements.txt", REQUIREMENTS.join("\n") + "\n"),
        // Last: it is what makes the folder a model.
        ("MLmodel", yaml(&description)?),
    ] {
        let path = dir.join(name);
        files::write(&path, content.as_bytes()).map_err(Error::writing(path))?;
    }
    Ok(())
}
