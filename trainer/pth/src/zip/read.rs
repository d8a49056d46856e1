//! Reads an archive by its central directory.

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom},
};

use super::{
    CENTRAL, CENTRAL_LEN, END, END_LEN, END64, END64_LEN, LOCAL, LOCAL_LEN, LOCATOR64, LOCATOR64_LEN, ZIP64_EXTRA,
    ZipError,
};

/// An open archive. Nothing that it says about itself is believed before it was compared with the file's length.
pub(crate) struct Archive<R> {
    file: R,
    len: u64,
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Where the local header begins.
    header: u64,
    size: u64,
    crc: u32,
    stored: bool,
}

/// Where the central directory lies.
struct Directory {
    offset: u64,
    len: u64,
    entries: u64,
}

impl<R: Read + Seek> Archive<R> {
    pub(crate) fn open(mut file: R, max_entries: usize) -> Result<Self, ZipError> {
        let len = file.seek(SeekFrom::End(0))?;
        let directory = find_directory(&mut file, len)?;
        // An entry takes at least so many bytes, so a small file cannot announce many.
        let fits = directory.entries.checked_mul(CENTRAL_LEN as u64).is_some_and(|least| least <= directory.len);
        if !fits || directory.offset.checked_add(directory.len).is_none_or(|end| end > len) {
            return Err(ZipError::Damaged("the directory does not fit into the file"));
        }
        if directory.entries > max_entries as u64 || directory.len > max_entries as u64 * MAX_DIRECTORY_BYTES_PER_ENTRY
        {
            return Err(ZipError::TooManyEntries(max_entries));
        }
        let bytes = read_at(&mut file, directory.offset, directory.len)?;
        let entries = parse_directory(&bytes, directory.entries)?;
        Ok(Self { file, len, entries })
    }

    /// Length of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        self.len
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Size of an entry.
    pub(crate) fn size(&self, name: &str) -> Result<u64, ZipError> {
        Ok(self.entry(name)?.size)
    }

    /// A whole entry of at most `max` bytes, compared with its checksum.
    pub(crate) fn read(&mut self, name: &str, max: u64) -> Result<Vec<u8>, ZipError> {
        let (entry, start) = self.locate(name)?;
        if entry.size > max {
            return Err(ZipError::TooLarge { name: name.to_owned(), bytes: entry.size, max });
        }
        let bytes = read_at(&mut self.file, start, entry.size)?;
        if crc32fast::hash(&bytes) == entry.crc { Ok(bytes) } else { Err(ZipError::Checksum(name.to_owned())) }
    }

    /// Compares an entry with its checksum, in pieces.
    pub(crate) fn verify(&mut self, name: &str) -> Result<(), ZipError> {
        let (entry, start) = self.locate(name)?;
        let mut crc = crc32fast::Hasher::new();
        let mut piece = vec![0; 64 << 10];
        let mut left = entry.size;
        self.file.seek(SeekFrom::Start(start))?;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            self.file.read_exact(&mut piece[..n])?;
            crc.update(&piece[..n]);
            left -= n as u64;
        }
        if crc.finalize() == entry.crc { Ok(()) } else { Err(ZipError::Checksum(name.to_owned())) }
    }

    /// A part of an entry that was verified before.
    pub(crate) fn read_part(&mut self, name: &str, from: u64, len: u64) -> Result<Vec<u8>, ZipError> {
        let (entry, start) = self.locate(name)?;
        if from.checked_add(len).is_none_or(|end| end > entry.size) {
            return Err(ZipError::Damaged("a tensor reaches beyond its entry"));
        }
        read_at(&mut self.file, start + from, len)
    }

    fn entry(&self, name: &str) -> Result<Entry, ZipError> {
        self.entries.get(name).copied().ok_or_else(|| ZipError::Missing(name.to_owned()))
    }

    /// Where an entry's bytes begin; they are within the file.
    fn locate(&mut self, name: &str) -> Result<(Entry, u64), ZipError> {
        let entry = self.entry(name)?;
        if !entry.stored {
            return Err(ZipError::NotStored(name.to_owned()));
        }
        let end = entry.header.checked_add(LOCAL_LEN as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(ZipError::Damaged("an entry lies beyond the end"))?;
        let header = read_at(&mut self.file, entry.header, LOCAL_LEN as u64)?;
        let mut fields = Fields(&header);
        if fields.u32()? != LOCAL {
            return Err(ZipError::Damaged("an entry does not begin where the directory says"));
        }
        fields.skip(22)?;
        let start = end + u64::from(fields.u16()?) + u64::from(fields.u16()?);
        if start.checked_add(entry.size).is_none_or(|end| end > self.len) {
            return Err(ZipError::Damaged("an entry lies beyond the end"));
        }
        Ok((entry, start))
    }
}

