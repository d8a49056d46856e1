//! Any bytes as a `.dvc` file, as the list of a folder's files, and as DVC's configuration.
#![no_main]

#[allow(dead_code, reason = "the trainer uses the rest")]
#[path = "../../../trainer/src/data/remote/dvc/file.rs"]
mod file;
#[path = "../../../trainer/src/data/remote/ini.rs"]
mod ini;

use libfuzzer_sys::fuzz_target;

/// Parts of such a digest become names of files.
fn is_digest(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(named) = file::parse(bytes) {
        assert!(is_digest(named.md5.trim_end_matches(".dir")), "{:?}", named.md5);
        assert_eq!(named.is_folder(), named.md5.len() > 32);
    }
    for entry in file::entries(bytes).unwrap_or_default() {
        assert!(is_digest(&entry.md5), "{:?}", entry.md5);
    }
    let mut sections = ini::Sections::new();
    ini::parse(&String::from_utf8_lossy(bytes), &mut sections);
    // Each value comes of a line of its own.
    assert!(sections.values().map(std::collections::BTreeMap::len).sum::<usize>() <= bytes.len());
});
