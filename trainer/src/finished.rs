//! The result of a run that is done, beside its checkpoints: an attempt that was killed between publishing and its last
//! word is followed by one that has nothing left to do.

use std::{fs, path::Path};

use anneal_api::{names::path::PUBLISHED, termination::RunResult};
use anneal_model::sha256_file;

use crate::{config::RunConfig, files, outcome::Error};

const FILE: &str = "result.json";

/// The result, if this configuration has been trained to its end and the published model is there and whole.
pub fn read(config: &RunConfig) -> Option<RunResult> {
    let result: RunResult = serde_json::from_slice(&fs::read(config.output.join(FILE)).ok()?).ok()?;
    let model = config.models.join(Path::new(&result.checkpoint).strip_prefix(PUBLISHED).ok()?);
    let same_model = sha256_file(model).is_ok_and(|file| file.sha256 == result.sha256);
    (result.config_sha256.as_ref() == Some(&config.sha256) && same_model).then_some(result)
}

/// Writes the result.
///
/// # Errors
/// When the file system refuses.
pub fn write(config: &RunConfig, result: &RunResult) -> Result<(), Error> {
    let path = config.output.join(FILE);
    let text = serde_json::to_vec_pretty(result).map_err(|error| Error::Internal(error.to_string()))?;
    files::write(&path, &text).map_err(Error::writing(path))
}
