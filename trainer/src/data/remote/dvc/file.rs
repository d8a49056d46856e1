//! What a `.dvc` file names, and the list of files of a folder, from their bytes.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct DvcFile {
    #[serde(default)]
    outs: Vec<Out>,
}

/// One output of a `.dvc` file.
#[derive(Debug, Deserialize)]
struct Out {
    md5: Option<String>,
    /// Written since DVC 3, whose remotes have another layout.
    hash: Option<String>,
    path: String,
    remote: Option<String>,
}

/// A file of a folder.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) md5: String,
    pub(super) relpath: String,
}

/// What one `.dvc` file names.
#[derive(Debug)]
pub(super) struct Named {
    /// With `.dir` at its end where it is a folder.
    pub(super) md5: String,
    pub(super) path: String,
    /// Whether the remote has the layout of DVC 3.
    pub(super) newer: bool,
    pub(super) remote: Option<String>,
}

impl Named {
    /// Whether it is a folder.
    pub(super) fn is_folder(&self) -> bool {
        self.md5.strip_suffix(".dir").is_some()
    }
}

/// Reads a `.dvc` file.
///
/// # Errors
/// A sentence about what is wrong with it.
pub(super) fn parse(content: &[u8]) -> Result<Named, String> {
    let file: DvcFile = serde_yaml::from_slice(content)
        .map_err(|error| format!("this is no .dvc file ({error}); name one that `dvc add` wrote"))?;
    let Ok([out]) = <[Out; 1]>::try_from(file.outs) else {
        return Err("it must name exactly one file or folder under `outs`".to_owned());
    };
    let md5 = out.md5.ok_or("it names no md5, as with a remote that is version_aware; use a remote without that")?;
    if !is_md5(md5.strip_suffix(".dir").unwrap_or(&md5)) {
        return Err(format!("{md5:?} is no MD5"));
    }
    Ok(Named { md5, path: out.path, newer: out.hash.is_some(), remote: out.remote })
}

/// Reads the list of a folder's files.
///
/// # Errors
/// A sentence about what is wrong with it.
pub(super) fn entries(content: &[u8]) -> Result<Vec<Entry>, String> {
    let entries: Vec<Entry> =
        serde_json::from_slice(content).map_err(|error| format!("it is no list of files: {error}"))?;
    match entries.iter().find(|entry| !is_md5(&entry.md5)) {
        Some(entry) => Err(format!("{:?} is no MD5", entry.md5)),
        None => Ok(entries),
    }
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_hexadecimal_is_an_md5() {
        assert!(is_md5("d41d8cd98f00b204e9800998ecf8427e"));
        for text in [
            "",
            "d41d8cd98f00b204e9800998ecf8427",
            "../../../../../../../../etc/passwdx",
            "D41D8CD98F00B204E9800998ECF8427E",
        ] {
            assert!(!is_md5(text), "{text} was taken");
        }
    }
}
