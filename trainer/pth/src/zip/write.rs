//! Writes an archive of stored entries front to back, without seeking.

use std::io::{self, Write};

use super::{CENTRAL, END, END64, END64_LEN, LOCAL, LOCAL_LEN, LOCATOR64, ZIP64_EXTRA};

/// Where payloads begin: PyTorch aligns to this, so that a mapped file's tensors are aligned in memory.
pub(crate) const ALIGNMENT: u64 = 64;

/// Header ID of PyTorch's padding.
const PADDING_EXTRA: u16 = u16::from_le_bytes(*b"FB");

/// Version that a reader needs: 2.0 for plain entries, 4.5 for zip64 (4.4.3.2).
const PLAIN_VERSION: u16 = 20;
const ZIP64_VERSION: u16 = 45;

/// Names are UTF-8 (4.4.4, bit 11).
const FLAGS: u16 = 1 << 11;

/// 1 January 1980, the earliest date there is: equal values give equal files.
const DATE: u16 = 1 << 5 | 1;

pub(crate) struct ArchiveWriter<W> {
    out: W,
    offset: u64,
    entries: Vec<Written>,
}

struct Written {
    name: String,
    header: u64,
    size: u64,
    crc: u32,
}

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, offset: 0, entries: Vec::new() }
    }

    /// Adds an entry; returns its checksum. Names are our own: short and not repeated.
    pub(crate) fn add(&mut self, name: String, data: &[u8]) -> io::Result<u32> {
        let (crc, size) = (crc32fast::hash(data), data.len() as u64);
        let mut extra = Vec::new();
        if size >= u64::from(u32::MAX) {
            extra.put16(ZIP64_EXTRA).put16(16).put64(size).put64(size);
        }
        let unpadded = self.offset + (LOCAL_LEN + name.len() + extra.len() + 4) as u64;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        extra.put16(PADDING_EXTRA).put16(low16(padding)).extend((0..padding).map(|_| b'Z'));

        let mut header = Vec::with_capacity(LOCAL_LEN + name.len() + extra.len());
        header.put32(LOCAL).put16(version(size)).put16(FLAGS).put16(0).put16(0).put16(DATE);
        header
            .put32(crc)
            .put32(low32(size))
            .put32(low32(size))
            .put16(low16(name.len() as u64))
            .put16(low16(extra.len() as u64));
        header.extend(name.as_bytes());
        header.extend(extra);
        self.out.write_all(&header)?;
        self.out.write_all(data)?;
        self.entries.push(Written { name, header: self.offset, size, crc });
        self.offset += header.len() as u64 + size;
        Ok(crc)
    }

    /// Writes the directory.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let mut directory = Vec::new();
        for entry in &self.entries {
            let mut extra = Vec::new();
            let wide: Vec<u64> =
                [entry.size, entry.size, entry.header].into_iter().filter(|&v| v >= u64::from(u32::MAX)).collect();
            if !wide.is_empty() {
                extra.put16(ZIP64_EXTRA).put16(low16(wide.len() as u64 * 8));
                for value in wide {
                    extra.put64(value);
                }
            }
            let version = version(entry.size.max(entry.header));
            directory.put32(CENTRAL).put16(version).put16(version).put16(FLAGS).put16(0).put16(0).put16(DATE);
            directory.put32(entry.crc).put32(low32(entry.size)).put32(low32(entry.size));
            directory
                .put16(low16(entry.name.len() as u64))
                .put16(low16(extra.len() as u64))
                .put16(0)
                .put16(0)
                .put16(0)
                .put32(0);
            directory.put32(low32(entry.header));
            directory.extend(entry.name.as_bytes());
            directory.extend(extra);
        }
        let (count, len, at) = (self.entries.len() as u64, directory.len() as u64, self.offset);
        if count >= u64::from(u16::MAX) || len >= u64::from(u32::MAX) || at >= u64::from(u32::MAX) {
            directory
                .put32(END64)
                .put64(END64_LEN as u64 - 12)
                .put16(ZIP64_VERSION)
                .put16(ZIP64_VERSION)
                .put32(0)
                .put32(0);
            directory.put64(count).put64(count).put64(len).put64(at);
            directory.put32(LOCATOR64).put32(0).put64(at + len).put32(1);
        }
        directory
            .put32(END)
            .put16(0)
            .put16(0)
            .put16(low16(count))
            .put16(low16(count))
            .put32(low32(len))
            .put32(low32(at))
            .put16(0);
        self.out.write_all(&directory)
    }
}

fn version(largest: u64) -> u16 {
    if largest >= u64::from(u32::MAX) { ZIP64_VERSION } else { PLAIN_VERSION }
}

/// The value, or the number that stands for "see the zip64 record".
fn low16(value: u64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// The value, or the number that stands for "see the zip64 record".
fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Little-endian fields, one after another.
trait Put {
    fn put16(&mut self, value: u16) -> &mut Self;
    fn put32(&mut self, value: u32) -> &mut Self;
    fn put64(&mut self, value: u64) -> &mut Self;
}

impl Put for Vec<u8> {
    fn put16(&mut self, value: u16) -> &mut Self {
        self.extend(value.to_le_bytes());
        self
    }

    fn put32(&mut self, value: u32) -> &mut Self {
        self.extend(value.to_le_bytes());
        self
    }

    fn put64(&mut self, value: u64) -> &mut Self {
        self.extend(value.to_le_bytes());
        self
    }
}
