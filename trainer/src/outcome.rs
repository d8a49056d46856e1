//! How a command ends: the failure's class, the termination message and the exit code.

use std::{
    any::Any,
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anneal_api::{failure::FailureClass, termination::TerminationMessage};
use anneal_model::{CheckpointError, ModelError, StateError, preprocess::PreprocessError};
use tch::TchError;

use crate::{
    config::ConfigError,
    data::{DataError, PHOTO_EXTENSIONS, load::LoadError},
    fetch::FetchError,
    init::InitError,
    optim::OptimError,
};

/// Why a command ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The dataset cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The network cannot be made or cannot take an input.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The checkpoint to begin with cannot be used.
    #[error(transparent)]
    Init(#[from] InitError),
    /// Memory ran out.
    #[error(
        "there is no memory for {bytes} bytes of {what}; raise the memory limit, or set hyperparameters.microBatchSize, \
         or else lower model.inputSize or hyperparameters.batchSize"
    )]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// An image cannot be used.
    #[error("{path:?}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PreprocessError,
    },
    /// A file or folder of photos cannot be read.
    #[error("{path:?} cannot be read: {source}; name photos, or folders of photos")]
    Photo {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A folder has nothing to classify.
    #[error("{0:?} holds no photo ({ext}); name photos, or folders of photos", ext = PHOTO_EXTENSIONS.join(", "))]
    NoPhoto(PathBuf),
    /// The optimiser cannot go on.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// A loss, the gradients or the weights are no numbers any more.
    #[error(
        "the {what} became {value} in epoch {epoch} at step {step} with a learning rate of {learning_rate}; lower \
         hyperparameters.learningRate, or use schedule Cosine, which warms up"
    )]
    Diverged {
        /// Training or validation loss, norm of the gradients, or largest weight.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, counted from 1.
        epoch: u32,
        /// Optimiser step over all epochs, counted from 1.
        step: u64,
        /// Learning rate of the step.
        learning_rate: f64,
    },
    /// The process was asked to stop.
    #[error("stopped by SIGTERM {0}; the next attempt goes on from the newest checkpoint")]
    Interrupted(String),
    /// The process was asked to stop before it could train.
    #[error(
        "stopped by SIGTERM while the dataset was loaded; the next attempt loads it again, and goes on from the newest \
         checkpoint where there is one"
    )]
    StoppedLoading,
    /// The volume is full.
    #[error("the volume is full: {cause}; {}; free space or enlarge the volume", kept(.checkpoint_step.as_ref()))]
    DiskFull {
        /// What could not be written.
        cause: Box<Error>,
        /// Optimiser step of the newest good checkpoint.
        checkpoint_step: Option<i64>,
    },
    /// No photo of several can be used.
    #[error("none of {0} photos can be classified, each for a reason that is told above")]
    NoneClassified(usize),
    /// There was nothing to unpack.
    #[error("standard input holds no file to unpack; pipe a tar into this command, as in `tar -c cat dog | …`")]
    NothingImported,
    /// The file system refused.
    #[error("{path:?} cannot be written: {source}{advice}", advice = advice(.source))]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two processes would write over each other.
    #[error("another process trains in {dir:?}; wait for its end, or give this run a folder of its own")]
    Busy {
        /// The run's folder.
        dir: PathBuf,
    },
    /// The process itself is wrong.
    #[error("{0}")]
    Internal(String),
}

/// What to do where a path is wrong.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; make the folder that it lies in first, or name another one",
        io::ErrorKind::IsADirectory => "; name a file",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            "; a file is where a folder has to be: name another place"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; name another place, or give this user the right to write there"
        }
        _ => "",
    }
}

fn kept(checkpoint_step: Option<&i64>) -> String {
    checkpoint_step.map_or_else(
        || "there is no earlier checkpoint".to_owned(),
        |step| format!("the checkpoint of step {step} is intact, and the next attempt goes on from it"),
    )
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Data(error) => Self::Data(error),
            LoadError::Stopped => Self::StoppedLoading,
        }
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::Checkpoint(error.into())
    }
}

