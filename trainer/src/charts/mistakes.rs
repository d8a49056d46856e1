//! The photos that the network was most wrong about, in a grid.

use std::io::Cursor;

use anneal_figures::{DrawError, draw, svg};
use anneal_model::preprocess::{self, RgbImage};
use image::{ImageFormat, Rgb, imageops};

/// Side of a photo in the grid.
const SIDE: u32 = 192;
const GAP: u32 = 20;
const CAPTION: u32 = 56;
const TITLE: u32 = 52;
const COLUMNS: u32 = 5;

/// A photo that was taken for what it is not.
pub struct Mistake<'a> {
    /// Its path in the dataset.
    pub path: &'a str,
    /// Its class.
    pub actual: &'a str,
    /// The class that it was taken for.
    pub predicted: &'a str,
    /// The probability of that class.
    pub confidence: f64,
    /// The photo as the network saw it.
    pub photo: RgbImage,
}

/// A grid of mistakes as a PNG, with what each photo is and what it was taken for.
///
/// # Errors
/// When the picture cannot be drawn.
pub fn mistakes(title: &str, mistakes: &[Mistake<'_>]) -> Result<Vec<u8>, DrawError> {
    let count = u32::try_from(mistakes.len()).unwrap_or(u32::MAX);
    let columns = count.clamp(3, COLUMNS);
    let (width, row) = (GAP + columns * (SIDE + GAP), SIDE + CAPTION);
    let height = TITLE + count.div_ceil(columns) * row + GAP;
    let place = |index: u32| (GAP + index % columns * (SIDE + GAP), TITLE + index / columns * row);

    let mut body = svg::text(f64::from(width) / 2.0, 30.0, svg::TITLE, title);
    for (index, mistake) in (0..).zip(mistakes) {
        let (x, y) = place(index);
        let (x, y) = (f64::from(x), f64::from(y + SIDE));
        let of = |words: &str| svg::shortened(words, 9);
        let verdict =
            format!("{} taken for {} {:.0} %", of(mistake.actual), of(mistake.predicted), mistake.confidence * 100.0);
        body += &svg::text(x, y + 17.0, r#"font-size="11""#, &verdict);
        // The end of a path is what tells photos apart.
        let name: String = mistake.path.chars().rev().take(29).collect::<Vec<_>>().into_iter().rev().collect();
        let name = if name.len() < mistake.path.len() { format!("…{name}") } else { name };
        body += &svg::text(x, y + 33.0, r##"font-size="10" fill="#777""##, &name);
    }
    let drawn = draw(&svg::document(f64::from(width), f64::from(height), &body), 1)?;
    let mut picture = RgbImage::from_pixel(drawn.width(), drawn.height(), Rgb([255; 3]));
    for (to, from) in picture.pixels_mut().zip(drawn.pixels()) {
        // The background is opaque, so premultiplied colours are the colours.
        *to = Rgb([from.red(), from.green(), from.blue()]);
    }
    for (index, mistake) in (0..).zip(mistakes) {
        let (x, y) = place(index);
        let photo = preprocess::resize_bilinear(&mistake.photo, SIDE, SIDE).map_err(DrawError::from_display)?;
        imageops::replace(&mut picture, &photo, i64::from(x), i64::from(y));
    }
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).map_err(DrawError::from_display)?;
    Ok(png.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_mistakes_makes_a_picture() {
        for count in [0, 1, 7] {
            let one = || Mistake {
                path: "val/cat/a.jpg",
                actual: "cat",
                predicted: "dog",
                confidence: 0.98,
                photo: RgbImage::new(32, 32),
            };
            let all: Vec<_> = (0..count).map(|_| one()).collect();
            let png = mistakes("The worst mistakes", &all).expect("a picture");
            let picture = image::load_from_memory(&png).expect("a PNG");
            assert_eq!(picture.width(), if count == 7 { 1080 } else { 656 });
        }
    }
}
