//! Where a dataset lies: `pvc://CLAIM/PATH`, `file:///PATH` or `synthetic://?…`.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The dataset that a run trains on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// `pvc://CLAIM/PATH` (a folder or tar on a claim), `file:///PATH` (inside the image) or
    /// `synthetic://?images=600&size=64` (made by the trainer).
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
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
    /// Images that the trainer draws by itself.
    Synthetic(Synthetic),
}

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
    #[error("dataset.uri {0:?} has no known scheme; write pvc://CLAIM/PATH, file:///PATH or synthetic://")]
    Scheme(String),
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
        Err(DatasetUriError::Scheme(uri.to_owned()))
    }
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

impl fmt::Display for DatasetUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pvc { claim, path } => write!(f, "pvc://{claim}/{path}"),
            Self::File { path } => write!(f, "file://{path}"),
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
        assert_eq!(parse("synthetic://"), Ok(DatasetUri::Synthetic(Synthetic::default())));
        assert_eq!(
            parse("synthetic://?images=100&size=32&seed=7"),
            Ok(DatasetUri::Synthetic(Synthetic { images: 100, size: 32, seed: 7 }))
        );
    }

    #[test]
    fn a_wrong_uri_says_what_to_write_instead() {
        for (uri, hint) in [
            ("photos/cats", "write pvc://CLAIM/PATH"),
            ("pvc:///cats", "names no claim"),
            ("pvc://photos/../secret", "`..`"),
            ("file://data", "absolute"),
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
        fn what_is_displayed_parses_to_the_same(uri in "(pvc|file|synthetic)://[a-z/?=&0-9.]{0,40}") {
            if let Ok(parsed) = parse(&uri) {
                prop_assert_eq!(parse(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
