//! Reads and writes PyTorch's `.pth` files (a zip of a pickle and raw tensors) without libtorch and without running
//! anything that a file asks for.
//!
//! ```
//! use anneal_pth::{DType, Dict, Limits, TensorData, Value, read, write};
//!
//! let weight = TensorData::new(DType::I32, vec![2], vec![1, 0, 0, 0, 2, 0, 0, 0])?;
//! let state = Value::Dict(Dict::ordered([("weight", Value::Tensor(weight))]));
//! let mut file = std::io::Cursor::new(Vec::new());
//! write(&mut file, &state)?;
//! assert_eq!(read(&mut file, &Limits::default())?, state);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The format is the one of `torch.save` since PyTorch 1.6, as `torch/serialization.py` and
//! `caffe2/serialize/inline_container.cc` of PyTorch define it. What [`write`] writes, `torch.load(weights_only=True)`
//! takes, with `mmap=True` too.

#[cfg(fuzzing)]
pub mod fuzzing;
mod limits;
mod pickle;
mod read;
#[cfg(test)]
mod tests;
mod value;
mod write;
mod zip;

pub use limits::Limits;
pub use pickle::PickleError;
pub use read::{ReadError, read};
pub use value::{DType, Dict, TensorData, TensorError, Value};
pub use write::write;
pub use zip::ZipError;
