//! Unpacks a tar stream into a folder, for putting photos onto a claim with an image that has neither shell nor tar.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use anneal_api::Sha256;
use sha2::{Digest, Sha256 as Hasher};

use crate::{
    data::{DataError, archive, load::listing_digest},
    files,
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

/// Unpacks the tar `stream` into `dir`. Existing files of the same names are replaced, each at once. What was unpacked
/// survives a crash of the node.
///
/// # Errors
/// When the tar is damaged, holds an entry that would leave the folder or is no plain file, or the file system refuses.
pub fn import(stream: impl Read, dir: &Path) -> Result<Imported, Error> {
    fs::create_dir_all(dir).map_err(Error::writing(dir))?;
    // Through a link in the folder an entry could leave it, so the real path of each parent is compared with this.
    let root = fs::canonicalize(dir).map_err(Error::writing(dir))?;
    let (mut digests, mut bytes) = (Vec::new(), 0);
    let (mut written, mut folders) = (Vec::new(), BTreeSet::from([root.clone()]));
    let mut failed = None;
    let source = Path::new("standard input");
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 20, stream));
    let entries = tar.entries().map_err(archive::unreadable(source))?;
    archive::each_entry(source, entries, |parts, kind, entry| {
        let target: PathBuf = parts.iter().collect();
        let done = match kind {
            archive::Kind::Note => return Ok(()),
            archive::Kind::Folder => make_folder(&root, &target).map(|folder| {
                folders.insert(folder);
            }),
            archive::Kind::File => unpack(&root, &target, entry).map(|(path, digest, length)| {
                bytes += length;
                digests.push((parts.join("/"), digest));
                folders.extend(path.parent().map(Path::to_owned));
                written.push(path);
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
    if digests.is_empty() {
        return Err(Error::NothingImported);
    }
    // All at the end: most of it is on the volume by then, and what is left goes there together.
    for path in written.iter().chain(&folders) {
        fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::writing(path))?;
    }
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

fn unpack(root: &Path, target: &Path, content: &mut impl Read) -> io::Result<(PathBuf, Sha256, u64)> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let path = make_folder(root, target.parent().unwrap_or(Path::new("")))?.join(name);
    let temporary = files::beside(&path);
    // A link of this name would be written through. That there is none is no error.
    let _ = fs::remove_file(&temporary);
    let done = fs::File::create_new(&temporary).and_then(|file| copy(content, file)).and_then(|(digest, bytes)| {
        fs::rename(&temporary, &path)?;
        Ok((path, digest, bytes))
    });
    if done.is_err() {
        // A full volume needs its space back.
        let _ = fs::remove_file(&temporary);
    }
    done
}

fn copy(content: &mut impl Read, mut file: fs::File) -> io::Result<(Sha256, u64)> {
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
