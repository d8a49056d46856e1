//! Pillow's antialiased bilinear resize, to the bit.
//!
//! `src/libImaging/Resample.c` of Pillow 13 defines it: a triangle as wide as the scale, weights in fixed point with 22
//! fractional bits, two passes, rounded to 8 bits in between. Older versions always begin with the rows, which makes
//! some pixels differ by one.

use image::RgbImage;

use super::ImageError;

/// Fractional bits of a weight. 8 bits of value and 2 of headroom fill the rest of an i32.
const PRECISION: u32 = 32 - 8 - 2;

/// The image in `width` x `height` pixels, as `Image.resize((width, height), Image.BILINEAR)` of Pillow gives it.
///
/// # Errors
/// [`ImageError::Empty`] when the image or the result has no pixels.
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, ImageError> {
    let (from_width, from_height) = image.dimensions();
    if [width, height, from_width, from_height].contains(&0) {
        return Err(ImageError::Empty);
    }
    let (across, down) = (weights(from_width, width), weights(from_height, height));
    Ok(match (width == from_width, height == from_height) {
        (true, true) => image.clone(),
        (true, false) => along_columns(image, &down),
        (false, true) => along_rows(image, &across),
        (false, false) if columns_first(image, width, height) => along_rows(&along_columns(image, &down), &across),
        (false, false) => along_columns(&along_rows(image, &across), &down),
    })
}

/// Which pass Pillow begins with: the one along columns where it leaves out more than twice the pixels of the other.
fn columns_first(image: &RgbImage, width: u32, height: u32) -> bool {
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let (across, down) = (lost(image.width(), width), lost(image.height(), height));
    down > 0 && 2 * across < down
}

/// The source pixels that make one target pixel: the first one, and the weight of it and of those behind it.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of all target pixels along one axis.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn weights(from: u32, to: u32) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    // Enlarging interpolates between neighbours; shrinking averages over all that falls into the pixel.
    let support = scale.max(1.0);
    (0..to)
        .map(|target| {
            let centre = (f64::from(target) + 0.5) * scale;
            // A cast to u32 rounds towards zero and takes what is below zero as zero.
            let first = (centre - support + 0.5) as u32;
            let end = ((centre + support + 0.5) as u32).min(from);
            let triangle = |source: u32| {
                let distance = (f64::from(source) - centre + 0.5) * (1.0 / support);
                (1.0 - distance.abs()).max(0.0)
            };
            let shares: Vec<f64> = (first..end).map(triangle).collect();
            let total: f64 = shares.iter().sum();
            let one = f64::from(1_u32 << PRECISION);
            Window {
                first: first as usize,
                weights: shares.iter().map(|share| (0.5 + share / total * one) as i32).collect(),
            }
        })
        .collect()
}

fn along_rows(image: &RgbImage, windows: &[Window]) -> RgbImage {
    let mut out = vec![0; windows.len() * image.height() as usize * 3];
    pass(Axis::Rows, image, windows, &mut out);
    sized(u32::try_from(windows.len()).unwrap_or_default(), image.height(), out)
}

fn along_columns(image: &RgbImage, windows: &[Window]) -> RgbImage {
    let mut out = vec![0; windows.len() * image.width() as usize * 3];
    pass(Axis::Columns, image, windows, &mut out);
    sized(image.width(), u32::try_from(windows.len()).unwrap_or_default(), out)
}

/// Which way a pass goes.
#[derive(Clone, Copy)]
enum Axis {
    Rows,
    Columns,
}

/// A pass with the widest instructions that this processor has; all give the same numbers.
#[allow(unsafe_code, reason = "instructions that not every processor has")]
fn pass(axis: Axis, image: &RgbImage, windows: &[Window], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        return unsafe { pass_avx2(axis, image, windows, out) };
    }
    pass_anywhere(axis, image, windows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pass_avx2(axis: Axis, image: &RgbImage, windows: &[Window], out: &mut [u8]) {
    pass_anywhere(axis, image, windows, out);
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "only what is inlined is compiled for the caller's instructions")]
fn pass_anywhere(axis: Axis, image: &RgbImage, windows: &[Window], out: &mut [u8]) {
    match axis {
        Axis::Rows => rows(image, windows, out),
        Axis::Columns => columns(image, windows, out),
    }
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
fn rows(image: &RgbImage, windows: &[Window], out: &mut [u8]) {
    let (from_stride, to_stride) = (image.width() as usize * 3, windows.len() * 3);
    // Four bytes are taken at a time, one more than a pixel has.
    let mut padded = vec![0; from_stride + 1];
    for (row, out) in image.as_raw().chunks_exact(from_stride).zip(out.chunks_exact_mut(to_stride)) {
        padded[..from_stride].copy_from_slice(row);
        for (window, out) in windows.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [1_i32 << (PRECISION - 1); 4];
            let pixels = &padded[window.first * 3..];
            for (at, &weight) in window.weights.iter().enumerate() {
                let Some(pixel) = pixels[at * 3..].first_chunk::<4>() else { break };
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
fn columns(image: &RgbImage, windows: &[Window], out: &mut [u8]) {
    let stride = image.width() as usize * 3;
    let mut sums = vec![0_i32; stride];
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(stride)) {
        sums.fill(1 << (PRECISION - 1));
        for (row, &weight) in image.as_raw()[window.first * stride..].chunks_exact(stride).zip(&window.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = to_u8(sum);
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as above; 0 to 255")]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn sized(width: u32, height: u32, pixels: Vec<u8>) -> RgbImage {
    // The passes above make exactly these many pixels.
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}
