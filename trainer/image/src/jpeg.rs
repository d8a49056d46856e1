//! JPEG as Pillow decodes it, to the bit: with libjpeg-turbo, its exact inverse transform and its smooth upsampling.
#![allow(unsafe_code, reason = "C is called")]

use std::{ffi::CStr, ptr::NonNull};

use image::RgbImage;
use turbojpeg_sys as tj;

use super::{ImageError, ImageLimits};

/// Most scans of a progressive file. Files in use have about ten; each more costs a pass over all pixels, and a file of a
/// few kilobytes can have thousands.
const MAX_SCANS: i32 = 100;
/// Bytes that begin a scan, and those that end a file.
const SCAN: [u8; 2] = [0xff, 0xda];
const END: [u8; 2] = [0xff, 0xd9];
/// How libjpeg-turbo's warning begins that it ran out of bytes.
const RAN_OUT: &str = "Premature end of JPEG file";
/// How it begins where it met an end marker too early.
const BROKE_OFF: &str = "Corrupt JPEG data: premature end of data segment";

/// Whether these are the bytes of a JPEG file.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Decodes a JPEG to RGB.
///
/// Whole files without an end marker are in use. Pillow takes them, but none that breaks off before, and of those of several
/// scans none at all, since the next scan may be missing.
///
/// With a `side`, no more of the image is computed than a square of that side needs: libjpeg-turbo's inverse transform can
/// give each block of 8 x 8 in fewer pixels. These are not Pillow's.
pub(super) fn decode(bytes: &[u8], limits: &ImageLimits, side: Option<u32>) -> Result<RgbImage, ImageError> {
    let mut decoder = Decoder::new(limits)?;
    if ends(bytes) {
        return Ok(decoder.decode(bytes, limits, side)?.0);
    }
    let (image, warning) = decoder.decode(&[bytes, &END].concat(), limits, side)?;
    let broke_off = warning.is_some_and(|warning| warning.contains(BROKE_OFF));
    if broke_off || decoder.number(tj::TJPARAM_TJPARAM_PROGRESSIVE) == 1 {
        return Err(truncated());
    }
    Ok(image)
}

/// Width and height of a JPEG.
pub(super) fn dimensions(bytes: &[u8], limits: &ImageLimits) -> Result<(u32, u32), ImageError> {
    Decoder::new(limits)?.dimensions(bytes)
}

/// Whether there is an end marker behind the last scan's beginning. In a scan's data these bytes cannot be.
fn ends(bytes: &[u8]) -> bool {
    let last_scan = bytes.windows(2).rposition(|pair| pair == SCAN).unwrap_or(bytes.len());
    bytes[last_scan..].windows(2).any(|pair| pair == END)
}

fn truncated() -> ImageError {
    ImageError::Decode("the file is truncated".to_owned())
}

/// libjpeg-turbo's decoder.
struct Decoder(NonNull<std::ffi::c_void>);

impl Decoder {
    fn new(limits: &ImageLimits) -> Result<Self, ImageError> {
        // SAFETY: it takes a number and gives a handle or null.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS.cast_signed()) };
        let decoder = Self(NonNull::new(handle).ok_or_else(|| ImageError::Decode("out of memory".to_owned()))?);
        let megabytes = i32::try_from(limits.max_bytes >> 20).unwrap_or(i32::MAX).max(1);
        for (parameter, value) in
            [(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS), (tj::TJPARAM_TJPARAM_MAXMEMORY, megabytes)]
        {
            // SAFETY: the handle is alive; unknown parameters and values are refused.
            decoder.check(unsafe { tj::tj3Set(decoder.handle(), parameter.cast_signed(), value) })?;
        }
        Ok(decoder)
    }

    fn handle(&self) -> tj::tjhandle {
        self.0.as_ptr()
    }

    /// Width and height.
    fn dimensions(&mut self, bytes: &[u8]) -> Result<(u32, u32), ImageError> {
        // SAFETY: pointer and length are those of one slice.
        let warning =
            self.check(unsafe { tj::tj3DecompressHeader(self.handle(), bytes.as_ptr(), bytes.len() as tj::size_t) })?;
        let (width, height) = (self.number(tj::TJPARAM_TJPARAM_JPEGWIDTH), self.number(tj::TJPARAM_TJPARAM_JPEGHEIGHT));
        if width == 0 || height == 0 || warning.is_some_and(|warning| warning.contains(RAN_OUT)) {
            return Err(truncated());
        }
        Ok((width, height))
    }

    /// The image, and what libjpeg-turbo warned of first.
    fn decode(
        &mut self,
        bytes: &[u8],
        limits: &ImageLimits,
        side: Option<u32>,
    ) -> Result<(RgbImage, Option<String>), ImageError> {
        let (width, height) = self.dimensions(bytes)?;
        limits.check(width, height)?;
        let (width, height) = self.scale(width, height, side)?;
        let colours = self.number(tj::TJPARAM_TJPARAM_COLORSPACE);
        let four = colours == tj::TJCS_TJCS_CMYK || colours == tj::TJCS_TJCS_YCCK;
        let (format, channels) = if four { (tj::TJPF_TJPF_CMYK, 4) } else { (tj::TJPF_TJPF_RGB, 3) };
        let mut pixels = vec![0; width as usize * height as usize * channels];
        // SAFETY: the buffer has as many rows and bytes a row as the header, which is of the same bytes, and the scale say: a
        // pitch of 0 means rows without gaps.
        let warning = self.check(unsafe {
            tj::tj3Decompress8(self.handle(), bytes.as_ptr(), bytes.len() as tj::size_t, pixels.as_mut_ptr(), 0, format)
        })?;
        let pixels = if four { pixels.chunks_exact(4).flat_map(from_inverted_cmyk).collect() } else { pixels };
        let image = RgbImage::from_raw(width, height, pixels).ok_or(ImageError::Empty)?;
        Ok((image, warning))
    }

