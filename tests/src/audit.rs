//! The API server's audit log: who asked for what.

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

/// A request that was answered. The log of the tests' cluster has only writes.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asked.
    pub user: String,
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
    /// When it was answered.
    pub answered: Timestamp,
    /// Status of the answer.
    pub code: u16,
}

impl fmt::Display for Request {
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
    #[serde(default)]
    response_status: Answer,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    code: u16,
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
    pub fn writes(&self, user: &str, since: Timestamp) -> Result<Vec<Request>> {
        let mut writes = Vec::new();
        self.each(Some(user), since, |request| writes.push(request))?;
        Ok(writes)
    }

    /// Gives every request since a point in time to `take`, those of one user or of all. A log of a million lines is more
    /// than one wants in memory.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn each(&self, user: Option<&str>, since: Timestamp, mut take: impl FnMut(Request)) -> Result<()> {
        for path in self.files(since)? {
            read(&path, user, since, &mut take).with_context(|| format!("{} cannot be read", path.display()))?;
        }
        Ok(())
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

fn read(path: &Path, user: Option<&str>, since: Timestamp, take: &mut impl FnMut(Request)) -> Result<()> {
    let quoted = user.map(|user| format!("\"username\":\"{user}\""));
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        if quoted.as_ref().is_some_and(|quoted| !line.contains(quoted)) {
            continue;
        }
        // The last line may be half written; it is read again next time.
        let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
        let is_new = line.request_received_timestamp >= since && line.stage == "ResponseComplete";
        if !is_new || user.is_some_and(|user| line.user.username != user) {
            continue;
        }
        let object = line.object_ref.unwrap_or_default();
        let subresource =
            if object.subresource.is_empty() { String::new() } else { format!("/{}", object.subresource) };
        take(Request {
            user: line.user.username,
            verb: line.verb,
            resource: format!("{}{subresource}", object.resource),
            namespace: object.namespace,
            name: object.name,
            at: line.request_received_timestamp,
            answered: line.stage_timestamp,
            code: line.response_status.code,
        });
    }
    Ok(())
}
