//! Which photos a dataset has and where their bytes are. Nothing is decoded here.

use std::{
    collections::BTreeSet,
    fs,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anneal_api::dataset::{DatasetUri, Synthetic};

use super::{
    DataError, PHOTO_EXTENSIONS, Split, archive,
    pixels::zeros,
    remote::{self, Downloads},
    synthetic,
    walk::{Found, walk},
};

/// What a dataset holds.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The photos.
    pub photos: Vec<Photo>,
    /// All folders, the empty ones too.
    pub folders: BTreeSet<String>,
}

/// A photo of the dataset.
#[derive(Clone, Debug)]
pub struct Photo {
    /// Path below the dataset's root, with `/`.
    pub path: String,
    /// Where its bytes are.
    pub place: Place,
}

/// Where the bytes of a photo are.
#[derive(Clone, Debug)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// Within a tar.
    InTar {
        /// The tar.
        archive: Arc<Path>,
        /// Where in it.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Nowhere: a link leads to nothing.
    Nowhere,
    /// Nowhere: the trainer draws it.
    Drawn {
        /// The set it belongs to.
        set: Synthetic,
        /// Its number in the set.
        index: u32,
    },
}

/// Lists the dataset that a URI names, after what is at a server was downloaded; the second part is the MD5s that `.dvc`
/// files name.
///
/// # Errors
/// When it does not exist, cannot be fetched or read, or holds no photo.
pub fn list(uri: &DatasetUri, to: Downloads<'_>) -> Result<(Listing, Vec<String>), DataError> {
    let (listing, digests) = match uri {
        DatasetUri::Pvc { .. } => return Err(DataError::Claim(uri.clone())),
        DatasetUri::Synthetic(set) => return Ok((drawn(*set), Vec::new())),
        DatasetUri::File { path } => (list_path(Path::new(path), to.moved)?, Vec::new()),
        DatasetUri::Remote { url } => (remote::list(url, to)?, Vec::new()),
        DatasetUri::Dvc { url } => remote::list_dvc(url, to)?,
    };
    if listing.photos.is_empty() {
        return Err(DataError::Empty(uri.shown().into()));
    }
    Ok((listing.in_order(), digests))
}

/// Lists a set that the trainer draws.
pub fn drawn(set: Synthetic) -> Listing {
    synthetic::list(set).in_order()
}

fn list_path(path: &Path, moved: &dyn Fn()) -> Result<Listing, DataError> {
    let about = fs::metadata(path).map_err(DataError::reading(path))?;
    let listing = if about.is_dir() {
        list_folder(path, moved)?
    } else if has_extension(&path.to_string_lossy(), "tar") {
        archive::list(path, moved)?
    } else {
        return Err(DataError::NotATar(path.to_owned()));
    };
    if listing.photos.is_empty() { Err(DataError::Empty(path.to_owned())) } else { Ok(listing) }
}

/// The photos and folders below a folder; tars in it that are named after splits are taken for folders.
fn list_folder(folder: &Path, moved: &dyn Fn()) -> Result<Listing, DataError> {
    let mut listing = Listing::default();
    walk(folder, |within, path, found| {
        moved();
        let name = within.rsplit('/').next().unwrap_or_default();
        match found {
            Found::Folder => {
                listing.folders.insert(within.to_owned());
            }
            Found::File if is_photo(name) => {
                listing.photos.push(Photo { path: within.to_owned(), place: Place::File(path) });
            }
            Found::Dangling if is_photo(name) => {
                listing.photos.push(Photo { path: within.to_owned(), place: Place::Nowhere });
            }
            Found::File => {
                if let Some(split) = split_of_tar(within) {
                    let mut part = archive::list(&path, moved)?;
                    part.strip_common_folder();
                    listing.append_below(split.folder(), part);
                }
            }
            Found::Dangling => {}
        }
        Ok(())
    })?;
    Ok(listing)
}

/// The split that a tar such as `train.tar` holds.
fn split_of_tar(path: &str) -> Option<Split> {
    path.rsplit_once('.')
        .filter(|(_, extension)| extension.eq_ignore_ascii_case("tar"))
        .and_then(|(name, _)| Split::from_name(name))
}

impl Listing {
    fn in_order(mut self) -> Self {
        self.strip_common_folder();
        self.photos.sort_by(|a, b| a.path.cmp(&b.path));
        self
    }

    pub(super) fn append_below(&mut self, folder: &str, part: Self) {
        let below = |path: String| format!("{folder}/{path}");
        self.folders.insert(folder.to_owned());
        self.folders.extend(part.folders.into_iter().map(below));
        self.photos.extend(part.photos.into_iter().map(|photo| Photo { path: below(photo.path), ..photo }));
    }

