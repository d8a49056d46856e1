//! Checkpoints: a network's weights with all that serving or resuming needs, in one `.pth` file.
//!
//! A file of ours is the reference's nested checkpoint (`model_state_dict` and further keys) with one more key,
//! [`anneal_api::checkpoint::KEY`], that holds [`CheckpointInfo`] as a JSON string.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
};

use anneal_api::{
    Sha256,
    checkpoint::{CheckpointInfo, KEY, Preprocessing},
    model::{Architecture, ModelSpec},
};
use anneal_pth::{Dict, Limits, ReadError, Value};
use sha2::Digest as _;

use crate::{
    network::{ModelError, Network},
    state::{StateDict, StateError},
};

/// Key of the weights in a nested checkpoint.
const STATE: &str = "model_state_dict";

/// Version of [`CheckpointInfo`] that this program writes and reads.
pub const FORMAT: u32 = 1;

/// A checkpoint cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no `.pth` file, or a damaged one.
    #[error(transparent)]
    Read(#[from] ReadError),
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

impl CheckpointError {
    /// Whether the cause is that the file does not exist.
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
    /// needed to resume.
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
    /// Reads a checkpoint: ours, the reference's nested one, or a plain state dict.
    ///
    /// # Errors
    /// When the file cannot be opened, or as [`Checkpoint::read`] says.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        Self::read(BufReader::new(file), &Limits::default())
    }

    /// Reads a checkpoint from anything that can seek.
    ///
    /// # Errors
    /// When it is no `.pth` file within `limits`, has no state dict, or describes itself in a later version's words.
    pub fn read(file: impl Read + Seek, limits: &Limits) -> Result<Self, CheckpointError> {
        match anneal_pth::read(file, limits)? {
            Value::Dict(dict) if dict.get(STATE).is_some() => Self::nested(dict),
            plain => Ok(Self { info: None, state: StateDict::from_value(plain)?, extra: Vec::new() }),
        }
    }

    fn nested(dict: Dict) -> Result<Self, CheckpointError> {
        let (mut info, mut state, mut extra) = (None, StateDict::default(), Vec::new());
        for (key, value) in dict.entries {
            match key {
                Value::Str(key) if key == STATE => state = StateDict::from_value(value)?,
                Value::Str(key) if key == KEY => info = Some(parse_info(&value)?),
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
        let Some(&[count, _]) = head.map(anneal_pth::TensorData::shape) else {
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
            .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
    }

    fn into_value(self) -> Result<Value, CheckpointError> {
        let mut entries = self.extra;
        entries.push((STATE.to_owned(), self.state.into_value()));
        if let Some(info) = &self.info {
            let json = serde_json::to_string(info).map_err(|error| CheckpointError::Info(error.to_string()))?;
            entries.push((KEY.to_owned(), Value::Str(json)));
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

fn parse_info(value: &Value) -> Result<CheckpointInfo, CheckpointError> {
    let text = value.as_str().ok_or_else(|| CheckpointError::Info(format!("it is a {}", value.type_name())))?;
    let unreadable = |error: serde_json::Error| CheckpointError::Info(error.to_string());
    // Alone and first, for another format has other fields.
    let said: serde_json::Value = serde_json::from_str(text).map_err(unreadable)?;
    let format = &said["format"];
    if *format != FORMAT {
        return Err(CheckpointError::Info(format!("its format is {format}, this version reads {FORMAT}")));
    }
    serde_json::from_str(text).map_err(unreadable)
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
