//! Reads a `.pth` file into a value.

use std::{
    collections::HashSet,
    io::{Read, Seek, SeekFrom},
    rc::Rc,
};

use crate::{
    limits::Limits,
    pickle::{Id, Node, PickleError, Tensor, Tree, parse},
    value::{Dict, TensorData, TensorError, Value},
    zip::{Archive, ZipError},
};

/// A file cannot be read as a `.pth` file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive cannot be read.
    #[error("{0}")]
    Zip(#[from] ZipError),
    /// The pickle cannot be read.
    #[error("{0}")]
    Pickle(#[from] PickleError),
    /// The file is no archive at all.
    #[error("this is no .pth file; a .pth file is what torch.save(model.state_dict(), path) writes")]
    NotPth,
    /// The file has the format from before PyTorch 1.6.
    #[error(
        "this .pth file has the format from before PyTorch 1.6; load it with torch.load and save it with torch.save once in a newer PyTorch"
    )]
    Legacy,
    /// The file holds a program.
    #[error(
        "this is a TorchScript archive, which holds a program; save the weights with torch.save(model.state_dict(), path)"
    )]
    TorchScript,
    /// The numbers are big-endian.
    #[error("the tensors are big-endian; save the file again on a little-endian machine")]
    BigEndian,
    /// A tensor does not lie within its storage.
    #[error("a tensor lies outside of its storage {0:?}; the file is damaged, copy it again")]
    OutOfStorage(String),
    /// The values take more than is allowed.
    #[error("the file holds {0} than is allowed")]
    TooMuch(&'static str),
    /// A tensor's bytes are not what its shape says.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Reads a `.pth` file, as `torch.save` of PyTorch 1.6 or newer or [`write`](crate::write()) writes it.
///
/// Strided and shared tensors become contiguous ones of their own, tensors of any device are read to memory, and
/// `torch.nn.Parameter`s become tensors. Attributes of an `OrderedDict` (`_metadata`) are left out.
///
/// # Errors
/// When the file is damaged, of another format, asks for classes beyond tensors and plain values, or exceeds `limits`.
pub fn read(mut file: impl Read + Seek, limits: &Limits) -> Result<Value, ReadError> {
    match magic(&mut file)? {
        [b'P', b'K', 3, 4] => {}
        // A pickle of protocol 2, 3 or 4 that begins with a number: the magic number of the old format.
        [0x80, 2..=4, ..] => return Err(ReadError::Legacy),
        _ => return Err(ReadError::NotPth),
    }
    let mut archive = Archive::open(file, limits.max_entries)?;
    let top = top(&archive)?;
    let byte_order = format!("{top}/byteorder");
    // Files from before PyTorch 2.1 do not say, and are little-endian.
    if archive.contains(&byte_order) && archive.read(&byte_order, 16)? != b"little" {
        return Err(ReadError::BigEndian);
    }
    let pickle = archive.read(&format!("{top}/data.pkl"), limits.max_pickle_bytes as u64)?;
    let tree = parse(&pickle, limits)?;
    let tensor_bytes = archive.file_len().saturating_mul(limits.max_expansion).min(limits.max_tensor_bytes);
    let budget = Budget { values: limits.max_values, string_bytes: limits.max_string_bytes, tensor_bytes };
    Reader { tree: &tree, archive, top, budget, verified: HashSet::new() }.value(tree.root, limits.max_depth)
}

fn magic(file: &mut (impl Read + Seek)) -> Result<[u8; 4], ReadError> {
    let mut magic = Vec::with_capacity(4);
    file.seek(SeekFrom::Start(0)).map_err(ZipError::from)?;
    file.take(4).read_to_end(&mut magic).map_err(ZipError::from)?;
    magic.try_into().map_err(|_| ReadError::NotPth)
}

/// The folder of the archive that everything is in.
fn top<R: Read + Seek>(archive: &Archive<R>) -> Result<String, ReadError> {
    let mut tops = archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|top| !top.contains('/'));
    let (Some(top), None) = (tops.next(), tops.next()) else { return Err(ReadError::NotPth) };
    let program = [format!("{top}/constants.pkl"), format!("{top}/code/")];
    if archive.names().any(|name| name == program[0] || name.starts_with(&program[1])) {
        return Err(ReadError::TorchScript);
    }
    Ok(top.to_owned())
}

/// What may still be made. A pickle may use one value in many places, and each of them is counted.
struct Budget {
    values: usize,
    string_bytes: usize,
    tensor_bytes: u64,
}

/// Makes a tree of values of the pickle's graph, with the tensors' numbers from the archive.
struct Reader<'a, R> {
    tree: &'a Tree,
    archive: Archive<R>,
    top: String,
    budget: Budget,
    /// Storages whose checksum was compared.
    verified: HashSet<Rc<str>>,
}