impl Error {
    /// The error of a panic that reached the top.
    pub fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        Self::Internal(format!("the program failed: {text}"))
    }

    /// The same error, which says what is left where the volume is full.
    #[must_use]
    pub fn with_checkpoint(self, checkpoint_step: Option<i64>) -> Self {
        match self {
            Self::Checkpoint(CheckpointError::Write { .. }) | Self::Write { .. }
                if self.class() == FailureClass::DiskFull =>
            {
                Self::DiskFull { cause: Box::new(self), checkpoint_step }
            }
            other => other,
        }
    }

    /// Whether the reader of standard output has gone, as `head` does when it has seen enough.
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn writing(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }

    /// The class by which the failure is reported.
    pub fn class(&self) -> FailureClass {
        if self.is_out_of_memory() {
            return FailureClass::OutOfMemory;
        }
        match self {
            Self::Config(_)
            | Self::Model(
                ModelError::Classes(_)
                | ModelError::InputSize { .. }
                | ModelError::UnknownParameter { .. }
                | ModelError::AllFrozen,
            ) => FailureClass::BadConfig,
            Self::Init(error) => error.class(),
            Self::Fetch(error) => error.class(),
            Self::OutOfMemory { .. } => FailureClass::OutOfMemory,
            Self::Data(error) => error.class(),
            Self::Image { .. } | Self::NoneClassified(_) => FailureClass::DataCorrupt,
            Self::NoPhoto(_) | Self::NothingImported => FailureClass::DataMissing,
            Self::Photo { source, .. } if source.kind() == io::ErrorKind::NotFound => FailureClass::DataMissing,
            Self::Checkpoint(error) if error.is_not_found() => FailureClass::ModelNotFound,
            Self::Checkpoint(CheckpointError::Io { source, .. }) if source.kind() == io::ErrorKind::IsADirectory => {
                FailureClass::LoadFailed
            }
            Self::Checkpoint(CheckpointError::Io { source, .. } | CheckpointError::Write { source, .. })
            | Self::Write { source, .. }
            | Self::Photo { source, .. } => class_of_io(source),
            Self::Checkpoint(_) | Self::Optim(OptimError::Layout(_) | OptimError::Tensor(_)) => {
                FailureClass::LoadFailed
            }
            Self::Diverged { .. } => FailureClass::Diverged,
            Self::Interrupted(_) | Self::StoppedLoading => FailureClass::Interrupted,
            Self::DiskFull { .. } => FailureClass::DiskFull,
            Self::Model(_)
            | Self::Optim(OptimError::Torch(_))
            | Self::Torch(_)
            | Self::Busy { .. }
            | Self::Internal(_) => FailureClass::AppError,
        }
    }

    /// libtorch tells of failed allocations in words only.
    fn is_out_of_memory(&self) -> bool {
        let torch = matches!(
            self,
            Self::Torch(_) | Self::Internal(_) | Self::Model(ModelError::Torch(_)) | Self::Optim(OptimError::Torch(_))
        );
        let text = if torch { self.to_string() } else { String::new() };
        ["can't allocate memory", "not enough memory", "Cannot allocate memory"]
            .iter()
            .any(|words| text.contains(words))
    }
}

pub(crate) fn class_of_io(error: &io::Error) -> FailureClass {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            FailureClass::DiskFull
        }
        io::ErrorKind::OutOfMemory => FailureClass::OutOfMemory,
        _ => FailureClass::AppError,
    }
}

/// Writes the one message that the kubelet reads, where it asks for one or `path` names a file.
///
/// # Errors
/// When the message cannot be written.
pub fn write_message(message: &TerminationMessage, path: &Path) -> io::Result<()> {
    let text = message.to_json()?;
    // The kubelet mounts its file into the container: it is there already and cannot be replaced by another.
    OpenOptions::new().write(true).truncate(true).create(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use anneal_model::{Checkpoint, StateDict};

    use super::*;

    #[test]
    fn a_full_disk_and_a_full_memory_have_classes_of_their_own() {
        let full = Error::writing("/output")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.class(), FailureClass::DiskFull);
        let torch = Error::Torch(TchError::Torch("DefaultCPUAllocator: can't allocate memory: you tried …".to_owned()));
        assert_eq!(torch.class(), FailureClass::OutOfMemory);
    }

    #[test]
    fn a_volume_that_is_gone_is_no_missing_model() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("gone/model.pth");
        let empty = || Checkpoint { info: None, state: StateDict::default(), extra: Vec::new() };
        let written = Error::from(empty().save(&path).expect_err("there is no folder"));
        assert_eq!(written.class(), FailureClass::AppError, "{written}");
        let read = Error::from(Checkpoint::load(&path).expect_err("there is no file"));
        assert_eq!(read.class(), FailureClass::ModelNotFound, "{read}");
    }

    #[test]
    fn a_panic_keeps_its_words() {
        let error = Error::from_panic(&"index out of bounds");
        assert_eq!(error.class(), FailureClass::AppError);
        assert!(error.to_string().contains("index out of bounds"));
    }
}
