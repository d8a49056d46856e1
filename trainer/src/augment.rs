//! Random changes of a training photo: one affine resampling, which also crops and brings to size, then torchvision's
//! `ColorJitter` factors.
//!
//! Drawing a change and applying it are apart, so that both are pure and a worker thread can do either in any order.

use anneal_api::{checkpoint::Preprocessing, hyperparameters::Augmentation};

use crate::rng::Draws;

/// One change of a photo.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Whether left and right change places.
    pub flip: bool,
    /// The motion that comes next.
    pub motion: Option<Motion>,
    /// The part that is kept then.
    pub crop: Option<Crop>,
    /// Changes of colour, in their order.
    pub colours: Vec<Colour>,
}

/// What torchvision's `affine` does: around the centre, with black where nothing is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Motion {
    /// Rotation, clockwise, in degrees.
    pub degrees: f64,
    /// Factor of the size.
    pub scale: f64,
    /// Shift to the right and down, as shares of the photo's side.
    pub shift: (f64, f64),
}

/// A part of a photo: its width and height, and its centre as seen from the photo's, as shares of the photo's side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crop {
    /// Width of the part.
    pub width: f64,
    /// Height of the part.
    pub height: f64,
    /// How far right of the photo's centre its own is.
    pub right: f64,
    /// How far below the photo's centre its own is.
    pub down: f64,
}

/// A change of colour with its factor; a factor of 1 (of 0 for the hue) changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Colour {
    /// `adjust_brightness` of torchvision.
    Brightness(f32),
    /// `adjust_contrast` of torchvision.
    Contrast(f32),
    /// `adjust_saturation` of torchvision.
    Saturation(f32),
    /// `adjust_hue` of torchvision.
    Hue(f32),
}

/// Draws a change.
#[expect(clippy::cast_possible_truncation, reason = "factors are applied in f32")]
pub fn draw(spec: &Augmentation, draws: &mut Draws) -> Change {
    let flip = draws.unit() < spec.horizontal_flip;
    let degrees = draws.between(-spec.rotation_degrees, spec.rotation_degrees);
    let shift = (draws.between(-spec.translate, spec.translate), draws.between(-spec.translate, spec.translate));
    let scale = draws.between(1.0 - spec.scale, 1.0 + spec.scale);
    let moves = spec.rotation_degrees > 0.0 || spec.translate > 0.0 || spec.scale > 0.0;

    let mut factor = |strength: f64| draws.between((1.0 - strength).max(0.0), 1.0 + strength) as f32;
    let mut colours = vec![
        (spec.brightness, Colour::Brightness(factor(spec.brightness))),
        (spec.contrast, Colour::Contrast(factor(spec.contrast))),
        (spec.saturation, Colour::Saturation(factor(spec.saturation))),
        (spec.hue, Colour::Hue(draws.between(-spec.hue, spec.hue) as f32)),
    ];
    draws.shuffle(&mut colours);
    let colours = colours.into_iter().filter(|(strength, _)| *strength > 0.0).map(|(_, colour)| colour).collect();
    let crop = (spec.crop_area < 1.0).then(|| Crop::draw(spec.crop_area, draws));
    Change { flip, motion: moves.then_some(Motion { degrees, scale, shift }), crop, colours }
}

/// The change that leaves a photo as it is.
pub fn none() -> Change {
    Change { flip: false, motion: None, crop: None, colours: Vec::new() }
}

impl Crop {
    /// As `RandomResizedCrop.get_params` of torchvision: an even share of the area from `least` on, an even logarithm of the
    /// aspect ratio, and the whole photo where ten draws do not fit into it.
    fn draw(least: f64, draws: &mut Draws) -> Self {
        let widest = (4.0_f64 / 3.0).ln();
        for _ in 0..10 {
            let area = draws.between(least, 1.0);
            let ratio = draws.between(-widest, widest).exp();
            let (width, height) = ((area * ratio).sqrt(), (area / ratio).sqrt());
            if width <= 1.0 && height <= 1.0 {
                let mut centre = |length: f64| (draws.unit() - 0.5) * (1.0 - length);
                return Self { width, height, right: centre(width), down: centre(height) };
            }
        }
        Self { width: 1.0, height: 1.0, right: 0.0, down: 0.0 }
    }
}

