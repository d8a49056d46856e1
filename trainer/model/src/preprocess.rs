//! From images to a network's input, as torchvision does it with Pillow.

use anneal_api::checkpoint::Preprocessing;
use tch::{Kind, TchError, Tensor};

pub use anneal_image::{ImageError, ImageLimits, RgbImage, decode, decode_scaled, dimensions, resize_bilinear};

/// Images cannot become a network's input.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// One of them cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is none.
    #[error("a batch without images cannot be used")]
    NoImages,
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

/// Images of one size as a tensor, uint8 [N, 3, H, W], channels-last in memory.
///
/// # Errors
/// When the images differ in size, or libtorch fails.
pub fn batch_u8(images: &[RgbImage]) -> Result<Tensor, PreprocessError> {
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
pub fn to_tensor(images: &[RgbImage], preprocessing: &Preprocessing) -> Result<Tensor, PreprocessError> {
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

fn side(preprocessing: &Preprocessing) -> Result<u32, PreprocessError> {
    let known = preprocessing.resize == "bilinear" && (1..=MAX_SIDE).contains(&preprocessing.size);
    u32::try_from(preprocessing.size)
        .ok()
        .filter(|_| known)
        .ok_or_else(|| PreprocessError::Preprocessing(preprocessing.resize.clone(), preprocessing.size))
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

fn common_size(images: &[RgbImage]) -> Result<(u32, u32), PreprocessError> {
    let first = images.first().ok_or(PreprocessError::NoImages)?.dimensions();
    match images.iter().map(RgbImage::dimensions).find(|&size| size != first) {
        Some((width, height)) => Err(PreprocessError::Sizes(first.0, first.1, width, height)),
        None => Ok(first),
    }
}
