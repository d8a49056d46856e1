//! The immutable published model: a file named after its content.

use std::{fs, io, path::Path};

use anneal_api::{Sha256, names::path::PUBLISHED};
use anneal_model::{Checkpoint, Classifier, GoldenSet, preprocess::RgbImage, sha256_file};
use sha2::{Digest, Sha256 as Hasher};

use crate::{data::load::Photos, files, outcome::Error};

/// Inputs of a golden set.
const GOLDEN: usize = 4;

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

/// Adds a golden set to the model: photos from all over the list, with what the network makes of them.
///
/// # Errors
/// When libtorch fails.
pub fn with_golden_set(mut model: Checkpoint, photos: &Photos) -> Result<Checkpoint, Error> {
    let step = photos.len().div_ceil(GOLDEN).max(1);
    let image = |index| photos.picture(index).transpose();
    let images = (0..photos.len()).step_by(step).filter_map(image).collect::<Result<Vec<RgbImage>, _>>()?;
    if !images.is_empty() {
        let classifier = Classifier::new(model.clone())?;
        model.extra.push(GoldenSet::new(&classifier, images)?.into_entry()?);
    }
    Ok(model)
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
    use anneal_api::model::Architecture;
    use anneal_model::{Network, StateDict};

    use super::*;
    use crate::data::pixels::Pixels;

    #[test]
    fn a_golden_set_is_made_of_photos_from_all_over_the_list() {
        let network = Network::new(Architecture::Improved, 2, 0).expect("a network");
        let model = Checkpoint { info: None, state: network.state().expect("weights"), extra: Vec::new() };
        let photos = |count: usize| Photos {
            size: 16,
            pixels: Pixels::Memory(vec![9; 16 * 16 * 3 * count]),
            labels: vec![0; count],
            ..Photos::default()
        };
        for (count, golden) in [(0, None), (1, Some(1)), (3, Some(3)), (10, Some(4)), (1000, Some(4))] {
            let published = with_golden_set(model.clone(), &photos(count)).expect("a model");
            assert_eq!(GoldenSet::of(&published).expect("a golden set").map(|set| set.len()), golden, "{count} photos");
        }
    }

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
