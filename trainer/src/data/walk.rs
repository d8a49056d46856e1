//! The files and folders below a folder. Links are followed, but never in circles.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{DataError, listing::is_hidden};

/// What lies below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A folder; what it holds was told before.
    Folder,
    /// A file.
    File,
    /// A link that leads to nothing.
    Dangling,
}

/// Tells `take` of everything below a folder: its path from there with `/`, where it lies, and what it is.
///
/// # Errors
/// When something cannot be read, and whatever `take` fails with.
pub fn walk(
    folder: &Path,
    mut take: impl FnMut(&str, PathBuf, Found) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let about = fs::metadata(folder).map_err(DataError::reading(folder))?;
    below(folder, "", &mut vec![identity(&about)], &mut take)
}

/// What tells a folder from all others, whichever path leads there.
fn identity(about: &fs::Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

fn below(
    folder: &Path,
    within: &str,
    above: &mut Vec<(u64, u64)>,
    take: &mut impl FnMut(&str, PathBuf, Found) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(DataError::reading(folder))? {
        let entry = entry.map_err(DataError::reading(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_hidden(&name) {
            continue;
        }
        let path = entry.path();
        let within = if within.is_empty() { name } else { format!("{within}/{name}") };
        // Follows links: Kubernetes mounts files through them.
        match fs::metadata(&path) {
            // A folder may be named by several links; only below itself it would have no end.
            Ok(about) if about.is_dir() && above.contains(&identity(&about)) => {
                warn!("{path:?} leads back to a folder above it, so it is not followed");
            }
            Ok(about) if about.is_dir() => {
                above.push(identity(&about));
                below(&path, &within, above, take)?;
                above.pop();
                take(&within, path, Found::Folder)?;
            }
            Ok(_) => take(&within, path, Found::File)?,
            Err(error) if path.is_symlink() && leads_to_nothing(&error) => take(&within, path, Found::Dangling)?,
            Err(error) => return Err(DataError::reading(path)(error)),
        }
    }
    Ok(())
}

fn leads_to_nothing(error: &io::Error) -> bool {
    // Linux's number of a link that leads to itself, which has no stable name yet.
    const ELOOP: i32 = 40;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ELOOP)
}
