//! State dicts: a network's tensors by name, between a `.pth` file and libtorch.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use anneal_pth::{DType, Dict, TensorData, TensorError, Value};
use tch::{Kind, TchError, Tensor};

/// Tensors by name, in order, outside libtorch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict(pub Vec<(String, TensorData)>);

/// A state dict does not fit.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The value is no state dict.
    #[error("a state dict is a dict of tensors by name, but {0}; save `model.state_dict()`")]
    NotAStateDict(String),
    /// The tensors are not the network's.
    #[error(
        "the checkpoint's tensors are not those of this network: {0}; choose the architecture and the number of classes that it was trained with"
    )]
    Mismatch(Mismatch),
    /// A tensor is of a kind that a `.pth` file of ours does not hold.
    #[error("tensors of kind {0:?} cannot be stored; convert them to float32")]
    Kind(Kind),
    /// A tensor's bytes are not what its shape says.
    #[error(transparent)]
    Bytes(#[from] TensorError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// How two sets of named tensors differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Names that the network has and the file lacks.
    pub missing: Vec<String>,
    /// Names that the file has and the network lacks.
    pub unexpected: Vec<String>,
    /// Name, shape in the network and shape in the file.
    pub shapes: Vec<(String, Vec<i64>, Vec<usize>)>,
    /// Name and type in the file, where it cannot become the network's.
    pub dtypes: Vec<(String, DType)>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes: Vec<_> = self
            .shapes
            .iter()
            .map(|(name, ours, theirs)| format!("{name} is {theirs:?} instead of {ours:?}"))
            .collect();
        let dtypes: Vec<_> = self.dtypes.iter().map(|(name, dtype)| format!("{name} is {dtype}")).collect();
        let groups = [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("wrong shape", &shapes),
            ("wrong dtype", &dtypes),
        ];
        let mut separator = "";
        for (what, names) in groups.into_iter().filter(|(_, names)| !names.is_empty()) {
            // Ten names tell which network it was; a hundred would hide the rest of the message.
            let shown = names.len().min(10);
            write!(f, "{separator}{what}: {}", names[..shown].join(", "))?;
            if shown < names.len() {
                write!(f, " and {} more", names.len() - shown)?;
            }
            separator = "; ";
        }
        Ok(())
    }
}

impl StateDict {
    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorData> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, tensor)| tensor)
    }

    /// Takes a dict (plain or ordered) of tensors by name.
    ///
    /// # Errors
    /// [`StateError::NotAStateDict`] when it is anything else.
    pub fn from_value(value: Value) -> Result<Self, StateError> {
        let Value::Dict(dict) = value else {
            return Err(StateError::NotAStateDict(format!("this is a {}", value.type_name())));
        };
        let entries = dict.entries.into_iter().map(|entry| match entry {
            (Value::Str(name), Value::Tensor(tensor)) => Ok((name, tensor)),
            (Value::Str(name), other) => {
                Err(StateError::NotAStateDict(format!("this one has a {} under {name:?}", other.type_name())))
            }
            (key, _) => Err(StateError::NotAStateDict(format!("this one has a {} as a key", key.type_name()))),
        });
        Ok(Self(entries.collect::<Result<_, _>>()?))
    }

    /// An `OrderedDict` of tensors by name, as `Module.state_dict()` gives.
    pub fn into_value(self) -> Value {
        Value::Dict(Dict::ordered(self.0.into_iter().map(|(name, tensor)| (name, Value::Tensor(tensor)))))
    }

    /// Copies all tensors into the targets of the same names; changes nothing where anything differs.
    pub(crate) fn copy_into(&self, targets: &[(String, Tensor)]) -> Result<(), StateError> {
        let sources: HashMap<&str, &TensorData> = self.0.iter().map(|(name, data)| (name.as_str(), data)).collect();
        let mut mismatch = Mismatch::default();
        let mut pairs = Vec::with_capacity(targets.len());
        for (name, target) in targets {
            let Some(source) = sources.get(name.as_str()) else {
                mismatch.missing.push(name.clone());
                continue;
            };
            let shape = target.size();
            if !shape.iter().map(|&n| usize::try_from(n).ok()).eq(source.shape().iter().map(|&n| Some(n))) {
                mismatch.shapes.push((name.clone(), shape, source.shape().to_vec()));
            } else if is_float(source.dtype()) != (target.f_kind()? == Kind::Float) {
                mismatch.dtypes.push((name.clone(), source.dtype()));
            } else {
                pairs.push((*source, target));
            }
        }
        let known: HashSet<&str> = targets.iter().map(|(name, _)| name.as_str()).collect();
        mismatch.unexpected =
            self.0.iter().map(|(name, _)| name).filter(|name| !known.contains(name.as_str())).cloned().collect();
        if !mismatch.is_empty() {
            return Err(StateError::Mismatch(mismatch));
        }
        tch::no_grad(|| {
            for (source, target) in pairs {
                target.shallow_clone().f_copy_(&data_to_tensor(source)?)?;
            }
            Ok(())
        })
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

/// A contiguous tensor on the CPU with these numbers.
///
/// # Errors
/// When libtorch fails.
pub fn data_to_tensor(data: &TensorData) -> Result<Tensor, StateError> {
    let kind = match data.dtype() {
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
        DType::U8 => Kind::Uint8,
        DType::I8 => Kind::Int8,
        DType::I16 => Kind::Int16,
        DType::I32 => Kind::Int,
        DType::I64 => Kind::Int64,
        DType::Bool => Kind::Bool,
    };
    let shape = data.shape().iter().map(|&n| i64::try_from(n)).collect::<Result<Vec<_>, _>>();
    // A dimension beyond i64 cannot be: its bytes would not fit into memory.
    let shape = shape.map_err(|_| TchError::Shape(format!("{:?}", data.shape())))?;
    Ok(Tensor::f_from_data_size(data.data(), &shape, kind)?)
}

/// A copy of a tensor's numbers, contiguous and row-major whatever its layout is.
///
/// # Errors
/// [`StateError::Kind`] for kinds that have no place in a `.pth` file (complex, quantised, float8).
pub fn tensor_to_data(tensor: &Tensor) -> Result<TensorData, StateError> {
    let dtype = match tensor.f_kind()? {
        Kind::Half => DType::F16,
        Kind::BFloat16 => DType::BF16,
        Kind::Float => DType::F32,
        Kind::Double => DType::F64,
        Kind::Uint8 => DType::U8,
        Kind::Int8 => DType::I8,
        Kind::Int16 => DType::I16,
        Kind::Int => DType::I32,
        Kind::Int64 => DType::I64,
        Kind::Bool => DType::Bool,
        other => return Err(StateError::Kind(other)),
    };
    let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
    let mut data = vec![0; tensor.numel() * dtype.size()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    let shape = tensor.size().into_iter().map(|n| usize::try_from(n).unwrap_or_default()).collect();
    Ok(TensorData::new(dtype, shape, data)?)
}
