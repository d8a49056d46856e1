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
pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<RgbImage, ImageError> {
    let mut decoder = Decoder::new(limits)?;
    if ends(bytes) {
        return Ok(decoder.decode(bytes, limits)?.0);
    }
    let (image, warning) = decoder.decode(&[bytes, &END].concat(), limits)?;
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
    fn decode(&mut self, bytes: &[u8], limits: &ImageLimits) -> Result<(RgbImage, Option<String>), ImageError> {
        let (width, height) = self.dimensions(bytes)?;
        limits.check(width, height)?;
        let colours = self.number(tj::TJPARAM_TJPARAM_COLORSPACE);
        let four = colours == tj::TJCS_TJCS_CMYK || colours == tj::TJCS_TJCS_YCCK;
        let (format, channels) = if four { (tj::TJPF_TJPF_CMYK, 4) } else { (tj::TJPF_TJPF_RGB, 3) };
        let mut pixels = vec![0; width as usize * height as usize * channels];
        // SAFETY: the buffer has as many rows and bytes a row as the header says, which is of the same bytes: a pitch of 0
        // means rows without gaps.
        let warning = self.check(unsafe {
            tj::tj3Decompress8(self.handle(), bytes.as_ptr(), bytes.len() as tj::size_t, pixels.as_mut_ptr(), 0, format)
        })?;
        let pixels = if four { pixels.chunks_exact(4).flat_map(from_inverted_cmyk).collect() } else { pixels };
        let image = RgbImage::from_raw(width, height, pixels).ok_or(ImageError::Empty)?;
        Ok((image, warning))
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

/// RGB of a pixel of cyan, magenta, yellow and black, inverted as Adobe's programs write them.
fn from_inverted_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = i32::from(pixel[3]);
    std::array::from_fn(|channel| {
        let scaled = i32::from(255 - pixel[channel]) * light + 128;
        let dark = (scaled + (scaled >> 8)) >> 8;
        u8::try_from((light - dark).clamp(0, 255)).unwrap_or(u8::MAX)
    })
}
