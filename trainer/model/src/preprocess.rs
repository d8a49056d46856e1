//! From the bytes of an image file to a network's input, as torchvision does it with Pillow.

mod jpeg;
mod resize;

use std::io::{self, Cursor};

use anneal_api::checkpoint::Preprocessing;
use image::{DynamicImage, ImageDecoder, ImageReader};
use tch::{Kind, TchError, Tensor};

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

/// An image cannot become a network's input.
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
    /// An image has no pixels, or a batch no images.
    #[error("an image without pixels, or a batch without images, cannot be used")]
    Empty,
    /// Images of one batch differ in size.
    #[error("images of one batch must have one size, but one is {0} x {1} and another {2} x {3}")]
    Sizes(u32, u32, u32, u32),
    /// The checkpoint asks for a preprocessing that this version does not know.
    #[error(
        "the checkpoint asks for resize {0:?} to size {1}; this version knows bilinear to sizes from 1 to {MAX_SIDE}"
    )]
    Preprocessing(String, i32),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Longest side of a network's input.
const MAX_SIDE: i32 = 4096;

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

/// Images of one size as a tensor, uint8 [N, 3, H, W], channels-last in memory.
///
/// # Errors
/// When the images differ in size, or libtorch fails.
pub fn batch_u8(images: &[RgbImage]) -> Result<Tensor, ImageError> {
    let (width, height) = common_size(images)?;
    let bytes: Vec<u8> = images.iter().flat_map(|image| image.as_raw().iter().copied()).collect();
    let shape = [count(images), i64::from(height), i64::from(width), 3];
    Ok(Tensor::f_from_data_size(&bytes, &shape, Kind::Uint8)?.f_permute([0, 3, 1, 2])?)
}

/// Scales uint8 [N, 3, H, W] to [0, 1], subtracts the mean and divides by the standard deviation: float32, same layout.
///
/// # Errors
/// When libtorch fails.
pub fn normalise(batch: &Tensor, preprocessing: &Preprocessing) -> Result<Tensor, TchError> {
    let channels =
        |values: &[f32; 3]| Tensor::f_from_slice(values)?.f_reshape([1, 3, 1, 1])?.f_to_device(batch.device());
    let mut values = batch.f_to_kind(Kind::Float)?.f_div_scalar_(255.0)?;
    values.f_sub_(&channels(&preprocessing.mean)?)?.f_div_(&channels(&preprocessing.std)?)
}

/// The network's input, float32 [N, 3, size, size] channels-last in memory, from images of any sizes: each is resized,
/// scaled to [0, 1] and normalised.
///
/// # Errors
/// When an image is empty, the preprocessing is unknown, or libtorch fails.
pub fn to_tensor(images: &[RgbImage], preprocessing: &Preprocessing) -> Result<Tensor, ImageError> {
    let side = side(preprocessing)?;
    let tables = normalised(preprocessing);
    let mut values = Vec::with_capacity(images.len() * side as usize * side as usize * 3);
    for image in images {
        let resized = resize_bilinear(image, side, side)?;
        for pixel in resized.as_raw().chunks_exact(3) {
            values.extend(pixel.iter().zip(&tables).map(|(&value, table)| table[usize::from(value)]));
        }
    }
    let shape = [count(images), i64::from(side), i64::from(side), 3];
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?.f_permute([0, 3, 1, 2])?)
}

fn side(preprocessing: &Preprocessing) -> Result<u32, ImageError> {
    let known = preprocessing.resize == "bilinear" && (1..=MAX_SIDE).contains(&preprocessing.size);
    u32::try_from(preprocessing.size)
        .ok()
        .filter(|_| known)
        .ok_or_else(|| ImageError::Preprocessing(preprocessing.resize.clone(), preprocessing.size))
}

/// What each of the 256 values of a channel becomes.
fn normalised(preprocessing: &Preprocessing) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        let (mean, std) = (preprocessing.mean[channel], preprocessing.std[channel]);
        std::array::from_fn(|value| (f32::from(u8::try_from(value).unwrap_or(u8::MAX)) / 255.0 - mean) / std)
    })
}

#[expect(clippy::cast_possible_wrap, reason = "images take more than one byte each")]
fn count(images: &[RgbImage]) -> i64 {
    images.len() as i64
}

fn common_size(images: &[RgbImage]) -> Result<(u32, u32), ImageError> {
    let first = images.first().ok_or(ImageError::Empty)?.dimensions();
    match images.iter().map(RgbImage::dimensions).find(|&size| size != first) {
        Some((width, height)) => Err(ImageError::Sizes(first.0, first.1, width, height)),
        None => Ok(first),
    }
}
