//! Pieces of SVG.

use crate::font;

/// Attributes of a title.
pub const TITLE: &str = r#"text-anchor="middle" font-size="16" font-weight="bold""#;
/// Attributes of text around a point.
pub const MIDDLE: &str = r#"text-anchor="middle""#;
/// Attributes of text that ends at a point.
pub const END: &str = r#"text-anchor="end""#;
/// Attributes of text that begins at a point.
pub const START: &str = r#"text-anchor="start""#;

/// A whole picture on white, `width` by `height` pixels.
pub fn document(width: f64, height: f64, body: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="DejaVu Sans, sans-serif" font-size="13" fill="#222"><rect width="100%" height="100%" fill="white"/>{body}</svg>"##
    ) + "\n"
}

/// Text at a point.
pub fn text(x: f64, y: f64, attributes: &str, words: &str) -> String {
    format!(r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{}</text>"#, escaped(words))
}

/// Text from bottom to top.
pub fn turned(x: f64, y: f64, attributes: &str, words: &str) -> String {
    format!(r#"<text transform="translate({x:.1} {y:.1}) rotate(-90)" {attributes}>{}</text>"#, escaped(words))
}

/// A filled rectangle with a thin edge.
pub fn rectangle(x: f64, y: f64, width: f64, height: f64, colour: &str, opacity: f64) -> String {
    format!(
        r##"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}" fill-opacity="{opacity:.3}" stroke="#bbb"/>"##
    )
}

/// A text of at most so many characters.
pub fn shortened(words: &str, most: usize) -> String {
    if words.chars().count() <= most {
        return words.to_owned();
    }
    words.chars().take(most.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

/// A text of at most so many pixels.
pub fn fitting(words: &str, size: f64, most: f64) -> String {
    let fits = |count: &usize| font::width(&shortened(words, *count), size) <= most;
    let count = (1..=words.chars().count()).rev().find(fits).unwrap_or(1);
    shortened(words, count)
}

/// Class and file names may hold anything, control characters too, which XML has no place for.
pub fn escaped(words: &str) -> String {
    let plain: String = words.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
