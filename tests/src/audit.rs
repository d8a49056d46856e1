//! The API server's audit log: who wrote what.

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Deserialize;

/// The audit log of the cluster under test.
pub struct Audit(PathBuf);

/// A write request.
#[derive(Clone, Debug)]
pub struct Write {
    /// Verb of the request.
    pub verb: String,
    /// Plural name of the resource, with its subresource.
    pub resource: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// When it came.
    pub at: Timestamp,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}/{}", self.at, self.verb, self.resource, self.namespace, self.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<Reference>,
    request_received_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Reference {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

impl Audit {
    /// The log that `ANNEAL_AUDIT_LOG` names; a cluster that is not ours has none that can be read.
    pub fn of_cluster() -> Option<Self> {
        std::env::var_os("ANNEAL_AUDIT_LOG").filter(|path| !path.is_empty()).map(|path| Self(path.into()))
    }

    /// The write requests of a user since a point in time.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes(&self, user: &str, since: Timestamp) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for path in self.files(since)? {
            read(&path, user, since, &mut writes).with_context(|| format!("{} cannot be read", path.display()))?;
        }
        Ok(writes)
    }

    /// The log, and what was rotated away since then: `audit-2026-01-31T12-00-00.000.log` beside `audit.log`.
    fn files(&self, since: Timestamp) -> Result<Vec<PathBuf>> {
        let folder = self.0.parent().context("ANNEAL_AUDIT_LOG names no file")?;
        let stem = self.0.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
            let entry = entry?;
            let is_log = entry.file_name().to_string_lossy().starts_with(&stem);
            let changed = Timestamp::try_from(entry.metadata()?.modified()?)?;
            if is_log && changed >= since {
                files.push(entry.path());
            }
        }
        Ok(files)
    }
}

fn read(path: &Path, user: &str, since: Timestamp, writes: &mut Vec<Write>) -> Result<()> {
    let quoted = format!("\"username\":\"{user}\"");
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        if !line.contains(&quoted) {
            continue;
        }
        // The last line may be half written; it is read again next time.
        let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
        let is_new = line.request_received_timestamp >= since && line.stage == "ResponseComplete";
        if !is_new || line.user.username != user {
            continue;
        }
        let object = line.object_ref.unwrap_or_default();
        let subresource =
            if object.subresource.is_empty() { String::new() } else { format!("/{}", object.subresource) };
        writes.push(Write {
            verb: line.verb,
            resource: format!("{}{subresource}", object.resource),
            namespace: object.namespace,
            name: object.name,
            at: line.request_received_timestamp,
        });
    }
    Ok(())
}
