//! Checkpoints: a network's weights with all that serving or resuming needs, in one `.pth` file.
//!
//! A file of ours is the reference's nested checkpoint (`model_state_dict` and further keys) with one more key,
//! [`anneal_api::checkpoint::KEY`], that holds a dict: [`CheckpointInfo`] as a JSON string, and whatever else is ours alone.
//! Where a `.pth` file is read, a safetensors file is taken as well; it has weights and description only.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
};

use anneal_api::{
    Sha256,
    checkpoint::{CheckpointInfo, INFO_KEY, KEY, Preprocessing},
    model::{Architecture, ModelSpec},
};
use anneal_pth::{DType, Dict, Limits, ReadError, TensorData, Value};
use safetensors::{Dtype, SafeTensors};
use sha2::Digest as _;

use crate::{
    network::{ModelError, Network},
    state::{StateDict, StateError},
};

/// Key of the weights in a nested checkpoint.
const STATE: &str = "model_state_dict";
/// What the keys of entries begin with that are ours alone, and lie in the dict under [`KEY`] without it. Earlier versions
/// had them beside the reference's keys.
const OWN: &str = "anneal_";
/// The longest header that a safetensors file may have, by its format.
const MAX_HEADER: u64 = 100_000_000;

/// Version of [`CheckpointInfo`] that this program writes and reads.
pub const FORMAT: u32 = 1;

/// A checkpoint cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read from the file system.
    #[error("{}", unreadable(path, source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system refused to take the file.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no `.pth` file, or a damaged one.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file is a damaged safetensors file, or one beyond the limits.
    #[error("the safetensors file cannot be read ({0}); copy it again")]
    Safetensors(String),
    /// The weights are not there, or are not those of the network.
    #[error(transparent)]
    State(#[from] StateError),
    /// The network cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The description under the key `anneal` cannot be understood.
    #[error(
        "the description of the checkpoint under the key {KEY:?} cannot be read ({0}); serve it with the version of Anneal that wrote it, or a newer one"
    )]
    Info(String),
    /// The golden set cannot be understood.
    #[error("the checkpoint's golden set cannot be used: {0}; publish the model anew")]
    Golden(String),
    /// The network does not reproduce its golden set.
    #[error(
        "the checkpoint's golden set is not reproduced: a probability differs by {difference:.1e} and {tolerance:.0e} is allowed; serve it in float32, and if it is, compare libtorch's version and the processor with those that it was trained on"
    )]
    Disagrees {
        /// The largest difference between probabilities.
        difference: f64,
        /// What the precision explains.
        tolerance: f64,
    },
    /// A checkpoint without description whose tensors are of no known architecture.
    #[error(
        "the checkpoint's tensors are of no architecture that Anneal knows; it looks for layer1.0.conv1.weight and fc.weight (improved), or fc2.weight (simple)"
    )]
    UnknownArchitecture,
}

fn unreadable(path: &Path, source: &io::Error) -> String {
    let path = path.display();
    match source.kind() {
        io::ErrorKind::NotFound => format!("there is no checkpoint {path}; check its path"),
        io::ErrorKind::IsADirectory => {
            format!("{path} is a folder; name a checkpoint in it, a .pth or safetensors file")
        }
        _ => format!("{path} cannot be read: {source}"),
    }
}

impl CheckpointError {
    /// Whether the cause is that the file to read does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A network's weights with all that serving or resuming needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What the checkpoint says about itself; absent in checkpoints of the reference.
    pub info: Option<CheckpointInfo>,
    /// The weights.
    pub state: StateDict,
    /// All other keys: the reference's `epoch`, `optimizer_state_dict`, `val_acc` and `history`, and whatever else is
    /// needed to resume. Keys that begin with `anneal_` lie under the key that is ours.
    pub extra: Vec<(String, Value)>,
}

/// What a user of the network must know.
#[derive(Clone, Debug, PartialEq)]
pub struct Contract {
    /// The network.
    pub model: ModelSpec,
    /// Classes in the order of the network's outputs.
    pub classes: Vec<String>,
    /// How an image becomes the network's input.
    pub preprocessing: Preprocessing,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Digest of its content.
    pub sha256: Sha256,
    /// Its length.
    pub bytes: u64,
}

