//! Allocate: the draw of a decision, exact in its probabilities and the same every time for the same decision id.

use uuid::Uuid;

/// How a draw came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// Index of the pick.
    pub chosen: usize,
    /// Share of exploration.
    pub epsilon: f64,
    /// Whether the pick was drawn at random rather than the best.
    pub explored: bool,
    /// Probability of each candidate, 0 for one that is not eligible; they add up to 1.
    pub probabilities: Vec<f64>,
}

/// Epsilon-greedy over totals; a candidate without a total is not eligible. None if nobody is.
///
/// With probability `1 - epsilon` the best total (the first of equals) is taken, otherwise any eligible one with equal
/// chances, the best included; so the best has `1 - epsilon + epsilon / k` and each other `epsilon / k`.
#[must_use]
pub fn allocate(decision: Uuid, totals: &[Option<f64>], epsilon: f64) -> Option<Allocation> {
    let eligible: Vec<(usize, f64)> =
        totals.iter().enumerate().filter_map(|(index, total)| total.map(|total| (index, total))).collect();
    let &(first, _) = eligible.first()?;
    let (best, _) = eligible
        .iter()
        .skip(1)
        .fold((first, eligible[0].1), |best, &(index, total)| if total > best.1 { (index, total) } else { best });
    #[expect(clippy::cast_precision_loss, reason = "candidates are few")]
    let count = eligible.len() as f64;
    let mut probabilities = vec![0.0; totals.len()];
    for &(index, _) in &eligible {
        probabilities[index] = epsilon / count;
    }
    probabilities[best] += 1.0 - epsilon;
    let [explore, among] = draws(decision);
    let explored = explore < epsilon;
    let chosen = if explored {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the product is in 0..count")]
        let place = (among * count) as usize;
        eligible[place.min(eligible.len() - 1)].0
    } else {
        best
    };
    Some(Allocation { chosen, epsilon, explored, probabilities })
}

/// Two numbers in 0..1 that depend on the id alone: SplitMix64 (Steele, Lea and Flood 2014) seeded with both halves of
/// the id, 53 bits each.
#[must_use]
pub fn draws(decision: Uuid) -> [f64; 2] {
    let (high, low) = decision.as_u64_pair();
    let mut state = high ^ low.rotate_left(32);
    [(); 2].map(|()| {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let number = (splitmix64(&mut state) >> 11) as f64;
        number / (1_u64 << 53) as f64
    })
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn generator_gives_the_published_sequence() {
        let mut state = 1_234_567;
        let numbers = [(); 3].map(|()| splitmix64(&mut state));
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn nobody_eligible_means_no_allocation() {
        assert_eq!(allocate(Uuid::nil(), &[], 0.5), None);
        assert_eq!(allocate(Uuid::nil(), &[None, None], 0.5), None);
    }

    #[test]
    fn best_is_taken_without_exploration_and_the_first_of_equals() {
        let taken = |totals: &[Option<f64>]| allocate(Uuid::from_u128(7), totals, 0.0).unwrap().chosen;
        assert_eq!(taken(&[Some(0.1), Some(0.9), Some(0.9)]), 1);
        assert_eq!(taken(&[None, Some(0.0)]), 1);
    }

    #[test]
    fn frequencies_match_the_probabilities() {
        const DRAWS: u128 = 20_000;
        let totals = [Some(0.2), None, Some(0.8), Some(0.5)];
        let mut counts = [0_u32; 4];
        let mut explored = 0_u32;
        // as ids of one run are: the high bits alike, the low ones spread
        for number in 0..DRAWS {
            let id = Uuid::from_u128((0x0199_0000_0000_7000 << 64) | (number * 0x9e37_79b9_97f4_a7c1));
            let allocation = allocate(id, &totals, 0.3).unwrap();
            counts[allocation.chosen] += 1;
            explored += u32::from(allocation.explored);
        }
        let share = |count: u32| f64::from(count) / 20_000.0;
        // four standard errors of a share of 0.3 over 20,000 draws
        let near = |share: f64, expected: f64| (share - expected).abs() < 0.013;
        assert!(near(share(explored), 0.3), "{explored}");
        assert!(
            near(share(counts[0]), 0.1) && near(share(counts[2]), 0.8) && near(share(counts[3]), 0.1),
            "{counts:?}"
        );
        assert_eq!(counts[1], 0);
    }

    proptest! {
        #[test]
        fn probabilities_add_up_to_one(
            id in any::<u128>(),
            totals in proptest::collection::vec(proptest::option::of(0.0..=1.0), 1..17),
            epsilon in 0.0..=1.0,
        ) {
            let Some(allocation) = allocate(Uuid::from_u128(id), &totals, epsilon) else {
                prop_assert!(totals.iter().all(Option::is_none));
                return Ok(());
            };
            let sum: f64 = allocation.probabilities.iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-12, "{sum}");
            prop_assert!(totals[allocation.chosen].is_some());
            for (probability, total) in allocation.probabilities.iter().zip(&totals) {
                prop_assert!(*probability >= 0.0 && *probability <= 1.0 + 1e-12);
                prop_assert!(total.is_some() || *probability == 0.0);
            }
            let again = allocate(Uuid::from_u128(id), &totals, epsilon);
            prop_assert_eq!(again, Some(allocation));
        }
    }
}
