//! Who of several gets the next piece of work.

use serde::{Deserialize, Serialize};

use crate::seeded::Seeded;

/// How one of several is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// Whoever has least to do; among equals the one that was picked longest ago.
    LeastLoaded,
    /// Anyone.
    Random,
    /// The less loaded of two that are drawn: nearly as even as the least loaded of all, without looking at all
    /// (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
    PowerOfTwo,
}

/// Picks, and remembers what it needs for the next pick.
#[derive(Debug, Clone)]
pub struct Picker {
    strategy: Strategy,
    chance: Seeded,
    /// Key of the last one picked.
    last: Option<u64>,
}

impl Picker {
    /// A picker whose draws are decided by the seed.
    #[must_use]
    pub const fn new(strategy: Strategy, seed: u64) -> Self {
        Self { strategy, chance: Seeded::new(seed), last: None }
    }

    /// Picks one of the candidates, each a key and its load, in ascending order of the keys; answers its place.
    pub fn pick(&mut self, candidates: &[(u64, usize)]) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        let place = match self.strategy {
            Strategy::RoundRobin => self.after_last(candidates),
            Strategy::LeastLoaded => self.least_loaded(candidates),
            Strategy::Random => self.chance.below(candidates.len()),
            Strategy::PowerOfTwo => self.better_of_two(candidates),
        };
        self.last = candidates.get(place).map(|(key, _)| *key);
        Some(place)
    }

    /// By key, so that members that come and go do not let others have two turns.
    fn after_last(&self, candidates: &[(u64, usize)]) -> usize {
        let Some(last) = self.last else { return 0 };
        let next = candidates.partition_point(|(key, _)| *key <= last);
        if next < candidates.len() { next } else { 0 }
    }

    fn least_loaded(&self, candidates: &[(u64, usize)]) -> usize {
        let first = self.after_last(candidates);
        let places = (first..candidates.len()).chain(0..first);
        places.min_by_key(|place| candidates[*place].1).unwrap_or(0)
    }

    fn better_of_two(&mut self, candidates: &[(u64, usize)]) -> usize {
        let one = self.chance.below(candidates.len());
        if candidates.len() == 1 {
            return one;
        }
        // drawn from the others, so that two different ones are compared
        let skipping = self.chance.below(candidates.len() - 1);
        let other = if skipping < one { skipping } else { skipping + 1 };
        if candidates[other].1 < candidates[one].1 { other } else { one }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Picker, Strategy};

    /// Throws as many balls as asked for into the bins, none of them ever taken out; answers the loads.
    fn throw(strategy: Strategy, seed: u64, bins: usize, balls: usize) -> Vec<usize> {
        let mut picker = Picker::new(strategy, seed);
        let mut candidates: Vec<(u64, usize)> = (0..bins as u64).map(|key| (key, 0)).collect();
        for _ in 0..balls {
            let place = picker.pick(&candidates).unwrap();
            candidates[place].1 += 1;
        }
        candidates.into_iter().map(|(_, load)| load).collect()
    }

    fn spread(loads: &[usize]) -> usize {
        loads.iter().max().unwrap() - loads.iter().min().unwrap()
    }

    proptest! {
        #[test]
        fn round_robin_and_least_loaded_never_differ_by_more_than_one(
            seed: u64, bins in 1_usize..40, balls in 0_usize..400,
        ) {
            prop_assert!(spread(&throw(Strategy::RoundRobin, seed, bins, balls)) <= 1);
            prop_assert!(spread(&throw(Strategy::LeastLoaded, seed, bins, balls)) <= 1);
        }

        #[test]
        fn round_robin_gives_each_that_stays_its_turn_before_anyone_has_two(
            steps in prop::collection::vec(prop::collection::btree_set(0_u64..12, 1..12), 1..200),
        ) {
            let mut picker = Picker::new(Strategy::RoundRobin, 0);
            let mut picked_since: Vec<Vec<u64>> = vec![Vec::new(); 12];
            for present in steps {
                let candidates: Vec<(u64, usize)> = present.iter().map(|key| (*key, 0)).collect();
                let picked = candidates[picker.pick(&candidates).unwrap()].0;
                for key in 0..12_u64 {
                    let seen = &mut picked_since[usize::try_from(key).unwrap()];
                    if !present.contains(&key) || key == picked {
                        seen.clear();
                        continue;
                    }
                    prop_assert!(!seen.contains(&picked), "{picked} had two turns while {key} waited");
                    seen.push(picked);
                }
            }
        }

        #[test]
        fn two_choices_beat_one_on_the_same_seed(seed: u64) {
            // with m balls in n bins the fullest has about m/n + sqrt(2 m/n ln n) at random, here 21, and about
            // m/n + ln ln n / ln 2 with two choices, here 13, the rest being a constant
            let (bins, balls) = (500, 5_000);
            let random = *throw(Strategy::Random, seed, bins, balls).iter().max().unwrap();
            let two = *throw(Strategy::PowerOfTwo, seed, bins, balls).iter().max().unwrap();
            prop_assert!(two < random, "two choices {two}, random {random}");
            prop_assert!(two <= 14, "the fullest bin has {two}");
        }
    }

    #[test]
    fn nobody_can_be_picked_from_nobody() {
        for strategy in [Strategy::RoundRobin, Strategy::LeastLoaded, Strategy::Random, Strategy::PowerOfTwo] {
            assert_eq!(Picker::new(strategy, 1).pick(&[]), None);
            assert_eq!(Picker::new(strategy, 1).pick(&[(9, 3)]), Some(0));
        }
    }
}
