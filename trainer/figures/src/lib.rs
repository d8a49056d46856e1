//! What reports count and draw: right and wrong answers by class, plots as SVG, and their drawing as PNG.
//!
//! Without libtorch, and apart from the trainer, because the server's `track` reports the same figures.

pub mod confusion;
mod font;
mod matrix;
pub mod plot;
mod raster;
pub mod svg;

pub use confusion::Confusion;
pub use font::names_of;
pub use matrix::confusion_matrix;
pub use raster::{DrawError, draw, to_png};