/// Where a pixel comes from: `(x, y)` as seen from the centre maps to `(a x + b y + c, d x + e y + f)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Affine {
    a: f64,
    b: f64,
    c: f64,
    d: f64,
    e: f64,
    f: f64,
}

impl Affine {
    /// The way back from a flip and a motion of a photo of `size` pixels.
    #[expect(clippy::cast_precision_loss, reason = "pixels are small numbers")]
    fn inverse_of(flip: bool, motion: Motion, size: usize) -> Self {
        let Motion { degrees, scale, shift } = motion;
        let (right, down) = (shift.0 * size as f64, shift.1 * size as f64);
        let (sin, cos) = degrees.to_radians().sin_cos();
        let mirror = if flip { -1.0 } else { 1.0 };
        let (a, b) = (mirror * cos / scale, mirror * sin / scale);
        let (d, e) = (-sin / scale, cos / scale);
        Self { a, b, c: -(a * right + b * down), d, e, f: -(d * right + e * down) }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f)
    }
}

/// Where `to` pixels in a row lie in a part of a row of `from` pixels, as seen from its centre. What would lie beyond the outermost
/// pixels of the part lies on them.
#[expect(clippy::cast_precision_loss, reason = "pixels are small numbers")]
fn positions(length: f64, middle: f64, from: usize, to: usize) -> Vec<f64> {
    let (from, to_middle) = (from as f64, (to as f64 - 1.0) / 2.0);
    let (step, last) = (length * from / to as f64, ((length * from - 1.0) / 2.0).max(0.0));
    (0..to).map(|at| ((at as f64 - to_middle) * step).clamp(-last, last) + middle * from).collect()
}

