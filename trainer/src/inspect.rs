//! What a checkpoint holds, told without building a network.

use std::{fmt::Write as _, path::Path};

use anneal_model::{Checkpoint, sha256_file};
use anneal_pth::Value;

use crate::outcome::Error;

/// Describes a checkpoint for a person.
///
/// # Errors
/// When it cannot be read.
pub fn describe(path: &Path) -> Result<String, Error> {
    let file =
        sha256_file(path).map_err(|source| anneal_model::CheckpointError::Io { path: path.to_owned(), source })?;
    let checkpoint = Checkpoint::load(path)?;
    let mut text = format!("{}: {} bytes, sha256 {}\n", path.display(), file.bytes, file.sha256);
    // Writing to a String cannot fail.
    if let Some(info) = &checkpoint.info {
        let json = serde_json::to_string_pretty(info).map_err(|error| Error::Internal(error.to_string()))?;
        let _ = writeln!(text, "\nanneal: {json}");
    } else if let Ok(contract) = checkpoint.contract() {
        let _ =
            writeln!(text, "\n{} with {} classes", contract.model.architecture.class_name(), contract.classes.len());
    }
    for (key, value) in &checkpoint.extra {
        let _ = writeln!(text, "{key}: {}", short(value));
    }
    let numbers: usize = checkpoint.state.0.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum();
    let _ = writeln!(text, "\n{} tensors, {numbers} numbers", checkpoint.state.0.len());
    let width = checkpoint.state.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, tensor) in &checkpoint.state.0 {
        let _ = writeln!(text, "{name:width$}  {:8}  {:?}", tensor.dtype().to_string(), tensor.shape());
    }
    Ok(text)
}

fn short(value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Str(value) => format!("{value:?}"),
        Value::List(items) | Value::Tuple(items) => format!("[{} items]", items.len()),
        Value::Tensor(tensor) => format!("{} {:?}", tensor.dtype(), tensor.shape()),
        Value::Dict(dict) => {
            let keys = dict.entries.iter().filter_map(|(key, _)| key.as_str()).collect::<Vec<_>>();
            format!("{{{}}}", keys.join(", "))
        }
    }
}
