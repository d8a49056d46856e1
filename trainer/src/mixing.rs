//! Mixup and cutmix: each photo of a batch takes something of its neighbour, and so does its label.
//!
//! As torchvision's `v2.MixUp` and `v2.CutMix`, the neighbour is the photo before, and one draw serves the whole batch.

use anneal_api::hyperparameters::Augmentation;
use rand_distr::{Beta, Distribution as _};
use tch::{TchError, Tensor};

use crate::rng::Draws;

/// What the photos of a batch take of their neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Every pixel is a mean of both.
    Blend {
        /// Share of the photo's own.
        own: f64,
    },
    /// A rectangle of the neighbour covers the photo.
    Paste {
        /// First row, and the row after the last.
        rows: (i64, i64),
        /// First column, and the column after the last.
        columns: (i64, i64),
        /// Share of the photo's own area.
        own: f64,
    },
}

/// Draws how a batch of photos of `side` pixels is mixed, if it is. Where both ways are asked for, each is as likely.
pub fn draw(spec: &Augmentation, side: i64, draws: &mut Draws) -> Option<Mix> {
    let cut = match (spec.mixup > 0.0, spec.cutmix > 0.0) {
        (false, false) => return None,
        (true, true) => draws.below(2) == 1,
        (_, cut) => cut,
    };
    let alpha = if cut { spec.cutmix } else { spec.mixup };
    let own = Beta::new(alpha, alpha).ok()?.sample(draws.generator());
    Some(if cut { paste(own, side, draws) } else { Mix::Blend { own } })
}

/// A rectangle around any pixel, of `1 - own` of the area where it does not reach over the edge.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "pixels are small numbers")]
fn paste(own: f64, side: i64, draws: &mut Draws) -> Mix {
    let half = (0.5 * (1.0 - own).sqrt() * side as f64) as i64;
    let mut span = || {
        let middle = i64::try_from(draws.below(usize::try_from(side).unwrap_or_default())).unwrap_or_default();
        ((middle - half).max(0), (middle + half).min(side))
    };
    let (columns, rows) = (span(), span());
    let area = ((rows.1 - rows.0) * (columns.1 - columns.0)) as f64;
    Mix::Paste { rows, columns, own: 1.0 - area / (side * side) as f64 }
}

impl Mix {
    /// Share of a photo's own label; the rest is its neighbour's.
    pub fn own(&self) -> f64 {
        match *self {
            Self::Blend { own } | Self::Paste { own, .. } => own,
        }
    }

    /// The mixed photos, [N, 3, H, W], in the layout of the given ones.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn images(&self, images: &Tensor) -> Result<Tensor, TchError> {
        let others = neighbours(images)?;
        match *self {
            Self::Blend { own } => others.f_lerp(images, own),
            Self::Paste { rows, columns, .. } => {
                let part = |of: &Tensor| {
                    of.f_narrow(2, rows.0, rows.1 - rows.0)?.f_narrow(3, columns.0, columns.1 - columns.0)
                };
                let mut mixed = images.f_empty_like()?;
                mixed.f_copy_(images)?;
                part(&mixed)?.f_copy_(&part(&others)?)?;
                Ok(mixed)
            }
        }
    }
}

/// What stands before each item of a batch; before the first, the last.
///
/// # Errors
/// When libtorch fails.
pub fn neighbours(batch: &Tensor) -> Result<Tensor, TchError> {
    batch.f_roll([1], [0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Purpose;

    const SIDE: i64 = 8;

    fn draws(seed: u64) -> Draws {
        Draws::new(seed, Purpose::Mixing, 0, 0)
    }

    fn strengths(mixup: f64, cutmix: f64) -> Augmentation {
        Augmentation { mixup, cutmix, ..Augmentation::default() }
    }

    /// Photos of one shade each: 0, 1, 2.
    fn shades() -> Tensor {
        let photo = |shade: f32| vec![shade; usize::try_from(SIDE * SIDE * 3).expect("small")];
        let rows: Vec<f32> = (0_u8..3).flat_map(|shade| photo(f32::from(shade))).collect();
        Tensor::from_slice(&rows).view([3, SIDE, SIDE, 3]).permute([0, 3, 1, 2])
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_photo_is_its_share_of_the_label(seed: u64, alpha in 0.05..4.0, both: bool) {
            let spec = strengths(if both { alpha } else { 0.0 }, alpha);
            let mix = draw(&spec, SIDE, &mut draws(seed)).expect("a mix");
            let mixed = mix.images(&shades()).expect("images");
            // The second photo is of shade 1 and its neighbour of shade 0.
            let mean = mixed.get(1).mean(tch::Kind::Double).double_value(&[]);
            prop_assert!((mean - mix.own()).abs() < 1e-5, "{mean} {mix:?}");
            prop_assert!((0.0..=1.0).contains(&mix.own()));
        }
    }

    #[test]
    fn nothing_is_mixed_unless_asked_for() {
        assert_eq!(draw(&Augmentation::default(), SIDE, &mut draws(0)), None);
    }

    #[test]
    fn where_both_are_asked_for_both_come() {
        let blends = (0..200)
            .filter(|seed| matches!(draw(&strengths(0.2, 1.0), SIDE, &mut draws(*seed)), Some(Mix::Blend { .. })));
        assert!((60..140).contains(&blends.count()));
    }

    #[test]
    fn the_neighbour_of_the_first_is_the_last_and_channels_stay_last() {
        let mixed = Mix::Blend { own: 0.0 }.images(&shades()).expect("images");
        assert!((mixed.get(0).mean(tch::Kind::Double).double_value(&[]) - 2.0).abs() < 1e-6);
        let pasted = Mix::Paste { rows: (0, 2), columns: (0, 2), own: 0.0 }.images(&shades()).expect("images");
        for images in [mixed, pasted] {
            assert_eq!(images.stride(), shades().stride());
        }
    }
}