/// What a directory entry may take: its names are short, its extra fields alignment and sizes.
const MAX_DIRECTORY_BYTES_PER_ENTRY: u64 = 1024;

/// Longest comment behind the end record (4.3.16).
const MAX_COMMENT: usize = u16::MAX as usize;

fn find_directory(file: &mut (impl Read + Seek), len: u64) -> Result<Directory, ZipError> {
    let tail_len = len.min((END_LEN + MAX_COMMENT) as u64);
    let tail_start = len - tail_len;
    let tail = read_at(file, tail_start, tail_len)?;
    let end = (0..=tail.len().saturating_sub(END_LEN)).rev().find(|&at| is_end(&tail[at..])).ok_or(ZipError::NoEnd)?;
    let mut fields = Fields(&tail[end + 4..]);
    fields.skip(6)?;
    let entries = u64::from(fields.u16()?);
    let (size, offset) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
    let needs_64 = entries == u64::from(u16::MAX) || size == u64::from(u32::MAX) || offset == u64::from(u32::MAX);
    let locator = (tail_start + end as u64).checked_sub(LOCATOR64_LEN as u64);
    match locator {
        Some(at) if needs_64 => find_directory_64(file, at),
        _ => Ok(Directory { offset, len: size, entries }),
    }
}

/// Whether an end record begins here whose comment ends where the file does.
fn is_end(bytes: &[u8]) -> bool {
    let mut fields = Fields(bytes);
    let signature = fields.u32().ok();
    let comment = fields.skip(16).and_then(|()| fields.u16()).ok();
    signature == Some(END) && comment.map(usize::from) == bytes.len().checked_sub(END_LEN)
}

fn find_directory_64(file: &mut (impl Read + Seek), locator: u64) -> Result<Directory, ZipError> {
    let bytes = read_at(file, locator, LOCATOR64_LEN as u64)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != LOCATOR64 {
        return Err(ZipError::Damaged("the zip64 locator is missing"));
    }
    fields.skip(4)?;
    let at = fields.u64()?;
    if at.checked_add(END64_LEN as u64).is_none_or(|end| end > locator) {
        return Err(ZipError::Damaged("the zip64 end record is misplaced"));
    }
    let bytes = read_at(file, at, END64_LEN as u64)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END64 {
        return Err(ZipError::Damaged("the zip64 end record is missing"));
    }
    fields.skip(28)?;
    let (entries, len, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
    Ok(Directory { offset, len, entries })
}

fn parse_directory(bytes: &[u8], count: u64) -> Result<HashMap<String, Entry>, ZipError> {
    let mut fields = Fields(bytes);
    let mut entries = HashMap::new();
    for _ in 0..count {
        if fields.u32()? != CENTRAL {
            return Err(ZipError::Damaged("a directory entry is missing"));
        }
        fields.skip(4)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.skip(4)?;
        let crc = fields.u32()?;
        let (packed, size) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
        let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
        fields.skip(8)?;
        let header = u64::from(fields.u32()?);
        let name = fields.take(usize::from(name))?;
        let extra = fields.take(usize::from(extra))?;
        fields.skip(usize::from(comment))?;
        let [size, packed, header] = widen([size, packed, header], extra)?;
        let encrypted = flags & 1 != 0;
        let entry = Entry { header, size, crc, stored: method == 0 && packed == size && !encrypted };
        let name = str::from_utf8(name).map_err(|_| ZipError::Damaged("a name is not UTF-8"))?;
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(ZipError::Damaged("two entries have one name"));
        }
    }
    Ok(entries)
}

/// Size, packed size and offset, each taken from the zip64 extra field where 32 bits were not enough.
fn widen(mut values: [u64; 3], extra: &[u8]) -> Result<[u64; 3], ZipError> {
    let mut fields = Fields(extra);
    while fields.0.len() >= 4 {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let mut field = Fields(fields.take(usize::from(len))?);
        if id == ZIP64_EXTRA {
            for value in values.iter_mut().filter(|value| **value == u64::from(u32::MAX)) {
                *value = field.u64()?;
            }
        }
    }
    Ok(values)
}

/// Reads `len` bytes, which the caller has compared with the file's length.
fn read_at(file: &mut (impl Read + Seek), at: u64, len: u64) -> Result<Vec<u8>, ZipError> {
    let len = usize::try_from(len).map_err(|_| ZipError::Damaged("an entry is larger than memory"))?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Little-endian fields, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ZipError> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(ZipError::Damaged("a record is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ZipError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(ZipError::Damaged("a record is cut off"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn skip(&mut self, n: usize) -> Result<(), ZipError> {
        self.take(n).map(drop)
    }

    fn u16(&mut self) -> Result<u16, ZipError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ZipError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ZipError> {
        self.array().map(u64::from_le_bytes)
    }
}