    /// Sets how much of each block is computed, and gives the size of what comes out.
    fn scale(&self, width: u32, height: u32, side: Option<u32>) -> Result<(u32, u32), ImageError> {
        // Without loss there are no blocks.
        let Some(side) = side.filter(|_| self.number(tj::TJPARAM_TJPARAM_LOSSLESS) == 0) else {
            return Ok((width, height));
        };
        let eighths = eighths(width.min(height), side);
        // Known are fractions in their lowest terms only.
        let shift = eighths.trailing_zeros();
        let factor = tj::tjscalingfactor { num: (eighths >> shift).cast_signed(), denom: 8 >> shift };
        // SAFETY: the handle is alive; unknown factors are refused.
        self.check(unsafe { tj::tj3SetScalingFactor(self.handle(), factor) })?;
        Ok((scaled(width, eighths), scaled(height, eighths)))
    }

    fn number(&self, parameter: tj::TJPARAM) -> u32 {
        // SAFETY: the handle is alive.
        let value = unsafe { tj::tj3Get(self.handle(), parameter.cast_signed()) };
        u32::try_from(value).unwrap_or_default()
    }

    /// What a result means: nothing, a warning, or an error.
    fn check(&self, result: i32) -> Result<Option<String>, ImageError> {
        if result == 0 {
            return Ok(None);
        }
        // SAFETY: the handle is alive, and the text is copied before the next call changes it.
        let (text, code) = unsafe {
            let text = CStr::from_ptr(tj::tj3GetErrorStr(self.handle())).to_string_lossy().into_owned();
            (text, tj::tj3GetErrorCode(self.handle()))
        };
        if code == tj::TJERR_TJERR_WARNING.cast_signed() { Ok(Some(text)) } else { Err(ImageError::Decode(text)) }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle.
        unsafe { tj::tj3Destroy(self.handle()) };
    }
}

/// The least scale, in eighths, in which the shorter side is still as long as `side`.
fn eighths(shorter: u32, side: u32) -> u32 {
    (1..8).find(|eighths| scaled(shorter, *eighths) >= side).unwrap_or(8)
}

/// Length of a side in that scale, as libjpeg-turbo rounds it.
fn scaled(length: u32, eighths: u32) -> u32 {
    u32::try_from((u64::from(length) * u64::from(eighths)).div_ceil(8)).unwrap_or(u32::MAX)
}

/// RGB of a pixel of cyan, magenta, yellow and black, inverted as Adobe's programs write them.
fn from_inverted_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = i32::from(pixel[3]);
    std::array::from_fn(|channel| {
        let scaled = i32::from(255 - pixel[channel]) * light + 128;
        let dark = (scaled + (scaled >> 8)) >> 8;
        u8::try_from((light - dark).clamp(0, 255)).unwrap_or(u8::MAX)
    })
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small numbers"
)]
mod tests {
    use super::{super::resize_bilinear, *};

    /// A JPEG of two slow waves.
    fn waves(width: u32, height: u32) -> (RgbImage, Vec<u8>) {
        let wave = |at: u32, length: f64| (127.0 + 120.0 * (f64::from(at) / length).sin()) as u8;
        let image =
            RgbImage::from_fn(width, height, |x, y| image::Rgb([wave(x, 40.0), wave(y, 60.0), wave(x + y, 50.0)]));
        // SAFETY: the pixels are as many as the sizes say, and the buffer is freed once after it was copied.
        let bytes = unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS.cast_signed());
            for (parameter, value) in [(tj::TJPARAM_TJPARAM_QUALITY, 95), (tj::TJPARAM_TJPARAM_SUBSAMP, 0)] {
                assert_eq!(tj::tj3Set(handle, parameter.cast_signed(), value), 0);
            }
            let (mut buffer, mut size) = (std::ptr::null_mut(), 0);
            let (w, h) = (width.cast_signed(), height.cast_signed());
            let pixels = image.as_raw().as_ptr();
            assert_eq!(tj::tj3Compress8(handle, pixels, w, 0, h, tj::TJPF_TJPF_RGB, &raw mut buffer, &raw mut size), 0);
            let bytes = std::slice::from_raw_parts(buffer, size as usize).to_vec();
            tj::tj3Free(buffer.cast());
            tj::tj3Destroy(handle);
            bytes
        };
        (image, bytes)
    }

    #[test]
    fn no_more_is_computed_than_the_side_needs_and_it_looks_the_same() {
        let limits = ImageLimits::default();
        for (width, height, side, size) in [
            (1600, 1200, 128, (200, 150)),
            (1601, 1203, 300, (401, 301)),
            (800, 600, 599, (800, 600)),
            (64, 64, 224, (64, 64)),
        ] {
            let (original, bytes) = waves(width, height);
            let image = decode(&bytes, &limits, Some(side)).expect("an image");
            assert_eq!(image.dimensions(), size, "{width} x {height} for {side}");
            let [small, exact] = [&image, &original].map(|image| resize_bilinear(image, side, side).expect("a size"));
            let differences = small.as_raw().iter().zip(exact.as_raw()).map(|(a, b)| u32::from(a.abs_diff(*b)));
            let mean = f64::from(differences.sum::<u32>()) / small.as_raw().len() as f64;
            assert!(mean < 3.0, "{width} x {height} for {side}: {mean} of 255 apart");
        }
    }
}