/// Applies a change to a square RGB photo of `from` pixels and writes the normalised result of `to` pixels, both as rows of
/// pixels of three channels.
pub fn apply(
    change: &Change,
    photo: &[u8],
    (from, to): (usize, usize),
    preprocessing: &Preprocessing,
    out: &mut [f32],
) {
    if !change.flip && change.motion.is_none() && change.crop.is_none() && from == to {
        out.iter_mut().zip(photo).for_each(|(to, from)| *to = f32::from(*from) / 255.0);
    } else {
        resample(change, photo, (from, to), out);
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

/// Bilinear sampling, without antialiasing; what lies outside of the photo is black.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "pixels are small numbers")]
fn resample(change: &Change, photo: &[u8], (size, to): (usize, usize), out: &mut [f32]) {
    const STILL: Motion = Motion { degrees: 0.0, scale: 1.0, shift: (0.0, 0.0) };
    const WHOLE: Crop = Crop { width: 1.0, height: 1.0, right: 0.0, down: 0.0 };
    let back = Affine::inverse_of(change.flip, change.motion.unwrap_or(STILL), size);
    let part = change.crop.unwrap_or(WHOLE);
    let (columns, rows) = (positions(part.width, part.right, size, to), positions(part.height, part.down, size, to));
    let centre = (size as f64 - 1.0) / 2.0;
    for (line, y) in out.chunks_exact_mut(to * 3).zip(rows) {
        for (pixel, x) in line.chunks_exact_mut(3).zip(&columns) {
            let (x, y) = back.at(*x, y);
            sample(photo, size, (x + centre) as f32, (y + centre) as f32, pixel);
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
            crop_area: 1.0,
            horizontal_flip: 0.0,
            rotation_degrees: 0.0,
            translate: 0.0,
            scale: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
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
        apply(change, photo, (SIZE, SIZE), &plain(), &mut out);
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
            prop_assert!(close(&applied(&draw(&still(), &mut draws()), &photo), &plain));
        }

        #[test]
        fn neutral_factors_change_nothing(seed: u64) {
            let photo = photo(seed);
            let neutral = Change {
                flip: false,
                motion: Some(Motion { degrees: 0.0, scale: 1.0, shift: (0.0, 0.0) }),
                crop: Some(Crop { width: 1.0, height: 1.0, right: 0.0, down: 0.0 }),
                colours: vec![Colour::Brightness(1.0), Colour::Contrast(1.0), Colour::Saturation(1.0), Colour::Hue(0.0)],
            };
            prop_assert!(close(&applied(&neutral, &photo), &applied(&none(), &photo)));
        }

        #[test]
        fn flipping_twice_gives_the_photo_back(seed: u64) {
            let photo = photo(seed);
            let flip = Change { flip: true, ..none() };
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
                crop_area: 1.0 - strength, horizontal_flip: 0.5, rotation_degrees: 180.0 * strength, translate: strength, scale: strength,
                brightness: strength, contrast: strength, saturation: strength, hue: strength,
                mixup: 0.0, cutmix: 0.0,
            };
            let change = draw(&spec, &mut Draws::new(seed, Purpose::Augmentation, 0, 0));
            prop_assert!(applied(&change, &photo(seed)).iter().all(|v| (-1e-6..=1.0 + 1e-6).contains(v)));
        }
    }

    proptest! {
        #[test]
        fn a_drawn_crop_lies_in_the_photo_and_keeps_the_area_that_it_must(seed: u64, least in 0.01..1.0) {
            let crop = Crop::draw(least, &mut Draws::new(seed, Purpose::Augmentation, 0, 0));
            prop_assert!(crop.width * crop.height >= least - 1e-9);
            prop_assert!(crop.right.abs() + crop.width / 2.0 <= 0.5 + 1e-9, "{:?}", crop);
            prop_assert!(crop.down.abs() + crop.height / 2.0 <= 0.5 + 1e-9, "{:?}", crop);
            let ratio = crop.width / crop.height;
            prop_assert!((0.75 - 1e-9..=4.0 / 3.0 + 1e-9).contains(&ratio), "{}", ratio);
        }
    }

    #[test]
    fn a_quarter_of_a_photo_brought_to_its_own_size_is_that_quarter() {
        let photo = photo(5);
        let quarter = Change { crop: Some(Crop { width: 0.5, height: 0.5, right: 0.25, down: -0.25 }), ..none() };
        let mut out = vec![0.0; SIZE * SIZE / 4 * 3];
        apply(&quarter, &photo, (SIZE, SIZE / 2), &plain(), &mut out);
        let whole = applied(&none(), &photo);
        for (row, line) in out.chunks_exact(SIZE / 2 * 3).enumerate() {
            let from = (row * SIZE + SIZE / 2) * 3;
            assert!(close(line, &whole[from..from + SIZE / 2 * 3]), "row {row}");
        }
    }

    #[test]
    fn a_flip_of_a_crop_shows_the_same_part_mirrored() {
        let photo = photo(6);
        let crop = Some(Crop { width: 0.5, height: 0.5, right: 0.25, down: 0.25 });
        // The part is of the changed photo: mirrored, its right half is the photo's left one.
        let flip = Change { flip: true, crop, ..none() };
        let mut out = vec![0.0; SIZE * SIZE / 4 * 3];
        apply(&flip, &photo, (SIZE, SIZE / 2), &plain(), &mut out);
        let whole = applied(&none(), &photo);
        for (row, line) in out.chunks_exact(SIZE / 2 * 3).enumerate() {
            let from = (row + SIZE / 2) * SIZE * 3;
            let mirrored: Vec<f32> =
                whole[from..from + SIZE / 2 * 3].chunks_exact(3).rev().flatten().copied().collect();
            assert!(close(line, &mirrored), "row {row}");
        }
    }

    #[test]
    fn a_shift_moves_the_photo_and_leaves_black_behind() {
        let shift = Change { motion: Some(Motion { degrees: 0.0, scale: 1.0, shift: (0.25, 0.0) }), ..none() };
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