    /// Removes folders that hold everything else, such as the one that a tar was made of.
    pub(super) fn strip_common_folder(&mut self) {
        while let Some(common) = self.common_folder() {
            let strip = |path: &str| path[common.len()..].to_owned();
            self.photos.iter_mut().for_each(|photo| photo.path = strip(&photo.path));
            self.folders =
                self.folders.iter().filter_map(|path| path.strip_prefix(&common)).map(str::to_owned).collect();
        }
    }

    /// The folder, with its slash, above all photos and folders, where class folders lie below it.
    fn common_folder(&self) -> Option<String> {
        let first = self.photos.first()?.path.split_once('/')?.0;
        let common = format!("{first}/");
        let below_class = |path: &str| path.strip_prefix(&common).is_some_and(|rest| rest.contains('/'));
        let all = self.photos.iter().all(|photo| below_class(&photo.path))
            && self.folders.iter().all(|path| path == first || path.starts_with(&common));
        all.then_some(common)
    }
}

impl Photo {
    /// The photo's bytes, or `None` where it has none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match &self.place {
            Place::File(path) => fs::read(path).map(Some),
            Place::InTar { archive, offset, bytes } => {
                let content = usize::try_from(*bytes).ok().and_then(zeros);
                let mut content = content.ok_or(io::ErrorKind::OutOfMemory)?;
                File::open(archive)?.read_exact_at(&mut content, *offset)?;
                Ok(Some(content))
            }
            Place::Nowhere | Place::Drawn { .. } => Ok(None),
        }
    }
}

/// Whether a name is that of a file or folder that no person put into the dataset.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "lost+found" || name == "__MACOSX"
}

/// Whether the name is that of a photo.
pub(crate) fn is_photo(name: &str) -> bool {
    PHOTO_EXTENSIONS.iter().any(|extension| has_extension(name, extension))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn listing(paths: &[&str], folders: &[&str]) -> Listing {
        let photo = |path: &&str| Photo { path: (*path).to_owned(), place: Place::File(PathBuf::from(path)) };
        Listing {
            photos: paths.iter().map(photo).collect(),
            folders: folders.iter().map(|path| (*path).to_owned()).collect(),
        }
    }

    fn stripped(paths: &[&str], folders: &[&str]) -> Vec<String> {
        let mut listing = listing(paths, folders);
        listing.strip_common_folder();
        listing.photos.into_iter().map(|photo| photo.path).collect()
    }

    #[test]
    fn folders_around_the_classes_are_stripped_and_classes_are_not() {
        assert_eq!(stripped(&["set/v1/cat/a.jpg", "set/v1/dog/b.jpg"], &[]), ["cat/a.jpg", "dog/b.jpg"]);
        assert_eq!(stripped(&["cat/a.jpg", "cat/b.jpg"], &[]), ["cat/a.jpg", "cat/b.jpg"]);
    }

    #[test]
    fn an_empty_class_beside_a_nested_one_keeps_the_folders_as_they_are() {
        assert_eq!(stripped(&["cat/sub/a.jpg"], &["cat", "cat/sub", "dog"]), ["cat/sub/a.jpg"]);
    }

    #[test]
    fn whoever_watches_hears_of_each_file_of_a_folder_and_of_a_tar() {
        let set = tempfile::tempdir().expect("a folder");
        let cats = set.path().join("cat");
        fs::create_dir(&cats).expect("a folder");
        (0..5).for_each(|number| fs::write(cats.join(format!("{number}.png")), "").expect("a file"));
        let tar = tempfile::NamedTempFile::with_suffix(".tar").expect("a file");
        tar::Builder::new(tar.as_file()).append_dir_all("set", set.path()).expect("a tar");
        for path in [set.path(), tar.path()] {
            let heard = Cell::new(0);
            let listed = list_path(path, &|| heard.set(heard.get() + 1)).expect("a listing");
            assert_eq!(listed.photos.len(), 5);
            assert!(heard.get() > 5, "{} of {path:?}", heard.get());
        }
    }

    #[test]
    fn a_tar_named_after_a_split_is_one() {
        assert_eq!(split_of_tar("validation.tar"), Some(Split::Validation));
        assert_eq!(split_of_tar("photos.tar"), None);
        assert_eq!(split_of_tar("cat/train.tar"), None);
        assert_eq!(split_of_tar("train.zip"), None);
    }

    #[test]
    fn what_systems_leave_behind_is_no_photo() {
        assert!(is_hidden("._a.jpg") && is_hidden("lost+found"));
        assert!(is_photo("A.JPG") && !is_photo("notes.txt"));
    }
}
