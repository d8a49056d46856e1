//! What a `.pth` file can hold: Python's plain values, containers of them, and tensors.

use std::fmt;

/// A value of a `.pth` file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An `int` that fits into 64 bits.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Str(String),
    /// A `tuple`; `torch.Size` is read as one.
    Tuple(Vec<Value>),
    /// A `list`.
    List(Vec<Value>),
    /// A `dict` or a `collections.OrderedDict`.
    Dict(Dict),
    /// A `torch.Tensor`; a `torch.nn.Parameter` is read as one.
    Tensor(TensorData),
}

impl Value {
    /// The dict, if this is one.
    pub fn as_dict(&self) -> Option<&Dict> {
        if let Self::Dict(dict) = self { Some(dict) } else { None }
    }

    /// The string, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// The int, if this is one.
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(int) = self { Some(*int) } else { None }
    }

    /// The float, if this is one.
    pub fn as_float(&self) -> Option<f64> {
        if let Self::Float(float) = self { Some(*float) } else { None }
    }

    /// The tensor, if this is one.
    pub fn as_tensor(&self) -> Option<&TensorData> {
        if let Self::Tensor(tensor) = self { Some(tensor) } else { None }
    }

    /// The items, if this is a list or a tuple.
    pub fn as_items(&self) -> Option<&[Value]> {
        if let Self::List(items) | Self::Tuple(items) = self { Some(items) } else { None }
    }

    /// The name of the value's Python type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Tuple(_) => "tuple",
            Self::List(_) => "list",
            Self::Dict(dict) if dict.ordered => "OrderedDict",
            Self::Dict(_) => "dict",
            Self::Tensor(_) => "Tensor",
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Str(value)
    }
}

impl From<Dict> for Value {
    fn from(value: Dict) -> Self {
        Self::Dict(value)
    }
}

impl From<TensorData> for Value {
    fn from(value: TensorData) -> Self {
        Self::Tensor(value)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

/// A Python dict, in the order of insertion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dict {
    /// Whether it is a `collections.OrderedDict`.
    pub ordered: bool,
    /// Keys and values. A key that comes twice counts with its last value.
    pub entries: Vec<(Value, Value)>,
}

impl Dict {
    /// A plain `dict` with strings as keys.
    pub fn plain<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self {
            ordered: false,
            entries: entries.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect(),
        }
    }

    /// A `collections.OrderedDict` with strings as keys, as `Module.state_dict()` gives.
    pub fn ordered<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self { ordered: true, ..Self::plain(entries) }
    }

    /// The value under a string key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }
}

/// Element types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// `torch.float16`.
    F16,
    /// `torch.bfloat16`.
    BF16,
    /// `torch.float32`.
    F32,
    /// `torch.float64`.
    F64,
    /// `torch.uint8`.
    U8,
    /// `torch.int8`.
    I8,
    /// `torch.int16`.
    I16,
    /// `torch.int32`.
    I32,
    /// `torch.int64`.
    I64,
    /// `torch.bool`, one byte an element.
    Bool,
}

impl DType {
    /// All element types.
    pub const ALL: [Self; 10] =
        [Self::F16, Self::BF16, Self::F32, Self::F64, Self::U8, Self::I8, Self::I16, Self::I32, Self::I64, Self::Bool];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// The class in module `torch` that stands for this type in a pickle.
    pub(crate) fn storage(self) -> &'static str {
        match self {
            Self::F16 => "HalfStorage",
            Self::BF16 => "BFloat16Storage",
            Self::F32 => "FloatStorage",
            Self::F64 => "DoubleStorage",
            Self::U8 => "ByteStorage",
            Self::I8 => "CharStorage",
            Self::I16 => "ShortStorage",
            Self::I32 => "IntStorage",
            Self::I64 => "LongStorage",
            Self::Bool => "BoolStorage",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::Bool => "bool",
        })
    }
}

/// Shape and bytes of a tensor do not belong together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a {dtype} tensor of shape {shape:?} does not have {bytes} bytes")]
pub struct TensorError {
    dtype: DType,
    shape: Vec<usize>,
    bytes: usize,
}

/// A tensor's numbers: contiguous, row-major, little-endian. Its bytes always fill its shape.
#[derive(Clone, PartialEq)]
pub struct TensorData {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl TensorData {
    /// A tensor of contiguous, row-major, little-endian numbers. An empty shape is a scalar.
    ///
    /// # Errors
    /// When `data` does not hold exactly the elements of `shape`.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Vec<u8>) -> Result<Self, TensorError> {
        let bytes = shape.iter().try_fold(dtype.size(), |product, &n| product.checked_mul(n));
        if bytes == Some(data.len()) {
            Ok(Self { dtype, shape, data })
        } else {
            Err(TensorError { dtype, bytes: data.len(), shape })
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements' bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Count of elements.
    pub fn numel(&self) -> usize {
        self.data.len() / self.dtype.size()
    }
}

/// Type and shape only: the numbers would fill screens.
impl fmt::Debug for TensorData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorData({} {:?})", self.dtype, self.shape)
    }
}
