//! Decodes all photos once, in threads, to bytes of the size that the network takes.

use std::{
    collections::HashMap,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anneal_api::{Sha256, dataset::DatasetUri, termination::DatasetResult};
use anneal_model::preprocess::{self, ImageLimits, RgbImage};
use sha2::{Digest, Sha256 as Hasher};

use super::{
    DataError, Split,
    arrange::{Arrangement, Labelled},
    listing::{Photo, Place},
    synthetic,
};

/// Broken photos that a message names.
const NAMED: usize = 3;

/// A dataset in memory.
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
    pub pixels: Vec<u8>,
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
    pub fn pixels_of(&self, index: usize) -> &[u8] {
        let bytes = photo_bytes(self.size);
        &self.pixels[index * bytes..(index + 1) * bytes]
    }

    /// One photo as a picture.
    pub fn picture(&self, index: usize) -> Option<RgbImage> {
        let side = u32::try_from(self.size).ok()?;
        RgbImage::from_raw(side, side, self.pixels_of(index).to_vec())
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
/// When the photos do not fit into memory, too many are broken, or a class has none left.
pub fn load(uri: &DatasetUri, arrangement: Arrangement, how: &Loading<'_>) -> Result<Dataset, LoadError> {
    let count = arrangement.len();
    let Arrangement { classes, train, validation, test } = arrangement;
    check_memory(count, how)?;

    let mut digests = Vec::with_capacity(Split::ALL.len());
    let mut broken = Vec::new();
    let done = AtomicUsize::new(0);
    let mut load_split = |photos: Vec<Labelled>| -> Result<Photos, LoadError> {
        let loaded = load_photos(&photos, how, &done)?;
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
    let whole = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let identity = DatasetResult {
        digest: format!("sha256:{digest}"),
        images: whole(count - broken.len()),
        skipped: whole(broken.len()),
    };
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

fn check_memory(photos: usize, how: &Loading<'_>) -> Result<(), DataError> {
    const MIB: u64 = 1 << 20;
    let needed = (photos as u64).saturating_mul(photo_bytes(how.size) as u64);
    match how.memory {
        Some(limit) if needed > limit / 2 => Err(DataError::Memory {
            photos,
            size: how.size,
            needed: needed.div_ceil(MIB),
            limit: limit / MIB,
            enough: (needed * 2).div_ceil(MIB),
        }),
        _ => Ok(()),
    }
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

fn load_photos(photos: &[Labelled], how: &Loading<'_>, done: &AtomicUsize) -> Result<Loaded, LoadError> {
    let bytes = photo_bytes(how.size);
    let mut pixels = vec![0; photos.len() * bytes];
    let mut fates: Vec<Option<Result<Fate, DataError>>> = Vec::new();
    fates.resize_with(photos.len(), || None);
    {
        let work = Mutex::new(photos.iter().zip(pixels.chunks_exact_mut(bytes)).zip(&mut fates));
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..how.threads.max(1) {
                scope.spawn(|| {
                    while !how.stop.load(Ordering::Relaxed) {
                        let Some(((labelled, pixels), fate)) = next() else { break };
                        *fate = Some(load_photo(&labelled.photo, how.size, pixels));
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
    let mut kept = 0;
    for (index, (labelled, fate)) in photos.iter().zip(fates).enumerate() {
        let path = labelled.photo.path.clone();
        match fate.ok_or(LoadError::Stopped)?? {
            Fate::Good(digest) => {
                loaded.digests.push((path.clone(), digest));
                loaded.photos.labels.push(labelled.label);
                loaded.photos.paths.push(path);
                // Closes the gap that broken photos left.
                pixels.copy_within(index * bytes..(index + 1) * bytes, kept * bytes);
                kept += 1;
            }
            Fate::Broken(digest, reason) => {
                loaded.broken.push(format!("{path}: {reason}"));
                loaded.digests.push((path, digest));
            }
        }
    }
    pixels.truncate(kept * bytes);
    (loaded.photos.size, loaded.photos.pixels) = (how.size, pixels);
    Ok(loaded)
}

fn load_photo(photo: &Photo, size: usize, pixels: &mut [u8]) -> Result<Fate, DataError> {
    let unreadable = |source: io::Error| DataError::Unreadable { path: photo.path.clone().into(), source };
    let content = photo.read().map_err(unreadable)?;
    let digest = Sha256::from_bytes(Hasher::digest(content.as_deref().unwrap_or_default()).into());
    match decode(photo, content.as_deref().unwrap_or_default(), size) {
        Ok(image) => {
            pixels.copy_from_slice(image.as_raw());
            Ok(Fate::Good(digest))
        }
        Err(reason) => Ok(Fate::Broken(digest, reason)),
    }
}

fn decode(photo: &Photo, content: &[u8], size: usize) -> Result<RgbImage, String> {
    let image = match &photo.place {
        Place::Drawn { set, index } => synthetic::image(*set, *index),
        _ => preprocess::decode(content, &ImageLimits::default()).map_err(|error| error.to_string())?,
    };
    let pixels = u32::try_from(size).map_err(|error| error.to_string())?;
    preprocess::resize_bilinear(&image, pixels, pixels).map_err(|error| error.to_string())
}
