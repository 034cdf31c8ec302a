//! A small seeded source of chance for picks and jitter; the same on every machine.

use std::hash::{BuildHasher, Hasher, RandomState};

/// `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Seeded {
    state: u64,
}

impl Seeded {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0..bound`; 0 for a bound of 0. The bias of the multiplication is below `bound / 2^64`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.next()) * u128::try_from(bound).unwrap_or(0);
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// Evenly from `[0, 1)`.
    pub(crate) fn fraction(&mut self) -> f64 {
        let high = u32::try_from(self.next() >> 32).unwrap_or(0);
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}

/// A seed that differs from process to process and from call to call.
pub(crate) fn drawn_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_repeat_with_their_seed() {
        let draw = |seed| -> Vec<usize> {
            let mut chance = Seeded::new(seed);
            (0..8000).map(|_| chance.below(8)).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for value in 0..8 {
            let count = draw(7).iter().filter(|drawn| **drawn == value).count();
            assert!((850..1150).contains(&count), "{value} was drawn {count} times of 8000");
        }
        let mut chance = Seeded::new(7);
        assert!((0..1000).map(|_| chance.fraction()).all(|fraction| (0.0..1.0).contains(&fraction)));
        assert_eq!(chance.below(0), 0);
    }
}
