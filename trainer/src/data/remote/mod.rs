//! Datasets at servers and behind `.dvc` files: what is missing is downloaded to a folder of the run, verified, and
//! then listed like files. An interrupted download goes on where it ended.

mod download;
mod dvc;
mod ini;
pub(crate) mod store;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anneal_api::{Sha256, failure::FailureClass};
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256 as Hasher};
use tokio::runtime::{Builder, Runtime};
use tracing::info;

use self::{
    download::{Wanted, download},
    store::Store,
};
use super::{
    DataError, archive,
    listing::{Listing, Photo, Place, is_hidden, is_photo},
};
use crate::progress;

/// Files that are downloaded at once.
const AT_ONCE: usize = 16;

/// Where downloads go, and when to stop.
#[derive(Clone, Copy)]
pub struct Downloads<'a> {
    /// A folder that keeps what was downloaded for the next attempt.
    pub dir: &'a Path,
    /// Set when the process was asked to stop.
    pub stop: &'a AtomicBool,
    /// Hears whenever something came.
    pub moved: &'a dyn Fn(),
}

impl Downloads<'_> {
    /// Something came; fails where the process was asked to stop.
    fn moved(&self) -> Result<(), RemoteError> {
        (self.moved)();
        if self.stop.load(Ordering::Relaxed) { Err(RemoteError::Stopped) } else { Ok(()) }
    }
}

/// A dataset cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nothing is there.
    #[error("{0} does not exist; check the address")]
    Missing(Shown),
    /// There is no such bucket.
    #[error(
        "the bucket {0} does not exist ({1}); correct its name, or name the server that has it by AWS_ENDPOINT_URL in the Secret of credentialsSecretRef"
    )]
    NoBucket(Shown, String),
    /// The server wants to know who asks, or does not let them.
    #[error("{0} is refused ({1}); give credentials that may read it by credentialsSecretRef, or by the environment")]
    Refused(Shown, String),
    /// The server cannot be reached or broke off.
    #[error("{0} cannot be fetched: {1}; the next attempt goes on from what is there already")]
    Unreachable(Shown, String),
    /// What arrived is not what was asked for.
    #[error("{url} has the MD5 {found}, and {expected} is expected; push the data again, or correct the .dvc file")]
    Md5 {
        /// What was fetched.
        url: Shown,
        /// The MD5 of what arrived.
        found: String,
        /// The MD5 in the `.dvc` file.
        expected: String,
    },
    /// A `.dvc` file, a list of files or a configuration that makes no sense.
    #[error("{0}: {1}")]
    Unusable(Shown, String),
    /// The configuration asks for what this program does not have.
    #[error("{0}: {1}")]
    Unsupported(Shown, String),
    /// The file system refused.
    #[error("{path:?} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The process was asked to stop.
    #[error("stopped during a download")]
    Stopped,
}

impl RemoteError {
    /// The class by which the failure is reported.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Missing(_) | Self::NoBucket(..) => FailureClass::DataMissing,
            Self::Refused(..) | Self::Unsupported(..) => FailureClass::BadConfig,
            Self::Unreachable(..) => FailureClass::AppError,
            Self::Md5 { .. } | Self::Unusable(..) => FailureClass::DataCorrupt,
            Self::Write { source, .. } => crate::outcome::class_of_io(source),
            Self::Stopped => FailureClass::Interrupted,
        }
    }

    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// A URL as it may be shown: without its query, which may be a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    fn of(url: &str) -> Self {
        Self(url.split(['?', '#']).next().unwrap_or_default().to_owned())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Lists a tar or a folder at a server, after it was downloaded.
