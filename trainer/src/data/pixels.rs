//! Where decoded photos are kept.

use std::{borrow::Cow, fs::File, hint::black_box, io, os::unix::fs::FileExt, path::Path, slice::ChunksExactMut};

/// The pixels of photos of one size, photo after photo.
#[derive(Debug)]
pub enum Pixels {
    /// In memory.
    Memory(Vec<u8>),
    /// In a file without a name: it is gone with the process, however that ends, and the system keeps as much of it in
    /// memory as nothing else needs.
    File(File),
}

impl Default for Pixels {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

/// Room for one photo.
pub enum Room<'a> {
    /// In memory.
    Memory(&'a mut [u8]),
    /// In a file, from an offset.
    File(&'a File, u64),
}

impl Room<'_> {
    /// Puts a photo there, whose bytes are as many as there is room for.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn fill(self, photo: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(room) => {
                room.copy_from_slice(photo);
                Ok(())
            }
            Self::File(file, offset) => file.write_all_at(photo, offset),
        }
    }
}

/// Room for photo after photo.
pub enum Rooms<'a> {
    /// In memory.
    Memory(ChunksExactMut<'a, u8>),
    /// In a file.
    File {
        /// The file.
        file: &'a File,
        /// Where the next photo begins.
        offset: u64,
        /// Bytes of a photo.
        bytes: u64,
    },
}

impl<'a> Iterator for Rooms<'a> {
    type Item = Room<'a>;

    fn next(&mut self) -> Option<Room<'a>> {
        match self {
            Self::Memory(chunks) => chunks.next().map(Room::Memory),
            Self::File { file, offset, bytes } => {
                let begin = *offset;
                *offset += *bytes;
                Some(Room::File(file, begin))
            }
        }
    }
}

impl Pixels {
    /// Room for bytes in memory, or `None` where there is not so much of it.
    pub fn in_memory(bytes: usize) -> Option<Self> {
        zeros(bytes).map(Self::Memory)
    }

    /// Room that grows, in a file without a name on the volume of a folder.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn in_file(folder: &Path) -> io::Result<Self> {
        tempfile::tempfile_in(folder).map(Self::File)
    }

    /// Room for photo after photo of so many bytes: as many as there is memory for, or endlessly many in a file.
    pub fn rooms(&mut self, bytes: usize) -> Rooms<'_> {
        match self {
            Self::Memory(pixels) => Rooms::Memory(pixels.chunks_exact_mut(bytes)),
            Self::File(file) => Rooms::File { file, offset: 0, bytes: bytes as u64 },
        }
    }

    /// One photo of so many bytes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn photo(&self, index: usize, bytes: usize) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::Memory(pixels) => Ok(Cow::Borrowed(&pixels[index * bytes..(index + 1) * bytes])),
            Self::File(file) => {
                let mut photo = vec![0; bytes];
                file.read_exact_at(&mut photo, offset(index, bytes))?;
                Ok(Cow::Owned(photo))
            }
        }
    }

    /// Keeps only the photos at these ascending positions, close together.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn keep(&mut self, positions: &[usize], bytes: usize) -> io::Result<()> {
        for (to, from) in positions.iter().enumerate().filter(|(to, from)| to != *from) {
            match self {
                Self::Memory(pixels) => pixels.copy_within(from * bytes..(from + 1) * bytes, to * bytes),
                Self::File(file) => {
                    let mut photo = vec![0; bytes];
                    file.read_exact_at(&mut photo, offset(*from, bytes))?;
                    file.write_all_at(&photo, offset(to, bytes))?;
                }
            }
        }
        match self {
            Self::Memory(pixels) => pixels.truncate(positions.len() * bytes),
            Self::File(file) => file.set_len(offset(positions.len(), bytes))?,
        }
        Ok(())
    }
}

/// So many zeros, if there is memory for them. It is asked for first, since `vec!` would end the process; but `vec!` alone
/// gets pages that cost nothing before they are written to.
pub(super) fn zeros(bytes: usize) -> Option<Vec<u8>> {
    let mut asked = Vec::<u8>::new();
    asked.try_reserve_exact(bytes).ok()?;
    // The compiler may leave out what nobody uses.
    drop(black_box(asked));
    Some(vec![0; bytes])
}

fn offset(index: usize, bytes: usize) -> u64 {
    index as u64 * bytes as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_than_there_is_of_memory_is_an_answer() {
        assert!(Pixels::in_memory(1 << 50).is_none());
    }

    proptest! {
        #[test]
        fn photos_are_the_same_from_memory_and_from_a_file(
            photos in proptest::collection::vec((any::<[u8; 12]>(), any::<bool>()), 0..20),
        ) {
            let kept: Vec<usize> = (0..photos.len()).filter(|index| photos[*index].1).collect();
            let memory = Pixels::in_memory(photos.len() * 12).expect("memory");
            for mut pixels in [memory, Pixels::in_file(&std::env::temp_dir())?] {
                for (room, (photo, _)) in pixels.rooms(12).zip(&photos) {
                    room.fill(photo)?;
                }
                pixels.keep(&kept, 12)?;
                for (index, from) in kept.iter().enumerate() {
                    prop_assert_eq!(&*pixels.photo(index, 12)?, &photos[*from].0);
                }
            }
        }
    }
}
