//! A dataset that needs no download: drawn faces of cats and dogs in random places, sizes and colours, with noise.
//!
//! A cat has a round face with two pointed ears on top; a dog has a long face with ears that hang at its sides. Colours
//! and backgrounds are drawn alike for both, so only the figure tells them apart.

use std::collections::BTreeSet;

use anneal_api::dataset::Synthetic;
use image::{Rgb, RgbImage};

use super::listing::{Listing, Photo, Place};
use crate::rng::{Draws, Purpose};

/// Raised whenever the same parameters give other pictures, since it is part of the dataset's digest.
pub const GENERATOR_VERSION: u32 = 1;

/// The classes, sorted.
pub const CLASSES: [&str; 2] = ["cat", "dog"];

type Colour = [f64; 3];

/// The figure of one picture: where it is and which colours it has.
struct Figure {
    cat: bool,
    centre: (f64, f64),
    radius: f64,
    sin: f64,
    cos: f64,
    fur: Colour,
    ear: Colour,
    dark: Colour,
}

/// Lists the pictures of a set in folders by class.
pub fn list(set: Synthetic) -> Listing {
    let photo =
        |index| Photo { path: format!("{}/{index:06}.png", CLASSES[label(index)]), place: Place::Drawn { set, index } };
    Listing { photos: (0..set.images).map(photo).collect(), folders: BTreeSet::new() }
}

/// What the set's digest is made of.
pub fn identity(set: Synthetic) -> String {
    format!("synthetic v{GENERATOR_VERSION} images={} size={} seed={}", set.images, set.size, set.seed)
}

/// Position in [`CLASSES`] of a picture's class.
pub fn label(index: u32) -> usize {
    usize::from(index % 2 == 1)
}

/// Draws one picture of `size` x `size` pixels.
pub fn image(set: Synthetic, index: u32) -> RgbImage {
    let mut draws = Draws::new(set.seed, Purpose::Picture, 0, u64::from(index));
    let size = f64::from(set.size);
    let (sky, ground) = (colour(&mut draws), colour(&mut draws));
    let figure = Figure::draw(label(index) == 0, size, contrast_with(&sky, &ground, &mut draws), &mut draws);
    let noise = draws.between(0.02, 0.08);
    RgbImage::from_fn(set.size, set.size, |column, row| {
        let behind = || mix(&sky, &ground, f64::from(row) / size);
        let value = figure.at(f64::from(column), f64::from(row)).unwrap_or_else(behind);
        Rgb(value.map(|channel| byte(channel + draws.between(-noise, noise))))
    })
}

impl Figure {
    fn draw(cat: bool, size: f64, fur: Colour, draws: &mut Draws) -> Self {
        let radius = size * draws.between(0.20, 0.28);
        let angle = draws.between(-0.25, 0.25);
        let mut place = || draws.between(1.7 * radius, size - 1.7 * radius);
        let centre = (place(), place());
        let shade = draws.between(0.45, 0.7);
        Self {
            cat,
            centre,
            radius,
            sin: angle.sin(),
            cos: angle.cos(),
            fur,
            ear: fur.map(|c| c * shade),
            dark: [0.05; 3],
        }
    }

    /// The figure's colour at a pixel, or `None` where the background shows.
    fn at(&self, column: f64, row: f64) -> Option<Colour> {
        let (x, y) = ((column - self.centre.0) / self.radius, (row - self.centre.1) / self.radius);
        let (u, v) = (x * self.cos + y * self.sin, y * self.cos - x * self.sin);
        // The figures are the same left and right.
        let side = u.abs();
        if self.cat { self.cat_at(side, v) } else { self.dog_at(side, v) }
    }

    fn cat_at(&self, side: f64, v: f64) -> Option<Colour> {
        let eye = within((side - 0.4, v + 0.1), (0.16, 0.12));
        let nose = (0.25..0.42).contains(&v) && side < 0.42 - v;
        let ear = (-1.6..-0.4).contains(&v) && (side - 0.68).abs() < (v + 1.6) * 0.4;
        let face = within((side, v), (1.0, 0.9));
        paint(&[(eye || nose, &self.dark), (face, &self.fur), (ear, &self.ear)])
    }

    fn dog_at(&self, side: f64, v: f64) -> Option<Colour> {
        let eye = within((side - 0.28, v + 0.35), (0.12, 0.12));
        let nose = within((side, v - 0.55), (0.3, 0.2));
        let ear = within((side - 0.85, v - 0.05), (0.32, 0.85));
        let face = within((side, v), (0.72, 1.25));
        paint(&[(eye || nose, &self.dark), (ear, &self.ear), (face, &self.fur)])
    }
}

/// The colour of the first layer that covers the point.
fn paint(layers: &[(bool, &Colour)]) -> Option<Colour> {
    layers.iter().find(|(covers, _)| *covers).map(|(_, colour)| **colour)
}

fn within((x, y): (f64, f64), (width, height): (f64, f64)) -> bool {
    (x / width).powi(2) + (y / height).powi(2) < 1.0
}

fn colour(draws: &mut Draws) -> Colour {
    [(); 3].map(|()| draws.between(0.1, 0.95))
}

/// A colour that can be told from both others.
fn contrast_with(one: &Colour, other: &Colour, draws: &mut Draws) -> Colour {
    let distance = |a: &Colour, b: &Colour| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
    let mut best = colour(draws);
    // The best of eight is far enough nearly always, and the count of draws stays fixed.
    for _ in 0..7 {
        let next = colour(draws);
        let worth = |candidate: &Colour| distance(candidate, one).min(distance(candidate, other));
        if worth(&next) > worth(&best) {
            best = next;
        }
    }
    best
}

fn mix(one: &Colour, other: &Colour, share: f64) -> Colour {
    [0, 1, 2].map(|channel| one[channel] * (1.0 - share) + other[channel] * share)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte's range")]
fn byte(channel: f64) -> u8 {
    (channel.clamp(0.0, 1.0) * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: Synthetic = Synthetic { images: 20, size: 32, seed: 5 };

    #[test]
    fn a_picture_depends_on_its_number_and_the_seed_only() {
        assert_eq!(image(SET, 3), image(SET, 3));
        assert_ne!(image(SET, 3), image(SET, 5));
        assert_ne!(image(SET, 3), image(Synthetic { seed: 6, ..SET }, 3));
    }

    #[test]
    fn both_classes_have_as_many_pictures() {
        let listing = list(SET);
        let cats = listing.photos.iter().filter(|photo| photo.path.starts_with("cat/")).count();
        assert_eq!((cats, listing.photos.len()), (10, 20));
    }

    #[test]
    fn the_mean_colour_does_not_tell_the_class() {
        let set = Synthetic { images: 400, ..SET };
        let mean = |class: usize| {
            let pictures: Vec<u32> = (0..set.images).filter(|index| label(*index) == class).collect();
            let sum: f64 = pictures.iter().flat_map(|index| image(set, *index).into_raw()).map(f64::from).sum();
            sum / f64::from(set.images / 2) / f64::from(set.size * set.size * 3)
        };
        assert!((mean(0) - mean(1)).abs() < 12.0, "{} {}", mean(0), mean(1));
    }
}
