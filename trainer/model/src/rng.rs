//! Random draws as a function of what they are for: nothing here has a state that a resumed run would have to restore.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// What draws are for. The trainer has further purposes, which are smaller numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// First values of parameters; the index is the parameter's place in the network.
    Initialisation = 101,
    /// Dropout masks; the index is the optimiser step.
    Dropout = 102,
}

/// A `ChaCha8` stream that depends on `seed`, `purpose` and `index` only.
pub(crate) fn draws(seed: u64, purpose: Purpose, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}

/// A draw from [0, 1), on a grid of 2^-24, which is as fine as f32 represents evenly.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn unit(rng: &mut impl RngCore) -> f32 {
    (rng.next_u32() >> 8) as f32 / 16_777_216.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_purpose_and_index_only() {
        let first = |seed, purpose, index| draws(seed, purpose, index).next_u64();
        let one = first(7, Purpose::Dropout, 3);
        assert_eq!(one, first(7, Purpose::Dropout, 3));
        for other in
            [first(8, Purpose::Dropout, 3), first(7, Purpose::Initialisation, 3), first(7, Purpose::Dropout, 4)]
        {
            assert_ne!(one, other);
        }
    }
}
