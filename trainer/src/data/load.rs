//! Decodes all photos once, in threads, to bytes of the size that the network takes, and keeps them: in memory while they
//! take a small part of it, else in a file.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs, io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anneal_api::{Sha256, dataset::DatasetUri, termination::DatasetResult};
use anneal_model::preprocess::{self, ImageLimits, RgbImage};
use sha2::{Digest, Sha256 as Hasher};
use tracing::info;

use super::{
    DataError, Split,
    arrange::{Arrangement, Labelled},
    listing::{Photo, Place},
    pixels::{Pixels, Room},
    synthetic,
};

/// Broken photos that a message names.
const NAMED: usize = 3;

/// A decoded dataset.
#[derive(Debug)]
pub struct Dataset {
    /// The classes, sorted; a label is a position in here.
    pub classes: Vec<String>,
    /// Photos for training.
    pub train: Photos,
    /// Photos that choose the best epoch.
    pub validation: Photos,
    /// Photos for the final metrics; may be empty.
    pub test: Photos,
    /// What it is, for results.
    pub identity: DatasetResult,
    /// Photos that were skipped, with reasons.
    pub broken: Vec<String>,
    /// Photos of which the same bytes lie in another split: what is measured there was seen in training.
    pub duplicates: Vec<String>,
}

/// Decoded photos of one split.
#[derive(Debug, Default)]
pub struct Photos {
    /// Side of each photo in pixels.
    pub size: usize,
    /// Rows of RGB pixels, photo after photo.
    pub pixels: Pixels,
    /// The label of each photo.
    pub labels: Vec<usize>,
    /// The path of each photo in the dataset.
    pub paths: Vec<String>,
}

impl Photos {
    /// Count of photos.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of one photo.
    ///
    /// # Errors
    /// When they are kept in a file that cannot be read.
    pub fn pixels_of(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        self.pixels.photo(index, photo_bytes(self.size)).map_err(|source| DataError::Cache { source })
    }

    /// One photo as a picture.
    ///
    /// # Errors
    /// When the pixels are kept in a file that cannot be read.
    pub fn picture(&self, index: usize) -> Result<Option<RgbImage>, DataError> {
        let pixels = self.pixels_of(index)?.into_owned();
        Ok(u32::try_from(self.size).ok().and_then(|side| RgbImage::from_raw(side, side, pixels)))
    }
}

/// How to load.
pub struct Loading<'a> {
    /// Side of a decoded photo in pixels.
    pub size: usize,
    /// Threads that decode.
    pub threads: usize,
    /// Bytes of memory that the process may use, if that is known.
    pub memory: Option<u64>,
    /// The folder on whose volume photos are kept for which there is too little memory.
    pub spill: &'a Path,
    /// Set when loading should end early.
    pub stop: &'a AtomicBool,
    /// Hears how many photos are done.
    pub done: &'a (dyn Fn(usize) + Sync),
}

/// Why loading ended without a dataset.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The dataset cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It was stopped from outside.
    #[error("stopped while the dataset was loaded")]
    Stopped,
}

/// Reads, digests, decodes and resizes every photo.
///
/// # Errors
/// When there is no room for the photos, too many are broken, or a class has none left.
pub fn load(uri: &DatasetUri, arrangement: Arrangement, how: &Loading<'_>) -> Result<Dataset, LoadError> {
    let count = arrangement.len();
    let Arrangement { classes, train, validation, test, beside } = arrangement;
    let in_memory = fit_memory(count, how);
    if !in_memory {
        info!(folder = ?how.spill, "the decoded photos are kept in a file: they are much for the memory limit");
    }

    let mut digests = Vec::with_capacity(Split::ALL.len());
    let mut broken = Vec::new();
    let done = AtomicUsize::new(0);
    let mut load_split = |photos: Vec<Labelled>| -> Result<Photos, LoadError> {
        let loaded = load_photos(&photos, how, in_memory, &done)?;
        digests.push(loaded.digests);
        broken.extend(loaded.broken);
        Ok(loaded.photos)
    };
    let train = load_split(train)?;
    let validation = load_split(validation)?;
    let test = load_split(test)?;
    check_broken(&broken, count)?;
    check_classes(&classes, [(Split::Train, &train), (Split::Validation, &validation), (Split::Test, &test)])?;

    let (digest, duplicates) = if let DatasetUri::Synthetic(set) = uri {
        (Sha256::from_bytes(Hasher::digest(synthetic::identity(*set)).into()), Vec::new())
    } else {
        let duplicates = duplicates(&digests);
        (listing_digest(digests.into_iter().flatten().collect()), duplicates)
    };
    let images = count - broken.len();
    broken
        .extend(beside.into_iter().map(|path| format!("{path}: it lies beside the class folders, so it has no class")));
    let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let identity =
        DatasetResult { digest: format!("sha256:{digest}"), images: whole(images), skipped: whole(broken.len()) };
    Ok(Dataset { classes, train, validation, test, identity, broken, duplicates })
}

