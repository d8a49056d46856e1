//! What a prediction is made of.

use bytes::Bytes;
use image::RgbImage;

/// What a prediction is made of.
#[derive(Clone, Debug)]
pub enum Input {
    /// An encoded image.
    File(Bytes),
    /// An image of the network's size.
    Pixels(RgbImage),
    /// The network's input itself: normalised values, [3, H, W].
    Values(Vec<f32>),
}
