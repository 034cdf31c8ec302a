//! A seeded source of chance, and the pauses that are drawn from it.

use std::time::Duration;

use crate::Backoff;

/// `SplitMix64`: small, even enough for jitter, and the same on every machine.
#[derive(Debug)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The pause after this many early ends before this one.
    pub(super) fn pause(&mut self, backoff: &Backoff, early_ends: u32) -> Duration {
        let factor = 1_u32.checked_shl(early_ends).unwrap_or(u32::MAX);
        let bound = backoff.first.saturating_mul(factor).min(backoff.longest);
        if !backoff.jitter {
            return bound;
        }
        let bound_ns = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next() % bound_ns.saturating_add(1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_longest() {
        let backoff = Backoff { jitter: false, longest: Duration::from_secs(10), ..Backoff::default() };
        let mut chance = Chance::new(1);
        let pauses: Vec<u128> = (0..9).map(|early| chance.pause(&backoff, early).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        for early in [31, 32, 33, u32::MAX] {
            assert_eq!(chance.pause(&backoff, early), backoff.longest);
        }
    }

    #[test]
    fn full_jitter_fills_the_whole_range_and_repeats_with_its_seed() {
        let backoff = Backoff::default();
        let draw = |seed| -> Vec<Duration> {
            let mut chance = Chance::new(seed);
            (0..4000).map(|_| chance.pause(&backoff, 3)).collect()
        };
        let pauses = draw(7);
        assert_eq!(pauses, draw(7));
        assert_ne!(pauses, draw(8));
        let bound = Duration::from_millis(800);
        assert!(pauses.iter().all(|pause| *pause <= bound));
        for eighth in 0..8_u32 {
            let from = bound / 8 * eighth;
            let inside = pauses.iter().filter(|pause| (from..from + bound / 8).contains(*pause)).count();
            assert!((400..600).contains(&inside), "{inside} of 4000 in eighth {eighth}");
        }
    }
}
