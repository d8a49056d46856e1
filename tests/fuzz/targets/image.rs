//! Any bytes as an image file: JPEG, PNG, WebP, GIF or BMP, within bounds.
#![no_main]

use anneal_image::{ImageLimits, decode, decode_scaled, dimensions, resize_bilinear};
use libfuzzer_sys::fuzz_target;

/// Small, so that an image which takes more than it may is found by the limit on the fuzzer's memory.
const LIMITS: ImageLimits = ImageLimits { max_pixels: 1 << 18, max_bytes: 16 << 20 };
/// Side of a network's input.
const SIDE: u32 = 32;

fuzz_target!(|bytes: &[u8]| {
    let size = dimensions(bytes, &LIMITS);
    if let Ok(image) = decode(bytes, &LIMITS) {
        assert!(u64::from(image.width()) * u64::from(image.height()) <= LIMITS.max_pixels);
        // Budgets are taken by what the first bytes say.
        assert_eq!(size.ok(), Some(image.dimensions()));
        let input = resize_bilinear(&image, SIDE, SIDE).expect("a size with pixels");
        assert_eq!(input.dimensions(), (SIDE, SIDE));
    }
    if let Ok(image) = decode_scaled(bytes, &LIMITS, SIDE) {
        assert!(u64::from(image.width()) * u64::from(image.height()) <= LIMITS.max_pixels);
    }
});
