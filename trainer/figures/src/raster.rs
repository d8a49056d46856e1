//! SVG to PNG, with the one font that comes with the program.

use std::sync::{Arc, LazyLock};

use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

/// Pixels of the PNG for each of the SVG, so that it stays sharp on a good screen and in print.
const SCALE: u16 = 2;

/// A picture cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("a picture of the report cannot be drawn: {0}")]
pub struct DrawError(String);

impl DrawError {
    /// An error of a library.
    pub fn from_display(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    Arc::new(fonts)
});

/// Draws an SVG of this program as a PNG, two pixels for each of its own.
///
/// # Errors
/// When the SVG is none, or its size is.
pub fn to_png(svg: &str) -> Result<Vec<u8>, DrawError> {
    let pixels = draw(svg, SCALE)?;
    pixels.encode_png().map_err(DrawError::from_display)
}

/// Draws an SVG of this program, so many pixels for each of its own.
///
/// # Errors
/// When the SVG is none, or its size is.
pub fn draw(svg: &str, scale: u16) -> Result<Pixmap, DrawError> {
    let options = Options { fontdb: Arc::clone(&FONTS), ..Options::default() };
    let tree = Tree::from_str(svg, &options).map_err(DrawError::from_display)?;
    let size = tree.size().to_int_size();
    let pixmap = Pixmap::new(size.width() * u32::from(scale), size.height() * u32::from(scale));
    let mut pixmap = pixmap.ok_or_else(|| DrawError(format!("{} x {} pixels", size.width(), size.height())))?;
    let scale = f32::from(scale);
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    Ok(pixmap)
}
