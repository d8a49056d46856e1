//! What is made from files that others replace while the server runs, as Kubernetes does with a mounted Secret.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

/// How often the files are looked at. The kubelet itself takes up to a minute to bring a new Secret.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum WatchedError {
    /// A file cannot be read.
    #[error("{} cannot be read: {error}; check that its Secret is mounted and readable for the server's user", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The files are not what they should be.
    #[error("{0}")]
    Unfit(String),
}

/// Makes the value of the files' contents, or says in a sentence that names the file why it cannot.
pub type Parse<T> = fn(&[(&Path, Vec<u8>)]) -> Result<T, String>;

/// A value made of files, and made again when they change.
#[derive(Debug)]
pub struct Watched<T> {
    files: Vec<PathBuf>,
    parse: Parse<T>,
    current: RwLock<(Vec<Vec<u8>>, Arc<T>)>,
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`WatchedError`] when a file is missing or unfit.
    pub fn read(files: Vec<PathBuf>, parse: Parse<T>) -> Result<Self, WatchedError> {
        let contents = contents(&files)?;
        let value = make(&files, &contents, parse)?;
        Ok(Self { files, parse, current: RwLock::new((contents, Arc::new(value))) })
    }

    /// The newest value.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Reads the files again and tells whether the value is a new one. Where they are unfit, the old value stays: half of
    /// a pair may have been written.
    ///
    /// # Errors
    /// [`WatchedError`] when a file is missing or unfit.
    pub fn refresh(&self) -> Result<bool, WatchedError> {
        let contents = contents(&self.files)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == contents {
            return Ok(false);
        }
        let value = Arc::new(make(&self.files, &contents, self.parse)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (contents, value);
        Ok(true)
    }

    /// Refreshes the value for ever.
    pub async fn keep_fresh(&self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            match self.refresh() {
                Ok(true) => tracing::info!(files = ?self.files, "read again, since they changed"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "what was read before stays in use"),
            }
        }
    }
}

fn contents(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, WatchedError> {
    let read =
        |file: &PathBuf| std::fs::read(file).map_err(|error| WatchedError::Unreadable { file: file.clone(), error });
    files.iter().map(read).collect()
}

fn make<T>(files: &[PathBuf], contents: &[Vec<u8>], parse: Parse<T>) -> Result<T, WatchedError> {
    let named: Vec<_> = files.iter().map(PathBuf::as_path).zip(contents.iter().cloned()).collect();
    parse(&named).map_err(WatchedError::Unfit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(files: &[(&Path, Vec<u8>)]) -> Result<u32, String> {
        let [(_, content)] = files else { return Err("one file".to_owned()) };
        String::from_utf8_lossy(content).parse().map_err(|_| "not a number".to_owned())
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unfit_one_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("number");
        assert!(matches!(Watched::read(vec![file.clone()], number), Err(WatchedError::Unreadable { .. })));
        std::fs::write(&file, "1").expect("written");
        let watched = Watched::read(vec![file.clone()], number).expect("a number");
        assert!(!watched.refresh().expect("a number"), "nothing changed");
        std::fs::write(&file, "2").expect("written");
        assert!(watched.refresh().expect("a number"));
        std::fs::write(&file, "two").expect("written");
        assert!(matches!(watched.refresh(), Err(WatchedError::Unfit(_))));
        std::fs::remove_file(&file).expect("removed");
        assert!(watched.refresh().is_err());
        assert_eq!(*watched.current(), 2);
    }
}
