//! Tar files of strangers: which entries are taken, and which are refused.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Component, Path},
    sync::Arc,
};

use tar::EntryType;

use super::{
    DataError,
    listing::{Listing, Photo, Place, is_hidden, is_photo},
};

/// The parts of an entry's name, or what is wrong with it.
///
/// # Errors
/// When the name is absolute, leaves its root, or is not UTF-8.
pub fn safe_parts(name: &Path) -> Result<Vec<&str>, &'static str> {
    let mut parts = Vec::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or("has a name that is not UTF-8")?),
            Component::CurDir => {}
            Component::ParentDir => return Err("leaves the folder by `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute path"),
        }
    }
    Ok(parts)
}

/// What an entry is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A folder.
    Folder,
    /// Something about other entries.
    Note,
}

/// The kind of an entry, or why it is refused.
///
/// # Errors
/// For links, devices and whatever else is no plain file or folder.
pub fn kind(entry: EntryType) -> Result<Kind, &'static str> {
    match entry {
        EntryType::Regular | EntryType::Continuous => Ok(Kind::File),
        EntryType::Directory => Ok(Kind::Folder),
        EntryType::XGlobalHeader | EntryType::XHeader => Ok(Kind::Note),
        EntryType::Link | EntryType::Symlink => Err("is a link"),
        _ => Err("is neither a file nor a folder"),
    }
}

/// Every entry fills up its last block.
const BLOCK: u64 = 512;
/// What a file that is no tar is, by its first bytes.
const OTHERS: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "is compressed by gzip; make it a plain tar with gunzip"),
    (b"BZh", "is compressed by bzip2; make it a plain tar with bunzip2"),
    (b"\xfd7zXZ\0", "is compressed by xz; make it a plain tar with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; make it a plain tar with unzstd"),
    (b"PK\x03\x04", "is a zip; unpack it, and name the folder or make it a plain tar"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it, and name the folder or make it a plain tar"),
];

/// Why a tar cannot be read, for a person: the tar library tells of its numbers and buffers.
pub fn unreadable(archive: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |error| {
        let problem = match error.kind() {
            io::ErrorKind::UnexpectedEof => "breaks off; copy it again".to_owned(),
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                "is no tar, or a damaged one; copy it again or make it anew".to_owned()
            }
            _ => return DataError::reading(archive)(error),
        };
        DataError::Archive { path: archive.to_owned(), problem }
    }
}

/// Calls `take` with the parts of the name, the kind and the content of each entry that is not refused.
///
/// # Errors
/// When the tar cannot be read or holds an entry that is refused, and whatever `take` fails with.
pub fn each_entry<R: Read>(
    archive: &Path,
    entries: tar::Entries<'_, R>,
    mut take: impl FnMut(&[&str], Kind, &mut tar::Entry<'_, R>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for entry in entries {
        let mut entry = entry.map_err(unreadable(archive))?;
        let name = entry.path().map_err(unreadable(archive))?.into_owned();
        let refuse = |problem| DataError::UnsafeEntry {
            archive: archive.to_owned(),
            entry: name.display().to_string(),
            problem,
        };
        let kind = kind(entry.header().entry_type()).map_err(refuse)?;
        let parts = safe_parts(&name).map_err(refuse)?;
        take(&parts, kind, &mut entry)?;
    }
    Ok(())
}

/// Lists the photos of a tar; their bytes stay where they are. `moved` hears of each entry.
///
/// # Errors
/// When the file is no tar, cannot be read or ends before an entry does, or holds an entry that is refused.
pub fn list(path: &Path, moved: &dyn Fn()) -> Result<Listing, DataError> {
    let mut file = File::open(path).map_err(DataError::reading(path))?;
    let length = file.metadata().map_err(DataError::reading(path))?.len();
    let unusable = |problem: String| DataError::Archive { path: path.to_owned(), problem };
    let mut begin = Vec::new();
    (&mut file).take(8).read_to_end(&mut begin).map_err(DataError::reading(path))?;
    if let Some((_, problem)) = OTHERS.into_iter().find(|(magic, _)| begin.starts_with(magic)) {
        return Err(unusable(problem.to_owned()));
    }
    file.rewind().map_err(DataError::reading(path))?;
    let shared: Arc<Path> = path.into();
    let mut listing = Listing::default();
    let mut tar = tar::Archive::new(file);
    let entries = tar.entries_with_seek().map_err(DataError::reading(path))?;
    each_entry(path, entries, |parts, kind, entry| {
        moved();
        if parts.is_empty() || parts.iter().any(|part| is_hidden(part)) {
            return Ok(());
        }
        let name = parts.join("/");
        // Nobody else looks at what a header promises.
        let end = entry.raw_file_position().checked_add(entry.size());
        if kind == Kind::File && end.and_then(|end| end.checked_next_multiple_of(BLOCK)).is_none_or(|end| end > length)
        {
            return Err(unusable(format!("breaks off: the file ends before {name} does; copy it again")));
        }
        match kind {
            Kind::Folder => {
                listing.folders.insert(name);
            }
            Kind::File if is_photo(&name) => {
                let place =
                    Place::InTar { archive: shared.clone(), offset: entry.raw_file_position(), bytes: entry.size() };
                listing.photos.push(Photo { path: name, place });
            }
            Kind::File | Kind::Note => {}
        }
        Ok(())
    })?;
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_not_leave_the_folder() {
        assert_eq!(safe_parts(Path::new("./cat/a.jpg")), Ok(vec!["cat", "a.jpg"]));
        for name in ["../a.jpg", "cat/../../a.jpg", "/etc/passwd"] {
            assert!(safe_parts(Path::new(name)).is_err(), "{name} was taken");
        }
    }

    #[test]
    fn links_and_devices_are_refused() {
        for entry in [EntryType::Symlink, EntryType::Link, EntryType::Fifo, EntryType::Char, EntryType::Block] {
            assert!(kind(entry).is_err(), "{entry:?} was taken");
        }
    }
}
