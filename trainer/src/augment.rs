//! Random changes of a training photo: one affine resampling, then torchvision's `ColorJitter` factors.
//!
//! Drawing a change and applying it are apart, so that both are pure and a worker thread can do either in any order.

use anneal_api::{checkpoint::Preprocessing, hyperparameters::Augmentation};

use crate::rng::Draws;

/// One drawn change of a photo.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    geometry: Option<Affine>,
    colours: Vec<Colour>,
}

/// Where an output pixel comes from: `(x, y)` around the centre maps to `(a x + b y + c, d x + e y + f)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    a: f32,
    b: f32,
    c: f32,
    d: f32,
    e: f32,
    f: f32,
}

/// A change of colour with its factor; a factor of 1 (of 0 for the hue) changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Colour {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    Hue(f32),
}

/// Draws a change for a square photo of `size` pixels.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "pixels are small numbers")]
pub fn draw(spec: &Augmentation, size: usize, draws: &mut Draws) -> Change {
    let flip = draws.unit() < spec.horizontal_flip;
    let angle = draws.between(-spec.rotation_degrees, spec.rotation_degrees).to_radians();
    let mut shift = || draws.between(-spec.translate, spec.translate) * size as f64;
    let (right, down) = (shift(), shift());
    let scale = draws.between(1.0 - spec.scale, 1.0 + spec.scale);
    let moves = flip || spec.rotation_degrees > 0.0 || spec.translate > 0.0 || spec.scale > 0.0;

    let mut factor = |strength: f64| draws.between((1.0 - strength).max(0.0), 1.0 + strength) as f32;
    let mut colours = vec![
        (spec.brightness, Colour::Brightness(factor(spec.brightness))),
        (spec.contrast, Colour::Contrast(factor(spec.contrast))),
        (spec.saturation, Colour::Saturation(factor(spec.saturation))),
        (spec.hue, Colour::Hue(draws.between(-spec.hue, spec.hue) as f32)),
    ];
    draws.shuffle(&mut colours);
    let colours = colours.into_iter().filter(|(strength, _)| *strength > 0.0).map(|(_, colour)| colour).collect();
    Change { geometry: moves.then(|| Affine::inverse_of(flip, angle, scale, (right, down))), colours }
}

/// The change that leaves a photo as it is.
pub fn none() -> Change {
    Change { geometry: None, colours: Vec::new() }
}

impl Affine {
    /// The way back from flipping, rotating, scaling and shifting, in this order, around the centre.
    #[expect(clippy::cast_possible_truncation, reason = "computed in f64 for accuracy, applied in f32")]
    fn inverse_of(flip: bool, angle: f64, scale: f64, (right, down): (f64, f64)) -> Self {
        let (sin, cos) = angle.sin_cos();
        let mirror = if flip { -1.0 } else { 1.0 };
        let (a, b) = (mirror * cos / scale, mirror * sin / scale);
        let (d, e) = (-sin / scale, cos / scale);
        Self {
            a: a as f32,
            b: b as f32,
            c: -(a * right + b * down) as f32,
            d: d as f32,
            e: e as f32,
            f: -(d * right + e * down) as f32,
        }
    }
}

/// Applies a change to a square RGB photo and writes the normalised result, both as rows of pixels of three channels.
pub fn apply(change: &Change, photo: &[u8], size: usize, preprocessing: &Preprocessing, out: &mut [f32]) {
    match &change.geometry {
        Some(affine) => resample(affine, photo, size, out),
        None => out.iter_mut().zip(photo).for_each(|(to, from)| *to = f32::from(*from) / 255.0),
    }
    for colour in &change.colours {
        recolour(*colour, out);
    }
    normalise(preprocessing, out);
}

fn normalise(preprocessing: &Preprocessing, pixels: &mut [f32]) {
    let scale = preprocessing.std.map(f32::recip);
    for pixel in pixels.chunks_exact_mut(3) {
        for channel in 0..3 {
            pixel[channel] = (pixel[channel] - preprocessing.mean[channel]) * scale[channel];
        }
    }
}

