//! The one font that comes with the program: what it has letters for, and how wide they are.

use skrifa::{FontRef, MetadataProvider, instance::LocationRef, prelude::Size};

/// The names of classes as a picture can show them: one that the font has no letters for goes by its number in the report's
/// table of classes.
pub fn names_of(classes: &[String]) -> Vec<String> {
    let numbered = |(number, name): (usize, &String)| {
        if has_letters_for(name) { name.clone() } else { format!("class {number}") }
    };
    (1..).zip(classes).map(numbered).collect()
}

/// Whether the font has every letter of a text.
fn has_letters_for(words: &str) -> bool {
    let Ok(font) = FontRef::new(dejavu::sans::regular()) else { return false };
    let letters = font.charmap();
    words.chars().all(|letter| letter.is_control() || letters.map(letter).is_some())
}

/// How wide a text is; a letter that the font does not have is as wide as it is high.
pub(crate) fn width(words: &str, size: f64) -> f64 {
    let font = FontRef::new(dejavu::sans::regular()).ok();
    let font = font.map(|font| (font.charmap(), font.glyph_metrics(Size::new(1.0), LocationRef::default())));
    let of = |letter| {
        let (letters, metrics) = font.as_ref()?;
        metrics.advance_width(letters.map(letter)?)
    };
    words.chars().map(|letter| of(letter).map_or(1.0, f64::from)).sum::<f64>() * size
}