impl<R: Read + Seek> Reader<'_, R> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Value, ReadError> {
        let tree = self.tree;
        self.budget.values = self.budget.values.checked_sub(1).ok_or(ReadError::TooMuch("more values"))?;
        let depth = depth.checked_sub(1).ok_or(ReadError::TooMuch("deeper containers"))?;
        Ok(match tree.node(id) {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Str(text) => {
                let left = self.budget.string_bytes.checked_sub(text.len());
                self.budget.string_bytes = left.ok_or(ReadError::TooMuch("longer strings"))?;
                Value::Str(text.as_ref().to_owned())
            }
            Node::Tuple(items) => Value::Tuple(self.values(items, depth)?),
            Node::List(items) => Value::List(self.values(items, depth)?),
            Node::Dict { ordered, entries } => {
                let entries =
                    entries.iter().map(|&(key, value)| Ok((self.value(key, depth)?, self.value(value, depth)?)));
                Value::Dict(Dict { ordered: *ordered, entries: entries.collect::<Result<_, ReadError>>()? })
            }
            Node::Tensor(tensor) => Value::Tensor(self.tensor(tensor)?),
            Node::Storage(_) => return Err(PickleError::Global("a bare storage".to_owned()).into()),
            Node::Global(global) => return Err(PickleError::Global(format!("{global:?} as a value")).into()),
        })
    }

    fn values(&mut self, items: &[Id], depth: usize) -> Result<Vec<Value>, ReadError> {
        items.iter().map(|&item| self.value(item, depth)).collect()
    }

    fn tensor(&mut self, tensor: &Tensor) -> Result<TensorData, ReadError> {
        let storage = &tensor.storage;
        let name = format!("{}/data/{}", self.top, storage.key);
        let outside = || ReadError::OutOfStorage(storage.key.chars().take(64).collect());
        let element = storage.dtype.size() as u64;
        if storage.numel.checked_mul(element) != Some(self.archive.size(&name)?) {
            return Err(outside());
        }
        let extent =
            Extent::of(tensor).filter(|e| tensor.offset.checked_add(e.span).is_some_and(|end| end <= storage.numel));
        let Extent { numel, span } = extent.ok_or_else(outside)?;
        // A span lies within the storage, so that only repeated elements can be too many for a multiplication.
        let cost = numel.max(span).checked_mul(element).and_then(|bytes| self.budget.tensor_bytes.checked_sub(bytes));
        self.budget.tensor_bytes = cost.ok_or(ReadError::TooMuch("more or larger tensors"))?;

        let bytes = if span == storage.numel && !self.verified.contains(&storage.key) {
            self.archive.read(&name, u64::MAX)?
        } else {
            if !self.verified.contains(&storage.key) {
                self.archive.verify(&name)?;
            }
            self.archive.read_part(&name, tensor.offset * element, span * element)?
        };
        self.verified.insert(Rc::clone(&storage.key));
        let shape =
            tensor.shape.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(|_| outside())?;
        let bytes = if is_contiguous(tensor) { bytes } else { gather(&bytes, tensor, numel, storage.dtype.size()) };
        Ok(TensorData::new(storage.dtype, shape, bytes)?)
    }
}

/// How many elements a tensor has, and over how many of its storage they are spread.
struct Extent {
    numel: u64,
    span: u64,
}

impl Extent {
    fn of(tensor: &Tensor) -> Option<Self> {
        if tensor.shape.contains(&0) {
            return Some(Self { numel: 0, span: 0 });
        }
        let numel = tensor.shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n))?;
        let dimensions = tensor.shape.iter().zip(&tensor.strides);
        let span = dimensions
            .map(|(&n, &stride)| (n - 1).checked_mul(stride))
            .try_fold(1_u64, |sum, step| sum.checked_add(step?))?;
        Some(Self { numel, span })
    }
}

fn is_contiguous(tensor: &Tensor) -> bool {
    let mut expected = Some(1_u64);
    tensor.shape.contains(&0)
        || tensor.shape.iter().zip(&tensor.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || Some(stride) == expected;
            expected = expected.and_then(|step| step.checked_mul(n));
            fits
        })
}

/// The elements in row-major order, out of the part of the storage that they are spread over.
fn gather(spread: &[u8], tensor: &Tensor, numel: u64, element: usize) -> Vec<u8> {
    // The caller has shown that all of this fits into memory that exists.
    let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut out = Vec::with_capacity(small(numel).saturating_mul(element));
    let mut index = vec![0_u64; tensor.shape.len()];
    for _ in 0..numel {
        let at = index.iter().zip(&tensor.strides).map(|(&i, &stride)| i * stride).sum();
        let at = small(at).saturating_mul(element);
        out.extend_from_slice(spread.get(at..at.saturating_add(element)).unwrap_or_default());
        for (i, &n) in index.iter_mut().zip(&tensor.shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    out
}