/// Photos whose bytes lie in more than one split, given the digests of each split in the order of [`Split::ALL`].
fn duplicates(splits: &[Vec<(String, Sha256)>]) -> Vec<String> {
    let mut seen: HashMap<&Sha256, (Split, &str)> = HashMap::new();
    let mut found = Vec::new();
    for (split, photos) in Split::ALL.into_iter().zip(splits) {
        for (path, digest) in photos {
            let (first, at) = *seen.entry(digest).or_insert((split, path));
            if first != split {
                found.push(format!("{path} ({split}) is the same photo as {at} ({first})"));
            }
        }
    }
    found
}

/// The digest of the sorted list of `path sha256` lines.
pub fn listing_digest(mut files: Vec<(String, Sha256)>) -> Sha256 {
    files.sort();
    let mut hasher = Hasher::new();
    for (path, digest) in files {
        hasher.update(format!("{path} {digest}\n"));
    }
    Sha256::from_bytes(hasher.finalize().into())
}

fn photo_bytes(size: usize) -> usize {
    size * size * 3
}

/// Whether the photos take no more than a quarter of the memory: the network needs most of it.
fn fit_memory(photos: usize, how: &Loading<'_>) -> bool {
    let needed = (photos as u64).saturating_mul(photo_bytes(how.size) as u64);
    how.memory.is_none_or(|limit| needed <= limit / 4)
}

fn check_broken(broken: &[String], count: usize) -> Result<(), DataError> {
    if broken.len() * 20 <= count {
        return Ok(());
    }
    let first = broken.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    Err(DataError::Broken { broken: broken.len(), total: count, first })
}

/// A few broken photos may be all that a small class has.
fn check_classes(classes: &[String], splits: [(Split, &Photos); 3]) -> Result<(), DataError> {
    for (split, photos) in splits.into_iter().filter(|(_, photos)| !photos.is_empty()) {
        if let Some(label) = (0..classes.len()).find(|label| !photos.labels.contains(label)) {
            return Err(DataError::EmptyClass { split, class: classes[label].clone() });
        }
    }
    Ok(())
}

#[derive(Default)]
struct Loaded {
    photos: Photos,
    digests: Vec<(String, Sha256)>,
    broken: Vec<String>,
}

/// What became of one photo.
enum Fate {
    Good(Sha256),
    Broken(Sha256, String),
}

