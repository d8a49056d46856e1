//! From `dataset.uri` to decoded, labelled photos.

pub mod archive;
pub mod arrange;
pub mod listing;
pub mod load;
pub mod pixels;
pub mod remote;
pub mod synthetic;
pub mod walk;

use std::{fmt, io, path::PathBuf};

use anneal_api::{
    dataset::{DatasetUri, DatasetUriError},
    failure::FailureClass,
};
use tracing::{info, warn};

use self::{
    load::{Dataset, Loading},
    remote::{Downloads, RemoteError},
};
use crate::{
    config::RunConfig,
    outcome::{Error, class_of_io},
    progress,
    train::Surroundings,
};

/// File name endings that are taken for photos.
pub const PHOTO_EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// A part of the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// What the network learns from.
    Train,
    /// What chooses the best epoch.
    Validation,
    /// What the final metrics are measured on.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The split that a folder or tar of this name holds.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|split| split.names().contains(&name.as_str()))
    }

    /// The names that a folder, tar or `.dvc` file of the split may have.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Validation => &["val", "validation", "valid"],
            Self::Test => &["test"],
        }
    }

    /// Name of the split's folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// The dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The URI is none.
    #[error(transparent)]
    Uri(#[from] DatasetUriError),
    /// A claim is named, which only the operator can mount.
    #[error("dataset.uri {0} names a claim, which only the operator mounts; outside a cluster write file:///PATH")]
    Claim(DatasetUri),
    /// It cannot be fetched.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// It is another dataset than the one that was meant.
    #[error(
        "the dataset has the digest {found}, and dataset.digest asks for {asked}; correct dataset.uri, or dataset.digest \
         where the dataset was changed on purpose"
    )]
    Digest {
        /// What `dataset.digest` says.
        asked: String,
        /// What it is.
        found: String,
    },
    /// Nothing is there.
    #[error("the dataset {0:?} does not exist; check its path, or dataset.uri")]
    Missing(PathBuf),
    /// No photo is there.
    #[error("the dataset {0:?} holds no photo ({ext}); expected is a folder for each class, such as cat/ and dog/", ext = PHOTO_EXTENSIONS.join(", "))]
    Empty(PathBuf),
    /// It is neither a folder nor a tar.
    #[error("the dataset {0:?} is neither a folder nor a file that ends in .tar; unpack it or make it a plain tar")]
    NotATar(PathBuf),
    /// It has the name of a tar and is none.
    #[error("{path:?} {problem}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// It cannot be read.
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        /// What cannot be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tar holds an entry that would leave its root or is no plain file.
    #[error("the tar {archive:?} holds {entry:?}, which {problem}; make the tar of plain files with relative names")]
    UnsafeEntry {
        /// The tar.
        archive: PathBuf,
        /// Name of the entry.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folders make no sense.
    #[error(
        "the dataset {0}; expected is either a folder for each class (cat/, dog/), or train/ and val/ or \
         test/ with a folder for each class inside"
    )]
    Layout(String),
    /// There is nothing to tell apart.
    #[error(
        "the dataset has one class only, {0:?}; a classifier needs photos of at least two, each in a folder of its own"
    )]
    OneClass(String),
    /// A class has no photo.
    #[error("the class {class:?} has no photo in {split}; add some or remove the folder")]
    EmptyClass {
        /// The split.
        split: Split,
        /// The class.
        class: String,
    },
    /// The splits have different classes.
    #[error("{split} has the classes {found:?}, train has {expected:?}; they must be the same")]
    ClassSets {
        /// The split.
        split: Split,
        /// The classes there.
        found: Vec<String>,
        /// The classes of the training split.
        expected: Vec<String>,
    },
    /// The checkpoint has other classes.
    #[error(
        "the dataset has the classes {found:?}, the checkpoint {expected:?}; they must be the same: name the folders of \
         photos after the checkpoint's classes, or another dataset or checkpoint"
    )]
    OtherClasses {
        /// The classes of the dataset.
        found: Vec<String>,
        /// The classes of the checkpoint.
        expected: Vec<String>,
    },
    /// A class cannot be split.
    #[error("the class {class:?} has {count} photos; at least 3 are needed to keep some aside for validation and test")]
    TooFew {
        /// The class.
        class: String,
        /// Its photos.
        count: usize,
    },
    /// Too many photos are broken.
    #[error("{broken} of {total} photos cannot be decoded, more than 5 %: {first}")]
    Broken {
        /// How many.
        broken: usize,
        /// Of how many.
        total: usize,
        /// The first few with reasons.
        first: String,
    },
    /// The decoded photos do not fit into memory.
    #[error("there is no memory for {0} bytes of decoded photos; raise the memory limit or lower model.inputSize")]
    Memory(usize),
    /// The decoded photos do not fit into memory, nor onto the volume.
    #[error(
        "the decoded photos, which take more than a quarter of the memory limit, cannot be kept on the volume of the run's \
         folder: {source}; free space there, raise the memory limit or lower model.inputSize"
    )]
    Cache {
        /// Why not.
        source: io::Error,
    },
}

