//! From the bytes of an image file to pixels, as torchvision does it with Pillow: bounded before anything is decoded.
//!
//! It links no libtorch, so that a fuzzer can run it alone.

mod jpeg;
mod resize;

use std::io::{self, Cursor};

use image::{DynamicImage, ImageDecoder, ImageReader};

pub use image::RgbImage;
pub use resize::resize_bilinear;

/// Bounds on an image before it is decoded.
#[derive(Clone, Copy, Debug)]
pub struct ImageLimits {
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most bytes that the decoder may allocate.
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    /// 50 megapixels, which is beyond what cameras of phones give, and 512 MiB.
    fn default() -> Self {
        Self { max_pixels: 50_000_000, max_bytes: 512 << 20 }
    }
}

impl ImageLimits {
    /// Lets an image of this size pass, if it has pixels and not too many.
    fn check(&self, width: u32, height: u32) -> Result<(), ImageError> {
        match u64::from(width) * u64::from(height) {
            0 => Err(ImageError::Empty),
            pixels if pixels > self.max_pixels => {
                Err(ImageError::TooLarge { width, height, max_pixels: self.max_pixels })
            }
            _ => Ok(()),
        }
    }
}

/// An image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are of no known image format.
    #[error("this is no image in a known format; send JPEG, PNG, WebP, GIF or BMP")]
    UnknownFormat,
    /// The image is damaged, or uses what the decoder does not know.
    #[error("the image cannot be decoded ({0}); check that the file is complete, or convert it to JPEG or PNG")]
    Decode(String),
    /// The image is too large.
    #[error("the image has {width} x {height} pixels, and {max_pixels} are allowed; make it smaller")]
    TooLarge {
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// Most pixels allowed.
        max_pixels: u64,
    },
    /// The image has no pixels.
    #[error("an image without pixels cannot be used")]
    Empty,
}

/// Decodes JPEG, PNG, WebP, GIF (its first frame) or BMP to 8-bit RGB, as `Image.open(…).convert("RGB")` of Pillow does:
/// grey is repeated, transparency is dropped, and EXIF's orientation is not applied. Of 16 bits a channel the lower 8 are
/// dropped, but grey of 16 bits is cut off at 255. The pixels are Pillow's to the bit.
///
/// # Errors
/// When the bytes are no image, a damaged one, or one beyond `limits`.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage, ImageError> {
    if jpeg::is_jpeg(bytes) {
        return jpeg::decode(bytes, limits, None);
    }
    let decoder = decoder(bytes, limits)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let image = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
    Ok(to_rgb(image))
}

/// As [`decode`], but of a JPEG only as many pixels are computed as a square of `side` pixels needs, in eighths of its size. It
/// saves most of the time that a large photo costs, and the pixels are not Pillow's any more.
///
/// # Errors
/// As [`decode`].
pub fn decode_scaled(bytes: &[u8], limits: &ImageLimits, side: u32) -> Result<RgbImage, ImageError> {
    if jpeg::is_jpeg(bytes) { jpeg::decode(bytes, limits, Some(side)) } else { decode(bytes, limits) }
}

/// Width and height of an image in pixels, from its first bytes.
///
/// # Errors
/// As [`decode`].
pub fn dimensions(bytes: &[u8], limits: &ImageLimits) -> Result<(u32, u32), ImageError> {
    let (width, height) =
        if jpeg::is_jpeg(bytes) { jpeg::dimensions(bytes, limits)? } else { decoder(bytes, limits)?.dimensions() };
    limits.check(width, height)?;
    Ok((width, height))
}

fn decoder<'a>(bytes: &'a [u8], limits: &ImageLimits) -> Result<impl ImageDecoder + 'a, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    reader.set_format(image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat)?);
    let mut allocation = image::Limits::default();
    allocation.max_alloc = Some(limits.max_bytes);
    reader.limits(allocation);
    reader.into_decoder().map_err(|error| match error {
        image::ImageError::Unsupported(_) => ImageError::UnknownFormat,
        other => undecodable(other),
    })
}

fn undecodable(error: image::ImageError) -> ImageError {
    ImageError::Decode(match error {
        // In the words of a reader it is about its buffer.
        image::ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the file is truncated".to_owned()
        }
        other => other.to_string(),
    })
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let upper = |value: u16| u8::try_from(value >> 8).unwrap_or(u8::MAX);
    let clipped = |value: u16| u8::try_from(value).unwrap_or(u8::MAX);
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma16(_) => narrow(image, clipped),
        DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            narrow(image, upper)
        }
        other => other.into_rgb8(),
    }
}

/// 8-bit RGB of an image of 16 bits; the image crate would round.
fn narrow(image: DynamicImage, value: impl Fn(u16) -> u8) -> RgbImage {
    let wide = image.into_rgb16();
    let (width, height) = wide.dimensions();
    RgbImage::from_fn(width, height, |x, y| image::Rgb(wide.get_pixel(x, y).0.map(&value)))
}