///
/// # Errors
/// When it does not exist, cannot be fetched, or the downloads cannot be written.
pub fn list(url: &str, to: Downloads<'_>) -> Result<Listing, DataError> {
    let runtime = runtime()?;
    let (store, key) = Store::open(url, &store::Options::default())?;
    if has_extension(&key, "tar") {
        let file = to.dir.join(format!("{}.tar", identity(&[url])));
        let wanted = Wanted { key: &key, file: &file, md5: None, revalidated: true };
        runtime.block_on(download(&store, &wanted, to))?;
        return archive::list(&file, to.moved);
    }
    runtime.block_on(folder(&store, &key, to))
}

/// Downloads one object into a file; what an earlier call left of it is gone on with.
///
/// # Errors
/// When it does not exist, cannot be fetched or written.
pub fn fetch(url: &str, file: &Path, stop: &AtomicBool) -> Result<(), DataError> {
    let runtime = runtime()?;
    let (store, key) = Store::open(url, &store::Options::default())?;
    let to = Downloads { dir: Path::new(""), stop, moved: &|| () };
    Ok(runtime.block_on(download(&store, &Wanted { key: &key, file, md5: None, revalidated: false }, to))?)
}

/// Lists what a `.dvc` file names, after it was downloaded and verified; the MD5 that it names is the second part.
///
/// # Errors
/// When it does not exist, cannot be understood or fetched, or is not what the `.dvc` file says.
pub fn list_dvc(url: &str, to: Downloads<'_>) -> Result<(Listing, Vec<String>), DataError> {
    runtime()?.block_on(dvc::list(url, to))
}

fn runtime() -> Result<Runtime, DataError> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(|source| DataError::Unreadable { path: PathBuf::from("the network"), source })
}

/// Whether a key or path, without what may follow it in a URL, has this extension.
fn has_extension(key: &str, extension: &str) -> bool {
    let path = key.split(['?', '#']).next().unwrap_or_default();
    Path::new(path).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// A file name that stands for all of this.
fn identity(parts: &[&str]) -> String {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    Sha256::from_bytes(hasher.finalize().into()).short(32).to_owned()
}

/// Downloads the photos below a prefix. An object that changed at the server has another name here.
async fn folder(store: &Store, prefix: &str, to: Downloads<'_>) -> Result<Listing, DataError> {
    let objects = store.list(prefix).await?;
    let mut photos = Vec::new();
    for object in objects {
        let below = object.key.strip_prefix(prefix).unwrap_or(&object.key).trim_start_matches('/').to_owned();
        let parts = archive::safe_parts(Path::new(&below))
            .map_err(|problem| RemoteError::Unusable(store.shown(&object.key), format!("its name {problem}")))?;
        if is_photo(&below) && !parts.iter().any(|part| is_hidden(part)) {
            let name = identity(&[&object.key, &object.size.to_string(), &object.tag]);
            let file = to.dir.join("objects").join(&name[..2]).join(name);
            photos.push((object.key, file, below));
        }
    }
    let wanted = photos.iter().map(|(key, file, _)| Wanted { key, file, md5: None, revalidated: false });
    download_all(store, wanted.collect(), to).await?;
    let photo = |(_, file, path)| Photo { path, place: Place::File(file) };
    let listing = Listing { photos: photos.into_iter().map(photo).collect(), ..Listing::default() };
    if listing.photos.is_empty() { Err(DataError::Empty(PathBuf::from(store.shown(prefix).0))) } else { Ok(listing) }
}

/// Downloads what is not there yet, several files at once.
async fn download_all(store: &Store, wanted: Vec<Wanted<'_>>, to: Downloads<'_>) -> Result<(), RemoteError> {
    let total = wanted.len();
    let missing: Vec<_> = wanted.into_iter().filter(|one| !one.file.exists()).collect();
    info!(files = total, missing = missing.len(), "the dataset is downloaded");
    let bar = progress::download_bar(missing.len());
    let done = stream::iter(&missing).map(|one| download(store, one, to)).buffer_unordered(AT_ONCE);
    let done = done.try_for_each(|()| {
        bar.inc(1);
        std::future::ready(Ok(()))
    });
    let done = done.await;
    bar.finish_and_clear();
    done
}