impl DataError {
    /// The class by which the failure is reported.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Uri(_) | Self::Claim(_) => FailureClass::BadConfig,
            Self::Cache { source } => class_of_io(source),
            Self::Memory(_) => FailureClass::OutOfMemory,
            Self::Missing(_) | Self::Empty(_) => FailureClass::DataMissing,
            Self::Remote(error) => error.class(),
            // A volume or a server that is away for a while, and rights that somebody mends, say nothing about the photos.
            Self::Unreadable { source, .. }
                if ![io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData].contains(&source.kind()) =>
            {
                class_of_io(source)
            }
            _ => FailureClass::DataCorrupt,
        }
    }

    pub(crate) fn reading(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            if source.kind() == io::ErrorKind::NotFound {
                Self::Missing(path)
            } else {
                Self::Unreadable { path, source }
            }
        }
    }
}

/// Lists, arranges and loads the dataset of a run.
///
/// # Errors
/// When the dataset cannot be used, or the process was asked to stop.
pub fn open(config: &RunConfig, around: &Surroundings<'_>) -> Result<Dataset, Error> {
    let downloads = config.downloads();
    let moved = || progress::touch(&around.progress);
    let to = Downloads { dir: &downloads, stop: around.stop, moved: &moved };
    let (listing, md5s) = listing::list(&config.dataset, to)?;
    check_digest(config.digest.as_deref(), "md5:", || format!("md5:{}", md5s.join(", md5:")))?;
    let arrangement = arrange::arrange(listing, config.hyperparameters.validation_share, config.seed())?;
    let bar = progress::loading_bar(arrangement.len());
    let loading = Loading {
        size: config.input_size(),
        threads: around.threads,
        memory: around.memory,
        spill: &config.output,
        stop: around.stop,
        done: &|done| {
            bar.set_position(done as u64);
            moved();
        },
    };
    let dataset = load::load(&config.dataset, arrangement, &loading)?;
    bar.finish_and_clear();
    check_digest(config.digest.as_deref(), "sha256:", || dataset.identity.digest.clone())?;
    for broken in &dataset.broken {
        warn!("a photo is skipped: {broken}");
    }
    if let Some(first) = dataset.duplicates.first() {
        warn!(
            photos = dataset.duplicates.len(),
            "photos lie in two splits, so the accuracy there is too good: {first}; reports/duplicates.txt will have all of them when the run is done"
        );
    }
    info!(
        classes = ?dataset.classes,
        train = dataset.train.len(),
        validation = dataset.validation.len(),
        test = dataset.test.len(),
        skipped = dataset.broken.len(),
        digest = dataset.identity.digest,
        "dataset loaded"
    );
    Ok(dataset)
}

/// Compares the digest that was asked for, where it is of this kind.
fn check_digest(asked: Option<&str>, kind: &str, found: impl FnOnce() -> String) -> Result<(), DataError> {
    let Some(asked) = asked.filter(|asked| asked.starts_with(kind)) else { return Ok(()) };
    let found = found();
    if found == asked { Ok(()) } else { Err(DataError::Digest { asked: asked.to_owned(), found }) }
}
