//! One object into one file: resumed where it broke off, verified, and there whole or not at all.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use md5::{Digest, Md5};
use tracing::{info, warn};

use super::{Downloads, RemoteError, store::Store};
use crate::files;

/// Attempts in a row that bring no byte before the download is given up.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What to download.
pub(super) struct Wanted<'a> {
    pub(super) key: &'a str,
    pub(super) file: &'a Path,
    /// What its MD5 must be.
    pub(super) md5: Option<&'a str>,
    /// Whether the next attempt is to ask the server if this is still what it has.
    pub(super) revalidated: bool,
}

/// Downloads an object. What an earlier call left of it is kept, if it is still the same object.
pub(super) async fn download(store: &Store, wanted: &Wanted<'_>, to: Downloads<'_>) -> Result<(), RemoteError> {
    if let Some(parent) = wanted.file.parent() {
        fs::create_dir_all(parent).map_err(RemoteError::writing(parent))?;
    }
    let part = Part::of(wanted.file);
    if wanted.file.exists() {
        if wanted.md5.is_some() {
            return Ok(());
        }
        // Whole, from an earlier attempt: its tag tells whether it is still what the server has. A signature may have run out.
        if let Some(tag) = part.tag().filter(|_| part.len() == 0) {
            match store.is_still(wanted.key, &tag).await {
                Ok(true) => {
                    info!(file = ?wanted.file, "the download of an earlier attempt is still what the server has");
                    return Ok(());
                }
                Err(error @ (RemoteError::Unreachable(..) | RemoteError::Refused(..))) => {
                    warn!("{error}; the download of an earlier attempt is used");
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        // There need not be room for both.
        fs::remove_file(wanted.file).map_err(RemoteError::writing(wanted.file))?;
    }
    let mut failures = 0;
    loop {
        to.moved()?;
        let before = part.len();
        let error = match attempt(store, wanted, &part, to).await {
            Ok(()) => return part.keep(wanted),
            // Parts of two objects, or a broken transfer, once; twice, the server has the wrong bytes.
            Err(RemoteError::Md5 { .. }) if before > 0 => {
                part.discard();
                continue;
            }
            Err(RemoteError::Unreachable(url, problem)) => RemoteError::Unreachable(url, problem),
            Err(error) => return Err(error),
        };
        failures = if part.len() > before { 1 } else { failures + 1 };
        if failures >= ATTEMPTS {
            return Err(error);
        }
        warn!("{error}");
        tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(failures - 1)).await;
    }
}

async fn attempt(store: &Store, wanted: &Wanted<'_>, part: &Part, to: Downloads<'_>) -> Result<(), RemoteError> {
    let known = part.tag();
    // Without a tag nobody can tell whether the rest is of the same object, unless the MD5 will.
    let from = if known.is_some() || wanted.md5.is_some() { part.len() } else { 0 };
    let body = match store.get(wanted.key, from, known.as_deref()).await {
        // Whole already, or changed at the server: a new start tells.
        Err(RemoteError::Unreachable(..)) if from > 0 => store.get(wanted.key, 0, None).await,
        body => body,
    };
    let mut body = body?;
    let from = if known == body.tag || wanted.md5.is_some() { body.from } else { 0 };
    if from != body.from {
        body = store.get(wanted.key, 0, None).await?;
    }
    let mut file = part.open(from, body.tag.as_deref())?;
    while let Some(bytes) = body.content.next().await {
        to.moved()?;
        let bytes = bytes.map_err(|problem| RemoteError::Unreachable(store.shown(wanted.key), problem))?;
        file.write_all(&bytes).map_err(RemoteError::writing(&part.file))?;
    }
    file.sync_all().map_err(RemoteError::writing(&part.file))?;
    let Some(expected) = wanted.md5 else { return Ok(()) };
    let found = md5_file(&part.file).map_err(RemoteError::writing(&part.file))?;
    if found == expected {
        Ok(())
    } else {
        part.discard();
        Err(RemoteError::Md5 { url: store.shown(wanted.key), found, expected: expected.to_owned() })
    }
}

/// What is there of a file, and of which object it is.
struct Part {
    file: PathBuf,
    tag: PathBuf,
}

impl Part {
    fn of(file: &Path) -> Self {
        let with = |ending: &str| {
            let mut name = file.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        Self { file: with(".part"), tag: with(".tag") }
    }

    fn len(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |about| about.len())
    }

    fn tag(&self) -> Option<String> {
        fs::read_to_string(&self.tag).ok()
    }

    /// The file, cut to `from` bytes and open for the next ones.
    fn open(&self, from: u64, tag: Option<&str>) -> Result<File, RemoteError> {
        if from == 0 {
            self.discard();
            if let Some(tag) = tag {
                fs::write(&self.tag, tag).map_err(RemoteError::writing(&self.tag))?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.file);
        let file = file.map_err(RemoteError::writing(&self.file))?;
        file.set_len(from).map_err(RemoteError::writing(&self.file))?;
        Ok(file)
    }

    fn keep(&self, wanted: &Wanted<'_>) -> Result<(), RemoteError> {
        let file = wanted.file;
        if !wanted.revalidated {
            // That it is gone already is no error.
            let _ = fs::remove_file(&self.tag);
        }
        fs::rename(&self.file, file).and_then(|()| files::sync_parent(file)).map_err(RemoteError::writing(file))
    }

    fn discard(&self) {
        // What is not there need not go.
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.tag);
    }
}

/// The MD5 of a file in hexadecimal, read in pieces.
pub(super) fn md5_file(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Md5::new(), vec![0; 1 << 16]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// The MD5 of bytes in hexadecimal.
pub(super) fn md5(content: &[u8]) -> String {
    hex(&Md5::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
