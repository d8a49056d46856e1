//! What a fuzzer needs to get behind the checksums; only there when it is compiled for one.

use std::io;

use crate::zip::ArchiveWriter;

/// A file with this pickle and two storages of 64 bytes, its checksums right.
///
/// # Errors
/// When the pickle is too long for an archive.
pub fn file_of(pickle: &[u8]) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut archive = ArchiveWriter::new(&mut file);
    archive.add("x/data.pkl".to_owned(), pickle)?;
    for storage in ["x/data/0", "x/data/1"] {
        archive.add(storage.to_owned(), &[7; 64])?;
    }
    archive.finish()?;
    Ok(file)
}
