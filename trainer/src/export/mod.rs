//! A checkpoint in the formats of other programs.

mod onnx;
mod protobuf;

use std::{collections::HashMap, fs, path::Path};

use anneal_model::{Checkpoint, StateDict};
use anneal_pth::DType;
use clap::ValueEnum;
use safetensors::tensor::{Dtype, TensorView};

use crate::{files, outcome::Error};

/// A format of other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// ONNX: network and weights, for onnxruntime and others; input and outputs are described in its metadata.
    Onnx,
    /// safetensors: weights only, by PyTorch's names.
    Safetensors,
}

/// The checkpoint in a format.
///
/// # Errors
/// When its weights are not those of its network.
pub fn export(checkpoint: &Checkpoint, format: Format) -> Result<Vec<u8>, Error> {
    match format {
        Format::Onnx => {
            let contract = checkpoint.contract()?;
            // Through the network: names, shapes and number formats are then what its definition says.
            let state = checkpoint.network()?.state()?;
            onnx::model(&contract, &state).map_err(Error::Internal)
        }
        Format::Safetensors => safetensors(checkpoint),
    }
}

/// Writes the checkpoint in a format to a file. What is no plain file, such as `/dev/stdout`, is written to: a file would
/// take its place otherwise.
///
/// # Errors
/// As [`export`], and when the file system refuses.
pub fn to_file(checkpoint: &Checkpoint, format: Format, path: &Path) -> Result<usize, Error> {
    let content = export(checkpoint, format)?;
    let other = fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir());
    let written = if other { fs::write(path, &content) } else { files::write(path, &content) };
    written.map_err(Error::writing(path))?;
    Ok(content.len())
}

fn safetensors(checkpoint: &Checkpoint) -> Result<Vec<u8>, Error> {
    let StateDict(tensors) = &checkpoint.state;
    let views = tensors.iter().map(|(name, tensor)| {
        Ok((name, TensorView::new(dtype(tensor.dtype()), tensor.shape().to_vec(), tensor.data())?))
    });
    let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    if let Some(info) = &checkpoint.info {
        let json = serde_json::to_string(info).map_err(|error| Error::Internal(error.to_string()))?;
        metadata.insert(anneal_api::checkpoint::KEY.to_owned(), json);
    }
    let written = views
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| safetensors::serialize(views, Some(metadata)));
    written.map_err(|error| Error::Internal(format!("the weights cannot be written as safetensors: {error}")))
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::Bool => Dtype::BOOL,
    }
}

#[cfg(test)]
mod tests {
    use anneal_api::model::Architecture;
    use anneal_model::Network;

    use super::*;

    #[test]
    fn safetensors_hold_every_tensor_under_its_name() {
        let state = Network::new(Architecture::Improved, 3, 0).expect("a network").state().expect("a state");
        let checkpoint = Checkpoint { info: None, state: state.clone(), extra: Vec::new() };
        let written = export(&checkpoint, Format::Safetensors).expect("a file");
        let read = safetensors::SafeTensors::deserialize(&written).expect("safetensors");
        assert_eq!(read.len(), state.0.len());
        for (name, tensor) in &state.0 {
            let other = read.tensor(name).expect("the tensor");
            assert_eq!((other.shape(), other.data()), (tensor.shape(), tensor.data()), "{name}");
        }
    }
}