/// Bilinear sampling; what lies outside of the photo is black.
#[expect(clippy::cast_precision_loss, reason = "pixels are small numbers")]
fn resample(affine: &Affine, photo: &[u8], size: usize, out: &mut [f32]) {
    let centre = (size as f32 - 1.0) / 2.0;
    for (row, line) in out.chunks_exact_mut(size * 3).enumerate() {
        let y = row as f32 - centre;
        let (from_x, from_y) = (affine.b * y + affine.c + centre, affine.e * y + affine.f + centre);
        for (column, pixel) in line.chunks_exact_mut(3).enumerate() {
            let x = column as f32 - centre;
            sample(photo, size, affine.a * x + from_x, affine.d * x + from_y, pixel);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "checked against the photo's bounds"
)]
fn sample(photo: &[u8], size: usize, x: f32, y: f32, pixel: &mut [f32]) {
    let (left, top) = (x.floor(), y.floor());
    let (right_share, bottom_share) = (x - left, y - top);
    let (left, top) = (left as i64, top as i64);
    let last = size as i64 - 1;
    let weights = [
        (1.0 - right_share) * (1.0 - bottom_share),
        right_share * (1.0 - bottom_share),
        (1.0 - right_share) * bottom_share,
        right_share * bottom_share,
    ];
    if left >= 0 && top >= 0 && left < last && top < last {
        let upper = (top as usize * size + left as usize) * 3;
        let lower = upper + size * 3;
        let (above, below) = (&photo[upper..upper + 6], &photo[lower..lower + 6]);
        for channel in 0..3 {
            let sum = weights[0] * f32::from(above[channel])
                + weights[1] * f32::from(above[channel + 3])
                + weights[2] * f32::from(below[channel])
                + weights[3] * f32::from(below[channel + 3]);
            pixel[channel] = sum / 255.0;
        }
        return;
    }
    pixel.fill(0.0);
    for (weight, (column, row)) in
        weights.into_iter().zip([(left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)])
    {
        if (0..=last).contains(&column) && (0..=last).contains(&row) {
            let at = (row as usize * size + column as usize) * 3;
            for channel in 0..3 {
                pixel[channel] += weight * f32::from(photo[at + channel]) / 255.0;
            }
        }
    }
}

fn recolour(colour: Colour, pixels: &mut [f32]) {
    match colour {
        Colour::Brightness(factor) => pixels.iter_mut().for_each(|value| *value = (*value * factor).clamp(0.0, 1.0)),
        Colour::Contrast(factor) => {
            let mean = mean_grey(pixels);
            for value in pixels {
                *value = blend(*value, mean, factor);
            }
        }
        Colour::Saturation(factor) => {
            for pixel in pixels.chunks_exact_mut(3) {
                let grey = grey(pixel);
                for value in pixel {
                    *value = blend(*value, grey, factor);
                }
            }
        }
        Colour::Hue(shift) => pixels.chunks_exact_mut(3).for_each(|pixel| turn_hue(pixel, shift)),
    }
}

fn blend(value: f32, other: f32, factor: f32) -> f32 {
    (value * factor + other * (1.0 - factor)).clamp(0.0, 1.0)
}

/// Brightness as the eye sees it, with torchvision's weights.
fn grey(pixel: &[f32]) -> f32 {
    0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

#[expect(clippy::cast_precision_loss, reason = "pixels are small numbers")]
fn mean_grey(pixels: &[f32]) -> f32 {
    pixels.chunks_exact(3).map(grey).sum::<f32>() / (pixels.len() / 3) as f32
}

/// Turns the hue by a share of the colour circle; value and saturation of the HSV cone stay.
fn turn_hue(pixel: &mut [f32], shift: f32) {
    let (red, green, blue) = (pixel[0], pixel[1], pixel[2]);
    let value = red.max(green).max(blue);
    let chroma = value - red.min(green).min(blue);
    if chroma <= 0.0 {
        return;
    }
    let sixths = if red >= green && red >= blue {
        (green - blue) / chroma
    } else if green >= blue {
        (blue - red) / chroma + 2.0
    } else {
        (red - green) / chroma + 4.0
    };
    // Offsets 5, 3 and 1 are where red, green and blue peak on the circle.
    for (channel, offset) in pixel.iter_mut().zip([5.0, 3.0, 1.0]) {
        let mut around = sixths + shift * 6.0 + offset;
        around -= (around / 6.0).floor() * 6.0;
        *channel = value - chroma * around.min(4.0 - around).clamp(0.0, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Purpose;

    const SIZE: usize = 8;

    fn still() -> Augmentation {
        Augmentation {
            horizontal_flip: 0.0,
            rotation_degrees: 0.0,
            translate: 0.0,
            scale: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
        }
    }

    /// No mean and no scale: what comes out is in [0, 1].
    fn plain() -> Preprocessing {
        Preprocessing { mean: [0.0; 3], std: [1.0; 3], ..Preprocessing::imagenet(8) }
    }

    fn photo(seed: u64) -> Vec<u8> {
        let mut draws = Draws::new(seed, Purpose::Picture, 0, 0);
        (0..SIZE * SIZE * 3).map(|_| u8::try_from(draws.below(256)).expect("a byte")).collect()
    }

    fn applied(change: &Change, photo: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; photo.len()];
        apply(change, photo, SIZE, &plain(), &mut out);
        out
    }

    fn close(left: &[f32], right: &[f32]) -> bool {
        left.iter().zip(right).all(|(l, r)| (l - r).abs() < 1e-4)
    }

    fn draws() -> Draws {
        Draws::new(1, Purpose::Augmentation, 0, 0)
    }

    proptest! {
        #[test]
        fn zero_strengths_change_nothing(seed: u64) {
            let photo = photo(seed);
            let plain: Vec<f32> = photo.iter().map(|v| f32::from(*v) / 255.0).collect();
            prop_assert!(close(&applied(&draw(&still(), SIZE, &mut draws()), &photo), &plain));
        }

        #[test]
        fn neutral_factors_change_nothing(seed: u64) {
            let photo = photo(seed);
            let neutral = Change {
                geometry: Some(Affine::inverse_of(false, 0.0, 1.0, (0.0, 0.0))),
                colours: vec![Colour::Brightness(1.0), Colour::Contrast(1.0), Colour::Saturation(1.0), Colour::Hue(0.0)],
            };
            prop_assert!(close(&applied(&neutral, &photo), &applied(&none(), &photo)));
        }

        #[test]
        fn flipping_twice_gives_the_photo_back(seed: u64) {
            let photo = photo(seed);
            let flip = Change { geometry: Some(Affine::inverse_of(true, 0.0, 1.0, (0.0, 0.0))), colours: Vec::new() };
            let once: Vec<u8> = applied(&flip, &photo)
                .into_iter()
                .map(|v| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in [0, 255]")]
                    let byte = (v * 255.0).round() as u8;
                    byte
                })
                .collect();
            prop_assert_ne!(&once, &photo);
            prop_assert!(close(&applied(&flip, &once), &applied(&none(), &photo)));
        }

        #[test]
        fn whatever_is_drawn_stays_a_photo(seed: u64, strength in 0.0..0.5) {
            let spec = Augmentation {
                horizontal_flip: 0.5, rotation_degrees: 180.0 * strength, translate: strength, scale: strength,
                brightness: strength, contrast: strength, saturation: strength, hue: strength,
            };
            let change = draw(&spec, SIZE, &mut Draws::new(seed, Purpose::Augmentation, 0, 0));
            prop_assert!(applied(&change, &photo(seed)).iter().all(|v| (-1e-6..=1.0 + 1e-6).contains(v)));
        }
    }

    #[test]
    fn a_shift_moves_the_photo_and_leaves_black_behind() {
        let shift = Change { geometry: Some(Affine::inverse_of(false, 0.0, 1.0, (2.0, 0.0))), colours: Vec::new() };
        let photo = photo(3);
        let (before, after) = (applied(&none(), &photo), applied(&shift, &photo));
        assert!(after[..6].iter().all(|v| v.abs() < 1e-6));
        assert!(close(&after[6..SIZE * 3], &before[..(SIZE - 2) * 3]));
    }

    #[test]
    fn a_third_of_the_circle_turns_red_into_green() {
        let mut pixel = [0.8, 0.2, 0.2];
        turn_hue(&mut pixel, 1.0 / 3.0);
        assert!(close(&pixel, &[0.2, 0.8, 0.2]), "{pixel:?}");
    }
}
