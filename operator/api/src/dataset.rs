//! Where a dataset lies: on a claim, in the file system, at a server, behind a `.dvc` file, or nowhere.

use std::{fmt, path::Path, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The dataset that a run trains on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// `pvc://CLAIM/PATH` (a folder or tar on a claim), `https://HOST/SET.tar`, `s3://BUCKET/PREFIX` or
    /// `gs://BUCKET/PREFIX` (a tar, or a folder), `dvc+https://HOST/SET.dvc` (what a `.dvc` file names, from its remote;
    /// also `dvc+s3://`, `dvc+gs://` and `dvc+file://`), `file:///PATH` (inside the image) or
    /// `synthetic://?images=600&size=64` (made by the trainer). `http://` and `dvc+http://` are for servers inside the
    /// cluster: nothing is encrypted.
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// What the dataset must be, so that a run never trains on something else: `sha256:` and the digest that
    /// `status.result.dataset.digest` of a run shows, or `md5:` and what the `.dvc` file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80), regex(pattern = "^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}([.]dir)?)$"))]
    pub digest: Option<String>,
    /// A Secret in the run's namespace. Each of its keys becomes an environment variable of the trainer:
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL` for `s3://`, `GOOGLE_SERVICE_ACCOUNT_KEY` for
    /// `gs://`, `ANNEAL_HTTP_AUTHORIZATION` (the whole header's value) for `https://` and `http://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

impl Dataset {
    /// A dataset that is told by its URI alone.
    pub fn at(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), digest: None, credentials_secret_ref: None }
    }
}

/// A Secret by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// A parsed dataset URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatasetUri {
    /// A folder or tar on a `PersistentVolumeClaim`.
    Pvc {
        /// Name of the claim.
        claim: String,
        /// Path below the claim's root, without a leading slash.
        path: String,
    },
    /// A folder or tar in the file system.
    File {
        /// Absolute path.
        path: String,
    },
    /// A tar or a folder at a server.
    Remote {
        /// `https://HOST/SET.tar` or `http://…`, or `s3://BUCKET/KEY` or `gs://BUCKET/KEY`.
        url: String,
    },
    /// What a `.dvc` file names, or each of the `.dvc` files of the splits in a folder.
    Dvc {
        /// Where the file or the folder is: `https://`, `http://`, `s3://`, `gs://` or `file:///`.
        url: String,
    },
    /// Images that the trainer draws by itself.
    Synthetic(Synthetic),
}

/// Schemes of servers.
const SERVERS: [&str; 4] = ["https", "http", "s3", "gs"];

/// A dataset that the trainer draws: one simple figure a class, with noise. It downloads nothing and needs no licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// Images of all splits and classes together.
    pub images: u32,
    /// Side of the square images in pixels.
    pub size: u32,
    /// Seed of the drawing.
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { images: 600, size: 64, seed: 0 }
    }
}

/// A dataset URI cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DatasetUriError {
    /// The scheme is missing or unknown.
    #[error(
        "dataset.uri {0:?} has no known scheme; write pvc://CLAIM/PATH, http(s)://HOST/SET.tar, s3://BUCKET/PREFIX, \
         gs://BUCKET/PREFIX, dvc+http(s)://HOST/SET.dvc, file:///PATH or synthetic://"
    )]
    Scheme(String),
    /// A server or bucket is missing, or the URL has what no URL may have.
    #[error("dataset.uri {0:?}: {1}")]
    Server(String, &'static str),
    /// The claim's name is missing.
    #[error("dataset.uri {0:?} names no claim; write pvc://CLAIM/PATH")]
    Claim(String),
    /// The path leaves its root or is not absolute.
    #[error(
        "dataset.uri {0:?}: the path must be absolute and without `..` parts; write file:///PATH or pvc://CLAIM/PATH"
    )]
    Path(String),
    /// A parameter of `synthetic://` is unknown or out of range.
    #[error(
        "dataset.uri {uri:?}: {problem}; write synthetic://?images=600&size=64&seed=0 (images 20 to 1000000, size 16 to 1024)"
    )]
    Synthetic {
        /// The whole URI.
        uri: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl FromStr for DatasetUri {
    type Err = DatasetUriError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = uri.strip_prefix("pvc://") {
            let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
            if claim.is_empty() {
                return Err(DatasetUriError::Claim(uri.to_owned()));
            }
            let path = path.trim_matches('/');
            no_parent(uri, path)?;
            return Ok(Self::Pvc { claim: claim.to_owned(), path: path.to_owned() });
        }
        if let Some(path) = uri.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(DatasetUriError::Path(uri.to_owned()));
            }
            no_parent(uri, path)?;
            return Ok(Self::File { path: path.to_owned() });
        }
        if let Some(rest) = uri.strip_prefix("synthetic://") {
            return synthetic(uri, rest).map(Self::Synthetic);
        }
        let (url, dvc) = uri.strip_prefix("dvc+").map_or((uri, false), |url| (url, true));
        if dvc && let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(DatasetUriError::Path(uri.to_owned()));
            }
            no_parent(uri, path)?;
            return Ok(Self::Dvc { url: url.to_owned() });
        }
        server(uri, url, dvc)?;
        let url = url.to_owned();
        Ok(if dvc { Self::Dvc { url } } else { Self::Remote { url } })
    }
}