fn load_photos(
    photos: &[Labelled],
    how: &Loading<'_>,
    in_memory: bool,
    done: &AtomicUsize,
) -> Result<Loaded, LoadError> {
    let bytes = photo_bytes(how.size);
    let cache = |source| DataError::Cache { source };
    let mut pixels = if in_memory {
        let bytes = photos.len().saturating_mul(bytes);
        Pixels::in_memory(bytes).ok_or(DataError::Memory(bytes))?
    } else {
        fs::create_dir_all(how.spill).and_then(|()| Pixels::in_file(how.spill)).map_err(cache)?
    };
    let mut fates: Vec<Option<Result<Fate, DataError>>> = Vec::new();
    fates.resize_with(photos.len(), || None);
    {
        let work = Mutex::new(photos.iter().zip(pixels.rooms(bytes)).zip(&mut fates));
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..how.threads.max(1) {
                scope.spawn(|| {
                    while !how.stop.load(Ordering::Relaxed) {
                        let Some(((labelled, room), fate)) = next() else { break };
                        *fate = Some(load_photo(&labelled.photo, how.size, room));
                        (how.done)(done.fetch_add(1, Ordering::Relaxed) + 1);
                    }
                });
            }
        });
    }
    if how.stop.load(Ordering::Relaxed) {
        return Err(LoadError::Stopped);
    }

    let mut loaded = Loaded::default();
    let mut kept = Vec::with_capacity(photos.len());
    for (index, (labelled, fate)) in photos.iter().zip(fates).enumerate() {
        let path = labelled.photo.path.clone();
        match fate.ok_or(LoadError::Stopped)?? {
            Fate::Good(digest) => {
                loaded.digests.push((path.clone(), digest));
                loaded.photos.labels.push(labelled.label);
                loaded.photos.paths.push(path);
                kept.push(index);
            }
            Fate::Broken(digest, reason) => {
                loaded.broken.push(format!("{path}: {reason}"));
                loaded.digests.push((path, digest));
            }
        }
    }
    pixels.keep(&kept, bytes).map_err(cache)?;
    (loaded.photos.size, loaded.photos.pixels) = (how.size, pixels);
    Ok(loaded)
}

fn load_photo(photo: &Photo, size: usize, room: Room<'_>) -> Result<Fate, DataError> {
    let unreadable = |source: io::Error| DataError::Unreadable { path: photo.path.clone().into(), source };
    let content = photo.read().map_err(unreadable)?;
    let digest = Sha256::from_bytes(Hasher::digest(content.as_deref().unwrap_or_default()).into());
    match decode(photo, content.as_deref().unwrap_or_default(), size) {
        Ok(image) => {
            room.fill(image.as_raw()).map_err(|source| DataError::Cache { source })?;
            Ok(Fate::Good(digest))
        }
        Err(reason) => Ok(Fate::Broken(digest, reason)),
    }
}

fn decode(photo: &Photo, content: &[u8], size: usize) -> Result<RgbImage, String> {
    let image = match &photo.place {
        Place::Drawn { set, index } => synthetic::image(*set, *index),
        Place::Nowhere => return Err("the link leads to nothing".to_owned()),
        _ => preprocess::decode(content, &ImageLimits::default()).map_err(|error| error.to_string())?,
    };
    let pixels = u32::try_from(size).map_err(|error| error.to_string())?;
    preprocess::resize_bilinear(&image, pixels, pixels).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{arrange, listing, remote::Downloads};

    fn loaded(memory: Option<u64>, spill: &Path) -> Result<Dataset, LoadError> {
        let uri = "synthetic://?images=40&size=16&seed=0".parse().expect("an address");
        let to = Downloads { dir: spill, stop: &AtomicBool::new(false), moved: &|| () };
        let (listing, _) = listing::list(&uri, to).expect("a listing");
        let arrangement = arrange::arrange(listing, 0.2, 1).expect("splits");
        let how = Loading { size: 16, threads: 2, memory, spill, stop: &AtomicBool::new(false), done: &|_| () };
        load(&uri, arrangement, &how)
    }

    #[test]
    fn photos_that_are_much_for_the_memory_are_kept_in_a_file_and_are_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = loaded(None, folder.path()).expect("a dataset");
        let outside = loaded(Some(1 << 16), folder.path()).expect("a dataset");
        assert!(matches!((&inside.train.pixels, &outside.train.pixels), (Pixels::Memory(_), Pixels::File(_))));
        assert_eq!(inside.identity, outside.identity);
        for index in 0..inside.train.len() {
            assert_eq!(inside.train.pixels_of(index).expect("pixels"), outside.train.pixels_of(index).expect("pixels"));
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn a_volume_that_takes_no_photos_is_told_of() {
        let error = loaded(Some(1 << 16), Path::new("/proc/photos")).expect_err("an error").to_string();
        assert!(error.contains("raise the memory limit"), "{error}");
    }
}
