//! DVC: a `.dvc` file names data by its MD5, and a remote has it, in the layout of DVC 2 or 3.

mod file;

use std::path::{Path, PathBuf};

use self::file::{Entry, Named};
use super::{
    Downloads, RemoteError,
    download::{Wanted, download, md5, md5_file},
    download_all, has_extension, ini,
    store::{Options, Store},
};
use crate::data::{
    DataError, Split, archive,
    listing::{Listing, Photo, Place, is_hidden, is_photo},
};

/// Longest `.dvc` file and configuration.
const SMALL: usize = 1 << 20;
/// Longest list of files: millions of them.
const LIST: usize = 1 << 30;
/// Folders above a `.dvc` file in which its repository's configuration is looked for.
const LEVELS: usize = 16;

/// Lists what a `.dvc` file names, or those of the splits in a folder, and the MD5s that they name.
pub(super) async fn list(url: &str, to: Downloads<'_>) -> Result<(Listing, Vec<String>), DataError> {
    let (store, key) = Store::open(url, &Options::default())?;
    if has_extension(&key, "dvc") {
        let file = read_dvc(&store, &key).await?.ok_or_else(|| RemoteError::Missing(store.shown(&key)))?;
        let repository = Repository { store: &store, key: &key };
        return Ok((repository.pull(&file, to).await?, vec![file.md5]));
    }
    let folder = key.trim_end_matches('/');
    let (mut listing, mut digests) = (Listing::default(), Vec::new());
    for split in Split::ALL {
        for name in split.names() {
            let key = if folder.is_empty() { format!("{name}.dvc") } else { format!("{folder}/{name}.dvc") };
            let Some(file) = read_dvc(&store, &key).await? else { continue };
            let mut part = Repository { store: &store, key: &key }.pull(&file, to).await?;
            part.strip_common_folder();
            listing.append_below(split.folder(), part);
            digests.push(file.md5);
            break;
        }
    }
    if digests.is_empty() {
        let problem = "there is no train.dvc; name a .dvc file, or a folder with train.dvc and val.dvc or test.dvc";
        return Err(RemoteError::Unusable(store.shown(folder), problem.to_owned()).into());
    }
    Ok((listing, digests))
}

async fn read_dvc(store: &Store, key: &str) -> Result<Option<Named>, RemoteError> {
    let Some(content) = store.read(key, SMALL).await? else { return Ok(None) };
    let named = file::parse(&content).map_err(|problem| RemoteError::Unusable(store.shown(key), problem))?;
    Ok(Some(named))
}

/// The repository that a `.dvc` file lies in.
struct Repository<'a> {
    store: &'a Store,
    key: &'a str,
}

impl Repository<'_> {
    async fn pull(&self, named: &Named, to: Downloads<'_>) -> Result<Listing, DataError> {
        let remote = self.remote(named).await?;
        if named.is_folder() {
            return remote.folder(named, to).await;
        }
        if !has_extension(&named.path, "tar") {
            let problem = format!("{:?} is neither a folder nor a tar; `dvc add` the folder of photos", named.path);
            return Err(RemoteError::Unusable(self.store.shown(self.key), problem).into());
        }
        let file = remote.fetch(&named.md5, to).await?;
        archive::list(&file, to.moved)
    }

    /// The remote that the repository's configuration names.
    async fn remote(&self, named: &Named) -> Result<Remote, RemoteError> {
        let mut dir = self.key.rsplit_once('/').map_or("", |(dir, _)| dir);
        for _ in 0..LEVELS {
            let below = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            let config = below(".dvc/config");
            if let Some(content) = self.store.read(&config, SMALL).await? {
                let mut sections = ini::Sections::new();
                ini::parse(&String::from_utf8_lossy(&content), &mut sections);
                if let Some(local) = self.store.read(&below(".dvc/config.local"), SMALL).await? {
                    ini::parse(&String::from_utf8_lossy(&local), &mut sections);
                }
                return self.open_remote(&config, &sections, &below(".dvc"), named);
            }
            if dir.is_empty() {
                break;
            }
            dir = dir.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        let problem = "no .dvc/config is in its folder or above; keep the .dvc file in its repository";
        Err(RemoteError::Unusable(self.store.shown(self.key), problem.to_owned()))
    }

    fn open_remote(
        &self,
        config: &str,
        sections: &ini::Sections,
        config_dir: &str,
        named: &Named,
    ) -> Result<Remote, RemoteError> {
        let unusable = |problem: String| RemoteError::Unusable(self.store.shown(config), problem);
        let default = || sections.get("core").and_then(|core| core.get("remote")).cloned();
        let name = named.remote.clone().or_else(default);
        let name =
            name.ok_or_else(|| unusable("it names no default remote; run `dvc remote default NAME`".to_owned()))?;
        let remote = sections.get(&format!("remote \"{name}\""));
        let remote =
            remote.ok_or_else(|| unusable(format!("it has no remote {name:?}; run `dvc remote add {name} URL`")))?;
        let url = remote.get("url").ok_or_else(|| unusable(format!("the remote {name:?} has no url")))?;
        let option = |key: &str| remote.get(key).cloned();
        let options = Options {
            endpoint: option("endpointurl"),
            region: option("region"),
            profile: option("profile"),
            access_key_id: option("access_key_id"),
            secret_access_key: option("secret_access_key"),
        };
        let (store, prefix) = if url.contains("://") {
            Store::open(url, &options)?
        } else {
            // A path is meant from the folder of the configuration, at whichever server that lies.
            let path = normal(config_dir, url)
                .ok_or_else(|| unusable(format!("the remote's path {url:?} leaves {}", self.store.shown(""))))?;
            (self.store.clone(), path)
        };
        let layout = if named.newer { "files/md5" } else { "" };
        let parts = [prefix.trim_matches('/'), layout];
        let prefix = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        Ok(Remote { store, prefix })
    }
}

