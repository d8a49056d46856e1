//! The INI files of DVC and of AWS's tools.

use std::collections::BTreeMap;

/// Sections by name, each with its keys in lower case. What stands before the first section has the name "".
pub(super) type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// Reads all that looks like INI and passes over the rest. A later value wins.
pub(super) fn parse(text: &str, into: &mut Sections) {
    let mut section = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // DVC quotes sections as a whole: ['remote "storage"'].
            name.trim().trim_matches('\'').clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once('=') {
            let keys = into.entry(section.clone()).or_default();
            keys.insert(key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dvc_configuration_and_its_local_part_are_one() {
        let mut sections = Sections::new();
        parse(
            "[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://bucket/dvc # no comment\n",
            &mut sections,
        );
        parse("# local\n['remote \"storage\"']\naccess_key_id = abc\n", &mut sections);
        assert_eq!(sections["core"]["remote"], "storage");
        let remote = &sections["remote \"storage\""];
        assert_eq!((remote["url"].as_str(), remote["access_key_id"].as_str()), ("s3://bucket/dvc # no comment", "abc"));
    }
}
