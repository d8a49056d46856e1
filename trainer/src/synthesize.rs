//! The synthetic set as image files.

use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
};

use anneal_api::dataset::Synthetic;
use image::ImageFormat;

use crate::{
    data::{
        Split,
        arrange::{Labelled, arrange},
        listing::{self, Place},
        synthetic,
    },
    outcome::Error,
};

/// Share of the pictures that goes to `val/`, and as much to `test/`.
const SHARE: f64 = 0.1;

/// Writes the set to `DIR/{train,val,test}/{cat,dog}/`, and returns how many files there are.
///
/// # Errors
/// When the file system refuses.
pub fn to_folder(set: Synthetic, dir: &Path) -> Result<usize, Error> {
    let arrangement = arrange(listing::drawn(set), SHARE, set.seed)?;
    let splits = [
        (Split::Train, &arrangement.train),
        (Split::Validation, &arrangement.validation),
        (Split::Test, &arrangement.test),
    ];
    for (split, pictures) in splits {
        for class in &arrangement.classes {
            let folder = dir.join(split.folder()).join(class);
            fs::create_dir_all(&folder).map_err(Error::writing(folder))?;
        }
        pictures.iter().try_for_each(|picture| write_picture(picture, &dir.join(split.folder())))?;
    }
    Ok(arrangement.len())
}

/// The first picture of a class, as PNG.
///
/// # Errors
/// When there is no such class.
pub fn first_of(set: Synthetic, class: &str) -> Result<Vec<u8>, Error> {
    let index = (0..).zip(synthetic::CLASSES).find(|(_, name)| *name == class).map(|(index, _)| index);
    png(set, index.ok_or_else(|| Error::Internal(format!("there is no class {class:?}; write cat or dog")))?)
}

/// Writes [`first_of`] a class to a stream.
///
/// # Errors
/// When there is no such class, or the stream is closed.
pub fn to_stream(set: Synthetic, class: &str, stream: &mut impl Write) -> Result<(), Error> {
    let picture = first_of(set, class)?;
    stream.write_all(&picture).and_then(|()| stream.flush()).map_err(Error::writing("standard output"))
}

fn write_picture(picture: &Labelled, split: &Path) -> Result<(), Error> {
    let Place::Drawn { set, index } = picture.photo.place else { return Ok(()) };
    let path = split.join(&picture.photo.path);
    let content = png(set, index)?;
    fs::write(&path, content).map_err(Error::writing(path))
}

fn png(set: Synthetic, index: u32) -> Result<Vec<u8>, Error> {
    let mut content = Cursor::new(Vec::new());
    let written = synthetic::image(set, index).write_to(&mut content, ImageFormat::Png);
    written.map_err(|error| Error::Internal(format!("a picture cannot be encoded: {error}")))?;
    Ok(content.into_inner())
}