/// A path from a folder, without `.` and `..`, or `None` where it would leave the root.
fn normal(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"))
}

/// Where the data lies, by MD5.
struct Remote {
    store: Store,
    prefix: String,
}

impl Remote {
    fn key(&self, md5: &str) -> String {
        let (first, rest) = md5.split_at(2);
        if self.prefix.is_empty() { format!("{first}/{rest}") } else { format!("{}/{first}/{rest}", self.prefix) }
    }

    /// Where a file lies once it was downloaded.
    fn place(&self, md5: &str, to: Downloads<'_>) -> PathBuf {
        let (first, rest) = md5.split_at(2);
        self.store.file(&self.key(md5)).unwrap_or_else(|| to.dir.join("md5").join(first).join(rest))
    }

    /// One file, verified.
    async fn fetch(&self, md5: &str, to: Downloads<'_>) -> Result<PathBuf, RemoteError> {
        let (key, file) = (self.key(md5), self.place(md5, to));
        if self.store.file(&key).is_some() {
            self.verify(&key, &file, md5)?;
        } else {
            download(&self.store, &Wanted { key: &key, file: &file, md5: Some(md5), revalidated: false }, to).await?;
        }
        Ok(file)
    }

    /// A file that need not be downloaded is read where it lies.
    fn verify(&self, key: &str, file: &Path, expected: &str) -> Result<(), RemoteError> {
        let found = md5_file(file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => RemoteError::Missing(self.store.shown(key)),
            _ => RemoteError::Unusable(self.store.shown(key), error.to_string()),
        })?;
        if found == expected {
            return Ok(());
        }
        Err(RemoteError::Md5 { url: self.store.shown(key), found, expected: expected.to_owned() })
    }

    /// The photos of a folder, verified.
    async fn folder(&self, named: &Named, to: Downloads<'_>) -> Result<Listing, DataError> {
        let entries = self.entries(&named.md5).await?;
        let mut photos = Vec::new();
        for entry in entries {
            let unusable = |problem: String| RemoteError::Unusable(self.store.shown(&self.key(&named.md5)), problem);
            let parts = archive::safe_parts(Path::new(&entry.relpath))
                .map_err(|problem| unusable(format!("it lists {:?}, which {problem}", entry.relpath)))?;
            if is_photo(&entry.relpath) && !parts.iter().any(|part| is_hidden(part)) {
                photos.push((parts.join("/"), self.key(&entry.md5), self.place(&entry.md5, to), entry.md5));
            }
        }
        if photos.is_empty() {
            return Err(DataError::Empty(PathBuf::from(&named.path)));
        }
        if self.store.file("").is_some() {
            for (_, key, file, md5) in &photos {
                to.moved()?;
                self.verify(key, file, md5)?;
            }
        } else {
            // Photos with the same bytes are one object.
            let mut wanted: Vec<_> = photos
                .iter()
                .map(|(_, key, file, md5)| Wanted { key, file, md5: Some(md5), revalidated: false })
                .collect();
            wanted.sort_by_key(|one| one.key);
            wanted.dedup_by_key(|one| one.key);
            download_all(&self.store, wanted, to).await?;
        }
        let photo = |(path, _, file, _)| Photo { path, place: Place::File(file) };
        Ok(Listing { photos: photos.into_iter().map(photo).collect(), ..Listing::default() })
    }

    /// The list of a folder's files, verified.
    async fn entries(&self, digest: &str) -> Result<Vec<Entry>, RemoteError> {
        let key = self.key(digest);
        let content = self.store.read(&key, LIST).await?;
        let content = content.ok_or_else(|| RemoteError::Missing(self.store.shown(&key)))?;
        let (found, expected) = (md5(&content), digest.trim_end_matches(".dir"));
        if found != expected {
            return Err(RemoteError::Md5 { url: self.store.shown(&key), found, expected: expected.to_owned() });
        }
        file::entries(&content).map_err(|problem| RemoteError::Unusable(self.store.shown(&key), problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remotes_path_is_meant_from_the_configuration() {
        assert_eq!(normal("home/me/repo/.dvc", "../../store").as_deref(), Some("home/me/store"));
        assert_eq!(normal("repo/.dvc", "/srv/dvc").as_deref(), Some("srv/dvc"));
        assert_eq!(normal(".dvc", "../store").as_deref(), Some("store"));
        assert_eq!(normal(".dvc", "../../store"), None);
    }
}
