//! A checkpoint from a server into a folder, for inference pods that share no volume.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anneal_api::{Sha256, failure::FailureClass};
use anneal_model::sha256_file;
use tracing::info;

use crate::{
    data::{DataError, remote, remote::RemoteError},
    files,
    outcome::class_of_io,
};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It cannot be downloaded.
    #[error(transparent)]
    Remote(#[from] DataError),
    /// It is another file.
    #[error("what was fetched has the SHA-256 {found}, and {expected} is expected; correct model.uri or model.sha256")]
    Digest {
        /// The digest of what was fetched.
        found: Sha256,
        /// The digest that was asked for.
        expected: Sha256,
    },
    /// The file system refused.
    #[error("{path:?} cannot be used: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl FetchError {
    /// The class by which the failure is reported.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Remote(DataError::Remote(RemoteError::Missing(_))) => FailureClass::ModelNotFound,
            Self::Remote(error) => error.class(),
            Self::Digest { .. } => FailureClass::DigestMismatch,
            Self::File { source, .. } => class_of_io(source),
        }
    }
}

/// Downloads a checkpoint, unless it is there already. The file has the digest, or it is not there.
///
/// # Errors
/// When it cannot be downloaded or written, or has another digest.
pub fn fetch(uri: &str, expected: &Sha256, to: &Path, stop: &AtomicBool) -> Result<(), FetchError> {
    let file = |source| FetchError::File { path: to.to_owned(), source };
    if sha256_file(to).is_ok_and(|there| there.sha256 == *expected) {
        info!(file = ?to, "the checkpoint is there already");
        return Ok(());
    }
    let unverified = to.with_extension("unverified");
    remote::fetch(uri, &unverified, stop)?;
    let fetched = sha256_file(&unverified).map_err(file)?;
    if fetched.sha256 != *expected {
        fs::remove_file(&unverified).map_err(file)?;
        return Err(FetchError::Digest { found: fetched.sha256, expected: expected.clone() });
    }
    fs::rename(&unverified, to).and_then(|()| files::sync_parent(to)).map_err(file)?;
    info!(file = ?to, bytes = fetched.bytes, "the checkpoint is fetched");
    Ok(())
}