/// Checks the URL of a server.
fn server(uri: &str, url: &str, dvc: bool) -> Result<(), DatasetUriError> {
    let wrong = |problem| Err(DatasetUriError::Server(uri.to_owned(), problem));
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| SERVERS.contains(scheme)) else {
        return Err(DatasetUriError::Scheme(uri.to_owned()));
    };
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("a URL has no spaces; write %20 for each");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return wrong("it names no host or bucket; write http(s)://HOST/SET.tar or s3://BUCKET/PREFIX");
    }
    if host.contains('@') {
        return wrong("a URL with a password would be readable in the resource; use credentialsSecretRef");
    }
    no_parent(uri, path)?;
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let is_tar = Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar"));
    if !dvc && scheme.starts_with("http") && !is_tar {
        return wrong(
            "over HTTP a folder cannot be listed; name a file that ends in .tar, or use s3://, gs:// or dvc+http(s)://",
        );
    }
    Ok(())
}

fn no_parent(uri: &str, path: &str) -> Result<(), DatasetUriError> {
    if path.split('/').any(|part| part == "..") { Err(DatasetUriError::Path(uri.to_owned())) } else { Ok(()) }
}

fn synthetic(uri: &str, query: &str) -> Result<Synthetic, DatasetUriError> {
    let problem = |problem: String| DatasetUriError::Synthetic { uri: uri.to_owned(), problem };
    let mut set = Synthetic::default();
    let query = query.trim_start_matches('?');
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| problem(format!("{pair:?} has no value")))?;
        let number: u64 = value.parse().map_err(|_| problem(format!("{key}={value:?} is not a whole number")))?;
        let bounded = |min: u32, max: u32| {
            u32::try_from(number)
                .ok()
                .filter(|n| (min..=max).contains(n))
                .ok_or_else(|| problem(format!("{key}={number} is not between {min} and {max}")))
        };
        match key {
            "images" => set.images = bounded(20, 1_000_000)?,
            "size" => set.size = bounded(16, 1024)?,
            "seed" => set.seed = number,
            _ => return Err(problem(format!("there is no parameter {key:?}"))),
        }
    }
    Ok(set)
}

impl DatasetUri {
    /// The URI as logs, reports and records may show it: without the query of a server's URL, which may be a signature.
    pub fn shown(&self) -> String {
        let text = self.to_string();
        match self {
            Self::Remote { .. } | Self::Dvc { .. } => text.split(['?', '#']).next().unwrap_or_default().to_owned(),
            _ => text,
        }
    }
}

impl fmt::Display for DatasetUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pvc { claim, path } => write!(f, "pvc://{claim}/{path}"),
            Self::File { path } => write!(f, "file://{path}"),
            Self::Remote { url } => f.write_str(url),
            Self::Dvc { url } => write!(f, "dvc+{url}"),
            Self::Synthetic(Synthetic { images, size, seed }) => {
                write!(f, "synthetic://?images={images}&size={size}&seed={seed}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(uri: &str) -> Result<DatasetUri, DatasetUriError> {
        uri.parse()
    }

    #[test]
    fn each_scheme_is_understood() {
        assert_eq!(
            parse("pvc://photos/cats-vs-dogs/"),
            Ok(DatasetUri::Pvc { claim: "photos".into(), path: "cats-vs-dogs".into() })
        );
        assert_eq!(parse("pvc://photos"), Ok(DatasetUri::Pvc { claim: "photos".into(), path: String::new() }));
        assert_eq!(parse("file:///data/set.tar"), Ok(DatasetUri::File { path: "/data/set.tar".into() }));
        for url in ["https://host/set.tar", "http://host:9000/a/set.tar?signature=x", "s3://bucket/set", "gs://bucket"]
        {
            assert_eq!(parse(url), Ok(DatasetUri::Remote { url: url.into() }));
        }
        for url in ["https://host/repo/data/", "s3://bucket/train.dvc", "file:///repo/train.dvc"] {
            assert_eq!(parse(&format!("dvc+{url}")), Ok(DatasetUri::Dvc { url: url.into() }));
        }
        assert_eq!(parse("synthetic://"), Ok(DatasetUri::Synthetic(Synthetic::default())));
        assert_eq!(
            parse("synthetic://?images=100&size=32&seed=7"),
            Ok(DatasetUri::Synthetic(Synthetic { images: 100, size: 32, seed: 7 }))
        );
    }

    #[test]
    fn a_signature_is_not_shown() {
        let shown = |uri| parse(uri).expect("a URI").shown();
        assert_eq!(shown("https://host/set.tar?X-Amz-Signature=abc"), "https://host/set.tar");
        assert_eq!(shown("dvc+https://host/set.dvc?token=abc"), "dvc+https://host/set.dvc");
        assert_eq!(shown("synthetic://?images=100&size=32&seed=7"), "synthetic://?images=100&size=32&seed=7");
    }

    #[test]
    fn a_wrong_uri_says_what_to_write_instead() {
        for (uri, hint) in [
            ("photos/cats", "write pvc://CLAIM/PATH"),
            ("pvc:///cats", "names no claim"),
            ("pvc://photos/../secret", "`..`"),
            ("file://data", "absolute"),
            ("https://host/photos/", "ends in .tar"),
            ("https:///set.tar", "no host"),
            ("https://me:secret@host/set.tar", "credentialsSecretRef"),
            ("s3://bucket/../other", "`..`"),
            ("dvc+file://repo/train.dvc", "absolute"),
            ("dvc+ftp://host/train.dvc", "no known scheme"),
            ("https://host/my set.tar", "%20"),
            ("synthetic://?images=3", "between 20 and 1000000"),
            ("synthetic://?pictures=30", "no parameter"),
            ("synthetic://?images=many", "not a whole number"),
        ] {
            let message = parse(uri).expect_err(uri).to_string();
            assert!(message.contains(hint), "{message}");
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_to_the_same(uri in "(dvc[+])?(pvc|file|synthetic|https|s3)://[a-z/?=&0-9.]{0,40}") {
            if let Ok(parsed) = parse(&uri) {
                prop_assert_eq!(parse(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