impl Checkpoint {
    /// Reads a checkpoint: ours, the reference's nested one, a plain state dict, or a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be opened, or as [`Checkpoint::read`] says.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let unreadable = |source| CheckpointError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        // A folder can be opened, too.
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(unreadable(io::ErrorKind::IsADirectory.into()));
        }
        Self::read(BufReader::new(file), &Limits::default())
    }

    /// Reads a checkpoint from anything that can seek.
    ///
    /// # Errors
    /// When it is no `.pth` or safetensors file within `limits`, has no state dict, or describes itself in a later version's
    /// words.
    pub fn read(mut file: impl Read + Seek, limits: &Limits) -> Result<Self, CheckpointError> {
        if is_safetensors(&mut file).map_err(|error| CheckpointError::Safetensors(error.to_string()))? {
            return Self::safetensors(file, limits);
        }
        match anneal_pth::read(file, limits)? {
            Value::Dict(dict) if dict.get(STATE).is_some() => Self::nested(dict),
            plain => Ok(Self { info: None, state: StateDict::from_value(plain)?, extra: Vec::new() }),
        }
    }

    fn safetensors(file: impl Read, limits: &Limits) -> Result<Self, CheckpointError> {
        let damaged = |error: &dyn std::fmt::Display| CheckpointError::Safetensors(error.to_string());
        let most = limits.max_tensor_bytes.saturating_add(MAX_HEADER);
        let mut bytes = Vec::new();
        let length = file.take(most + 1).read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
        let (before, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        if (length - before) as u64 > limits.max_tensor_bytes {
            return Err(ReadError::TooMuch("more bytes of tensors").into());
        }
        let info =
            header.metadata().as_ref().and_then(|words| words.get(KEY)).map(|text| parse_info(text)).transpose()?;
        let read = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let tensors = read.iter().map(|(name, tensor)| {
            let dtype = dtype(tensor.dtype()).ok_or_else(|| damaged(&format!("{name} is {:?}", tensor.dtype())))?;
            let data = TensorData::new(dtype, tensor.shape().to_vec(), tensor.data().to_vec());
            Ok((name.to_owned(), data.map_err(StateError::from)?))
        });
        let mut tensors = tensors.collect::<Result<Vec<_>, CheckpointError>>()?;
        // The format has no order.
        tensors.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(Self { info, state: StateDict(tensors), extra: Vec::new() })
    }

    fn nested(dict: Dict) -> Result<Self, CheckpointError> {
        let (mut info, mut state, mut extra) = (None, StateDict::default(), Vec::new());
        for (key, value) in dict.entries {
            match key {
                Value::Str(key) if key == STATE => state = StateDict::from_value(value)?,
                Value::Str(key) if key == KEY => match value {
                    Value::Dict(own) => {
                        for (key, value) in own.entries {
                            match (key, value) {
                                (Value::Str(key), Value::Str(text)) if key == INFO_KEY => {
                                    info = Some(parse_info(&text)?);
                                }
                                (Value::Str(key), value) => extra.push((format!("{OWN}{key}"), value)),
                                _ => {}
                            }
                        }
                    }
                    Value::Str(text) => info = Some(parse_info(&text)?),
                    other => return Err(CheckpointError::Info(format!("it is a {}", other.type_name()))),
                },
                Value::Str(key) => extra.push((key, value)),
                // The reference has no other keys, and nobody could ask for them by name.
                _ => {}
            }
        }
        Ok(Self { info, state, extra })
    }

    /// What a user of the network must know: from the description, or else from the tensors' names and shapes, with
    /// the reference's classes (cat, dog), input size (224) and preprocessing.
    ///
    /// # Errors
    /// [`CheckpointError::UnknownArchitecture`] when there is no description and the tensors are not known.
    pub fn contract(&self) -> Result<Contract, CheckpointError> {
        if let Some(info) = &self.info {
            return Ok(Contract {
                model: info.model,
                classes: info.classes.clone(),
                preprocessing: info.preprocessing.clone(),
            });
        }
        let (architecture, head) = if self.state.get("layer1.0.conv1.weight").is_some() {
            (Architecture::Improved, self.state.get("fc.weight"))
        } else {
            (Architecture::Simple, self.state.get("fc2.weight"))
        };
        let Some(&[count, _]) = head.map(TensorData::shape) else {
            return Err(CheckpointError::UnknownArchitecture);
        };
        if count > crate::network::MAX_CLASSES {
            return Err(ModelError::Classes(count).into());
        }
        let classes = match count {
            2 => vec!["cat".to_owned(), "dog".to_owned()],
            _ => (0..count).map(|i| format!("class_{i}")).collect(),
        };
        let model = ModelSpec { architecture, ..ModelSpec::default() };
        Ok(Contract { model, classes, preprocessing: Preprocessing::imagenet(model.input_size) })
    }

    /// The network with the checkpoint's weights.
    ///
    /// # Errors
    /// When the weights are not those of the architecture and classes that [`Checkpoint::contract`] tells.
    pub fn network(&self) -> Result<Network, CheckpointError> {
        let contract = self.contract()?;
        let mut network = Network::new(contract.model.architecture, contract.classes.len(), 0)?;
        network.load(&self.state)?;
        Ok(network)
    }

    /// The value under one of the other keys.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.extra.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// Writes the checkpoint so that after a crash at any moment `path` holds either what it held or all of this: to
    /// `.NAME.tmp` beside it, which is then renamed. One process may write to `path` at a time.
    ///
    /// # Errors
    /// When the file system refuses; `path` is then as it was.
    pub fn save(self, path: impl AsRef<Path>) -> Result<Saved, CheckpointError> {
        let path = path.as_ref();
        let value = self.into_value()?;
        write_atomically(path, |file| anneal_pth::write(file, &value))
            .map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
    }

    fn into_value(self) -> Result<Value, CheckpointError> {
        let (own, mut entries): (Vec<_>, Vec<_>) = self.extra.into_iter().partition(|(key, _)| key.starts_with(OWN));
        entries.push((STATE.to_owned(), self.state.into_value()));
        let mut own: Vec<_> = own.into_iter().map(|(key, value)| (key[OWN.len()..].to_owned(), value)).collect();
        if let Some(info) = &self.info {
            let json = serde_json::to_string(info).map_err(|error| CheckpointError::Info(error.to_string()))?;
            own.insert(0, (INFO_KEY.to_owned(), Value::Str(json)));
        }
        if !own.is_empty() {
            entries.push((KEY.to_owned(), Value::Dict(Dict::plain(own))));
        }
        Ok(Value::Dict(Dict::plain(entries)))
    }
}

