//! Random draws as a function of what they are for, so that their order and the moment of a restart change nothing.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What a draw is for. Draws for different purposes are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Which photos are kept aside for validation and test; the index is the class.
    Split = 1,
    /// The order of the training photos in an epoch.
    Order = 2,
    /// How a photo is changed in an epoch; the index is the photo.
    Augmentation = 3,
    /// The picture of a synthetic set; the index is the picture.
    Picture = 4,
    /// How the photos of a batch are mixed; the index is the optimiser step.
    Mixing = 5,
}

/// A stream of random numbers that depends on its key only.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream for one purpose, epoch and index of a run with this seed.
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, index: u64) -> Self {
        let mut key = [0; 32];
        for (part, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, index]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The stream as a generator, for distributions.
    pub fn generator(&mut self) -> &mut impl RngCore {
        &mut self.0
    }

    /// A number in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number below `bound`, or 0 where the bound is 0.
    #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below the bound")]
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Brings the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_draw_does_not_depend_on_the_draws_before_it() {
        let forwards: Vec<u64> = (0..50).map(|i| Draws::new(7, Purpose::Augmentation, 3, i).bits()).collect();
        let mut backwards: Vec<u64> =
            (0..50).rev().map(|i| Draws::new(7, Purpose::Augmentation, 3, i).bits()).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let first = |seed, purpose, epoch, index| Draws::new(seed, purpose, epoch, index).bits();
        let base = first(1, Purpose::Order, 1, 1);
        for other in [
            first(2, Purpose::Order, 1, 1),
            first(1, Purpose::Split, 1, 1),
            first(1, Purpose::Order, 2, 1),
            first(1, Purpose::Order, 1, 2),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn unit_numbers_fill_the_interval_evenly() {
        let mut draws = Draws::new(0, Purpose::Picture, 0, 0);
        let mean = (0..10_000).map(|_| draws.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }

    proptest! {
        #[test]
        fn a_shuffle_loses_nothing(seed: u64, count in 0_usize..200) {
            let mut items: Vec<usize> = (0..count).collect();
            Draws::new(seed, Purpose::Order, 0, 0).shuffle(&mut items);
            items.sort_unstable();
            prop_assert_eq!(items, (0..count).collect::<Vec<_>>());
        }

        #[test]
        fn a_bound_is_kept(seed: u64, bound in 1_usize..1000) {
            prop_assert!(Draws::new(seed, Purpose::Order, 0, 0).below(bound) < bound);
        }
    }
}
