//! What a run begins with instead of random weights: the weights of a checkpoint, some of them frozen.

use std::path::Path;

use anneal_api::{Sha256, config::InitFrom, failure::FailureClass};
use anneal_model::{Checkpoint, CheckpointError, Network, sha256_file};
use tracing::info;

use crate::outcome::Error;

/// A checkpoint cannot be begun with.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It cannot be read, or its tensors are not the network's.
    #[error("initFrom.checkpoint {path:?} cannot be used: {source}")]
    Unusable {
        /// The file.
        path: String,
        /// Why not.
        source: CheckpointError,
    },
    /// It is another file than the configuration says.
    #[error(
        "initFrom.checkpoint {path:?} has the SHA-256 {found}, not {expected}; correct initFrom.sha256, or the file"
    )]
    Digest {
        /// The file.
        path: String,
        /// The configured digest.
        expected: Sha256,
        /// The file's digest.
        found: Sha256,
    },
    /// It is of another architecture.
    #[error(
        "initFrom.checkpoint {path:?} is of architecture {found}, and model.architecture is {expected}; make them the same"
    )]
    Architecture {
        /// The file.
        path: String,
        /// The checkpoint's class of network.
        found: &'static str,
        /// The run's.
        expected: &'static str,
    },
}

impl InitError {
    /// The class by which the failure is reported.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Unusable { source, .. } if source.is_not_found() => FailureClass::ModelNotFound,
            Self::Unusable { .. } => FailureClass::LoadFailed,
            Self::Digest { .. } => FailureClass::DigestMismatch,
            Self::Architecture { .. } => FailureClass::BadConfig,
        }
    }
}

/// Loads the checkpoint's weights into a new network, all but the last layer where the classes differ.
///
/// # Errors
/// When the checkpoint is not there, is another one than configured, or does not fit the network.
pub fn load(init: &InitFrom, classes: &[String], network: &mut Network) -> Result<(), Error> {
    let path = &init.checkpoint;
    let unusable = |source: CheckpointError| InitError::Unusable { path: path.clone(), source };
    let reading = |source| unusable(CheckpointError::Io { path: Path::new(path).to_owned(), source });
    if let Some(expected) = &init.sha256 {
        let found = sha256_file(path).map_err(reading)?.sha256;
        if found != *expected {
            return Err(InitError::Digest { path: path.clone(), expected: expected.clone(), found }.into());
        }
    }
    let checkpoint = Checkpoint::load(path).map_err(unusable)?;
    let contract = checkpoint.contract().map_err(unusable)?;
    let (found, expected) = (contract.model.architecture, network.architecture());
    if found != expected {
        let (found, expected) = (found.class_name(), expected.class_name());
        return Err(InitError::Architecture { path: path.clone(), found, expected }.into());
    }
    let new: &[&str] = if contract.classes == classes { &[] } else { &network.head() };
    let own = network.state()?;
    let mut state = checkpoint.state;
    for (name, tensor) in state.0.iter_mut().filter(|(name, _)| new.contains(&name.as_str())) {
        if let Some(own) = own.get(name) {
            *tensor = own.clone();
        }
    }
    network.load(&state).map_err(|error| unusable(error.into()))?;
    info!(
        checkpoint = path,
        kept = state.0.len() - new.len(),
        new = new.join(", "),
        classes_of_checkpoint = ?contract.classes,
        "weights of another run are begun with"
    );
    Ok(())
}
