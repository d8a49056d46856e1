//! Files that are there whole or not at all, also after a crash of the node, in a folder that one process writes to.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tracing::warn;

/// Name of the file whose lock a process holds as long as the folder is its own.
const LOCK: &str = ".lock";

/// Makes a folder where it is missing, and this process's own until the file is dropped, however the process ends.
///
/// # Errors
/// When another process has it, or the file system refuses.
pub fn own(dir: &Path) -> Result<File, TryLockError> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(LOCK));
    let file = fs::create_dir_all(dir).and_then(|()| open()).map_err(TryLockError::Error)?;
    match file.try_lock() {
        // Some network file systems have no locks; there, nothing but the operator keeps two attempts apart.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            warn!("{dir:?} cannot be locked against other processes: {error}");
            Ok(file)
        }
        done => done.map(|()| file),
    }
}

/// Replaces a file's content: a temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// When the file system refuses; the file is then as it was.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(content))
}

/// Copies a file onto another one in the same way.
///
/// # Errors
/// When the file system refuses; the target is then as it was.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    replace(to, |file| io::copy(&mut source, file).map(drop))
}

fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = beside(path);
    let done = File::create(&temporary)
        .and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_parent(path));
    if done.is_err() {
        // A full volume needs its space back; that the rest is gone already is no further error.
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Makes a rename in the file's directory survive a crash.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// The name of a file that is to take another one's place: hidden, so that it is no photo.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_else_is_left_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.json");
        write(&path, b"1").expect("a file");
        write(&path, b"2").expect("a file");
        copy(&path, &dir.path().join("b.json")).expect("a copy");
        assert_eq!(fs::read(dir.path().join("b.json")).expect("a file"), b"2");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2);
    }
}
