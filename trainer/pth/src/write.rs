//! Writes a value as a `.pth` file.

use std::io::{self, Write};

use crate::{
    pickle::pickle,
    value::Value,
    zip::{ALIGNMENT, ArchiveWriter},
};

/// The folder in the archive. `torch.save` takes the file's name; no reader looks at it.
const TOP: &str = "archive";

/// Writes a value as a `.pth` file. Equal values give equal files. Front to back, so that any writer will do; give a
/// buffered one.
///
/// # Errors
/// When writing fails.
pub fn write(out: &mut (impl Write + ?Sized), value: &Value) -> io::Result<()> {
    let (pickle, tensors) = pickle(value);
    let mut archive = ArchiveWriter::new(out);
    let mut checksums = crc32fast::Hasher::new();
    let mut add = |name: &str, data: &[u8]| -> io::Result<()> {
        let crc = archive.add(format!("{TOP}/{name}"), data)?;
        checksums.update(&crc.to_le_bytes());
        Ok(())
    };
    add("data.pkl", &pickle)?;
    add(".format_version", b"1")?;
    add(".storage_alignment", ALIGNMENT.to_string().as_bytes())?;
    add("byteorder", b"little")?;
    for (index, tensor) in tensors.iter().enumerate() {
        add(&format!("data/{index}"), tensor.data())?;
    }
    add("version", b"3\n")?;
    // PyTorch writes 40 digits that tell one content from another; readers only compare them.
    let id = format!("{:040}", checksums.finalize());
    archive.add(format!("{TOP}/.data/serialization_id"), id.as_bytes())?;
    archive.finish()
}
