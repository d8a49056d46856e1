//! What a checkpoint holds, told without building a network.

use std::{fmt::Write as _, fs::File, io::BufReader, path::Path};

use anneal_api::checkpoint::KEY;
use anneal_model::{Checkpoint, CheckpointError, sha256_file};
use anneal_pth::{Limits, ReadError, TensorData, Value};

use crate::outcome::Error;

/// Keys under which programs keep a network's weights.
const WEIGHTS: [&str; 2] = ["model_state_dict", "state_dict"];

/// Describes a checkpoint, or whatever else a `.pth` file holds, for a person.
///
/// # Errors
/// When it cannot be read.
pub fn describe(path: &Path) -> Result<String, Error> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let file = sha256_file(path).map_err(io)?;
    let value = match anneal_pth::read(BufReader::new(File::open(path).map_err(io)?), &Limits::default()) {
        // Another container, if it is one that checkpoints are read from.
        Err(ReadError::NotPth) => Checkpoint::load(path)?.state.into_value(),
        value => value.map_err(CheckpointError::Read)?,
    };
    let mut text = format!("{}: {} bytes, sha256 {}\n", path.display(), file.bytes, file.sha256);
    let weights = WEIGHTS.into_iter().find_map(|key| Some((key, value.as_dict()?.get(key)?)));
    let mut tensors = Vec::new();
    if let Some((_, weights)) = weights {
        tensors_of("", weights, &mut tensors);
    }
    // Writing to a String cannot fail.
    if let Some(said) = value.as_dict().and_then(|dict| dict.get(KEY)?.as_str()) {
        let pretty = serde_json::from_str(said).map(|said: serde_json::Value| format!("{said:#}"));
        let _ = writeln!(text, "\n{KEY}: {}", pretty.unwrap_or_else(|_| said.to_owned()));
    } else if let Ok(contract) = Checkpoint::load(path).and_then(|checkpoint| checkpoint.contract()) {
        let _ =
            writeln!(text, "\n{} with {} classes", contract.model.architecture.class_name(), contract.classes.len());
    }
    for (key, value) in parts(&value) {
        let before = tensors.len();
        if weights.is_none() {
            tensors_of(&key, value, &mut tensors);
        }
        if tensors.len() == before && key != KEY && weights.is_none_or(|(name, _)| name != key) {
            let _ = writeln!(text, "{key}: {}", short(value));
        }
    }
    let numbers: usize = tensors.iter().map(|(_, tensor)| tensor.numel()).sum();
    let _ = writeln!(text, "\n{} tensors, {numbers} numbers", tensors.len());
    let width = tensors.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, tensor) in &tensors {
        let _ = writeln!(text, "{name:width$}  {:8}  {:?}", tensor.dtype().to_string(), tensor.shape());
    }
    Ok(text)
}

/// What a container holds, by key or position.
fn parts(value: &Value) -> Vec<(String, &Value)> {
    let name = |key: &Value| key.as_str().map_or_else(|| short(key), str::to_owned);
    match value {
        Value::Dict(dict) => dict.entries.iter().map(|(key, value)| (name(key), value)).collect(),
        Value::List(items) | Value::Tuple(items) => {
            items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect()
        }
        _ => Vec::new(),
    }
}

/// The tensors of a value, however deep, by their path with dots.
fn tensors_of<'a>(path: &str, value: &'a Value, into: &mut Vec<(String, &'a TensorData)>) {
    if let Value::Tensor(tensor) = value {
        into.push((path.to_owned(), tensor));
    }
    for (name, part) in parts(value) {
        let path = if path.is_empty() { name } else { format!("{path}.{name}") };
        tensors_of(&path, part, into);
    }
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