/// Digest and length of a file, read in pieces.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> io::Result<Saved> {
    let mut hashing = Hashing { inner: io::sink(), digest: sha2::Sha256::new(), bytes: 0 };
    io::copy(&mut File::open(path)?, &mut hashing)?;
    Ok(hashing.done())
}

/// Digest of the words by which a preprocessing is described.
///
/// # Errors
/// When it cannot be put into words.
pub fn digest_of(preprocessing: &Preprocessing) -> Result<Sha256, CheckpointError> {
    let words = serde_json::to_vec(preprocessing).map_err(|error| CheckpointError::Info(error.to_string()))?;
    Ok(Sha256::from_bytes(sha2::Sha256::digest(words).into()))
}

fn parse_info(text: &str) -> Result<CheckpointInfo, CheckpointError> {
    let unreadable = |error: serde_json::Error| CheckpointError::Info(error.to_string());
    // Alone and first, for another format has other fields.
    let said: serde_json::Value = serde_json::from_str(text).map_err(unreadable)?;
    let format = &said["format"];
    if *format != FORMAT {
        return Err(CheckpointError::Info(format!("its format is {format}, this version reads {FORMAT}")));
    }
    let info: CheckpointInfo = serde_json::from_str(text).map_err(unreadable)?;
    match &info.preprocessing_sha256 {
        Some(digest) if *digest != digest_of(&info.preprocessing)? => {
            Err(CheckpointError::Info("its preprocessing is not the one that its digest is of".to_owned()))
        }
        _ => Ok(info),
    }
}

/// Whether a file begins as safetensors files do: with the length of a header in JSON, and that. Goes back to the beginning.
fn is_safetensors(file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let mut head = Vec::new();
    file.by_ref().take(9).read_to_end(&mut head)?;
    file.rewind()?;
    let Some((length, rest)) = head.split_first_chunk() else { return Ok(false) };
    Ok(u64::from_le_bytes(*length) <= MAX_HEADER && rest == b"{")
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

fn write_atomically(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Saved> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(".tmp");
    let temporary = dir.join(temporary_name);
    let written = (|| {
        let mut file = Hashing {
            inner: BufWriter::with_capacity(1 << 20, File::create(&temporary)?),
            digest: sha2::Sha256::new(),
            bytes: 0,
        };
        content(&mut file)?;
        file.flush()?;
        file.inner.get_ref().sync_all()?;
        fs::rename(&temporary, path)?;
        // Only this makes the new name itself survive a crash of the node.
        File::open(dir)?.sync_all()?;
        Ok(file.done())
    })();
    if written.is_err() {
        // A full volume needs its space back; that the rest is gone already is no further error.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Passes bytes on and digests them on the way.
struct Hashing<W> {
    inner: W,
    digest: sha2::Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn done(self) -> Saved {
        Saved { sha256: Sha256::from_bytes(self.digest.finalize().into()), bytes: self.bytes }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digest.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
