//! The immutable published model: a file named after its content.

use std::{fs, io, path::Path};

use anneal_api::{Sha256, names::path::PUBLISHED};
use anneal_model::{Checkpoint, sha256_file};
use sha2::{Digest, Sha256 as Hasher};

use crate::{files, outcome::Error};

/// A published model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its path relative to the root of the output claim.
    pub path: String,
    /// Digest of its content.
    pub sha256: Sha256,
    /// Its length.
    pub bytes: u64,
}

/// Writes the model to `<models>/<sha256>.pth`, unless it is there already. `owner` is the directory of the run: no two
/// runs at once have the same, so its name keeps their temporary files apart.
///
/// # Errors
/// When the file system refuses.
pub fn publish(model: Checkpoint, models: &Path, owner: &Path) -> Result<Published, Error> {
    fs::create_dir_all(models).map_err(Error::writing(models))?;
    let owner = fs::canonicalize(owner).unwrap_or_else(|_| owner.to_owned());
    let owner = Sha256::from_bytes(Hasher::digest(owner.as_os_str().as_encoded_bytes()).into());
    let next = models.join(format!(".{}.next", owner.short(16)));
    let saved = model.save(&next)?;
    let path = models.join(saved.sha256.file_name());
    place(&next, &path, &saved.sha256).map_err(Error::writing(&path))?;
    let path = format!("{PUBLISHED}/{}", saved.sha256.file_name());
    Ok(Published { path, sha256: saved.sha256, bytes: saved.bytes })
}

fn place(next: &Path, path: &Path, sha256: &Sha256) -> io::Result<()> {
    if sha256_file(path).is_ok_and(|there| there.sha256 == *sha256) {
        return fs::remove_file(next);
    }
    fs::rename(next, path)?;
    files::sync_parent(path)
}

#[cfg(test)]
mod tests {
    use anneal_model::StateDict;

    use super::*;

    #[test]
    fn the_same_model_is_published_once_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = Checkpoint { info: None, state: StateDict::default(), extra: Vec::new() };
        let first = publish(model.clone(), dir.path(), Path::new("a")).expect("a model");
        let path = dir.path().join(first.sha256.file_name());
        assert_eq!(first.path, format!("models/{}.pth", first.sha256));
        assert_eq!(publish(model.clone(), dir.path(), Path::new("b")).expect("the same model"), first);
        fs::write(&path, "damaged").expect("a file");
        publish(model, dir.path(), Path::new("c")).expect("the model again");
        assert_eq!(sha256_file(&path).expect("a file").sha256, first.sha256);
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }
}
