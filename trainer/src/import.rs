//! Unpacks a tar stream into a folder, for putting photos onto a claim with an image that has neither shell nor tar.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use anneal_api::Sha256;
use sha2::{Digest, Sha256 as Hasher};

use crate::{
    data::{DataError, archive, load::listing_digest},
    outcome::Error,
};

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Count of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Digest of the sorted list of `path sha256` lines.
    pub digest: Sha256,
}

/// Unpacks the tar `stream` into `dir`. Existing files of the same names are replaced.
///
/// # Errors
/// When the tar is damaged, holds an entry that would leave the folder or is no plain file, or the file system refuses.
pub fn import(stream: impl Read, dir: &Path) -> Result<Imported, Error> {
    fs::create_dir_all(dir).map_err(Error::writing(dir))?;
    // Through a link in the folder an entry could leave it, so the real path of each parent is compared with this.
    let root = fs::canonicalize(dir).map_err(Error::writing(dir))?;
    let (mut digests, mut bytes) = (Vec::new(), 0);
    let mut failed = None;
    let source = Path::new("standard input");
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 20, stream));
    let entries = tar.entries().map_err(DataError::reading(source))?;
    archive::each_entry(source, entries, |parts, kind, entry| {
        let target: PathBuf = parts.iter().collect();
        let done = match kind {
            archive::Kind::Note => return Ok(()),
            archive::Kind::Folder => make_folder(&root, &target).map(drop),
            archive::Kind::File => unpack(&root, &target, entry).map(|file| {
                bytes += file.1;
                digests.push((parts.join("/"), file.0));
            }),
        };
        done.map_err(|source| {
            let path = dir.join(&target);
            failed = Some((path.clone(), source.kind()));
            DataError::Unreadable { path, source }
        })
    })
    .map_err(|error| match failed {
        // The tar itself was fine: the file system is what refused.
        Some((path, kind)) if kind != io::ErrorKind::UnexpectedEof => Error::writing(path)(kind.into()),
        _ => error.into(),
    })?;
    Ok(Imported { files: digests.len(), bytes, digest: listing_digest(digests) })
}

fn make_folder(root: &Path, folder: &Path) -> io::Result<PathBuf> {
    let mut made = root.to_owned();
    for part in folder {
        made.push(part);
        match fs::symlink_metadata(&made) {
            Ok(about) if about.is_dir() => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::NotADirectory, "a file or link has the folder's name")),
            Err(_) => fs::create_dir(&made)?,
        }
    }
    Ok(made)
}

fn unpack(root: &Path, target: &Path, content: &mut impl Read) -> io::Result<(Sha256, u64)> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let path = make_folder(root, target.parent().unwrap_or(Path::new("")))?.join(name);
    // A link of this name would be written through.
    if fs::symlink_metadata(&path).is_ok_and(|about| about.is_symlink()) {
        fs::remove_file(&path)?;
    }
    let mut file = fs::File::create(&path)?;
    let (mut hasher, mut buffer, mut bytes) = (Hasher::new(), vec![0; 1 << 16], 0);
    loop {
        let read = content.read(&mut buffer)?;
        if read == 0 {
            return Ok((Sha256::from_bytes(hasher.finalize().into()), bytes));
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
}
