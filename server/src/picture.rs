//! An image that is made up: for warming up, for the smoke test's first question, for load.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

/// A small PNG of colour gradients, always the same.
///
/// # Errors
/// When it cannot be encoded.
pub fn png() -> image::ImageResult<Vec<u8>> {
    let byte = |value: u32| u8::try_from(value % 256).unwrap_or_default();
    let picture = RgbImage::from_fn(96, 64, |x, y| Rgb([byte(x * 2), byte(y * 4), byte(x * y)]));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
