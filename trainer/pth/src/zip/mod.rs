//! The part of the zip format that `.pth` files use: stored entries, with zip64 where sizes need it.
//!
//! PKWARE's APPNOTE.TXT defines the format; the sections named below are its.

mod read;
mod write;

use std::io;

pub(crate) use read::Archive;
pub(crate) use write::{ALIGNMENT, ArchiveWriter};

/// Signatures: local file header (4.3.7), central directory header (4.3.12), zip64 end record (4.3.14), zip64 end
/// locator (4.3.15), end record (4.3.16).
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const END: u32 = 0x0605_4b50;

/// Lengths of these records without their variable parts.
const LOCAL_LEN: usize = 30;
const CENTRAL_LEN: usize = 46;
const END64_LEN: usize = 56;
const LOCATOR64_LEN: usize = 20;
const END_LEN: usize = 22;

/// Header ID of the extra field that holds 64-bit sizes and offsets (4.5.3).
const ZIP64_EXTRA: u16 = 0x0001;

/// The zip archive around the pickle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// Reading failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    /// The end of the file is not the end of an archive.
    #[error("the archive has no end record: the file is cut off, or more was written behind it; copy it again")]
    NoEnd,
    /// A record is not what it must be.
    #[error("the archive is damaged ({0}); copy it again")]
    Damaged(&'static str),
    /// An entry is compressed or encrypted.
    #[error(
        "entry {0:?} of the archive is compressed or encrypted, and torch.save stores entries as they are; save the model again with torch.save"
    )]
    NotStored(String),
    /// An entry's bytes are not those that were written.
    #[error("entry {0:?} of the archive does not have the checksum that was written with it; copy the file again")]
    Checksum(String),
    /// There are too many entries, or one is too large.
    #[error("the archive has more entries than the {0} that are allowed")]
    TooManyEntries(usize),
    /// An entry that must be there is not.
    #[error("the archive has no entry {0:?}; copy the file again")]
    Missing(String),
    /// An entry is larger than allowed.
    #[error("entry {name:?} of the archive has {bytes} bytes, and {max} are allowed")]
    TooLarge {
        /// The entry's name.
        name: String,
        /// Its size.
        bytes: u64,
        /// What is allowed.
        max: u64,
    },
}
