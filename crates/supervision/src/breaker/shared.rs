//! What several processes share of one breaker, and the rule by which their views become one.

use serde::{Deserialize, Serialize};

/// The part of a breaker's state that others must know. Half-open is each process's own affair: an opening that is over
/// is tried out by whoever wants to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedPhase {
    /// Calls are refused until the record's time.
    Open,
    /// Somebody found it well again.
    Closed,
}

/// A small record of a breaker, to be kept in a table or sent around.
///
/// Records are totally ordered, and [`merge`](Self::merge) keeps the greater one, so merging is commutative,
/// associative, idempotent and never goes back, whatever is lost, repeated or reordered on the way. The order is:
/// 1. the higher `round` (every opening begins one), so a new incident outdoes what was known of the last;
/// 2. within a round closed over open, so whoever found it well again speaks for all;
/// 3. between two openings of one round the one that ends later, the careful choice.
///
/// A process that begins with round 0 should take in the shared record before it trusts its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shared {
    /// How many openings there have been, ever; 0 for a breaker that never opened.
    pub round: u64,
    /// Whether this round's opening is over.
    pub phase: SharedPhase,
    /// When the opening ends, in milliseconds of a clock that all share (the database's); 0 when closed.
    pub open_until_ms: u64,
    /// Openings in a row without a quiet window between them; decides how long the next one lasts.
    pub openings: u32,
}

impl Shared {
    /// A breaker that never opened.
    pub const NEW: Self = Self { round: 0, phase: SharedPhase::Closed, open_until_ms: 0, openings: 0 };

    /// The one of both that holds.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Shared> {
        (0_u64..4, any::<bool>(), 0_u64..4, 0_u32..3).prop_map(|(round, closed, open_until_ms, openings)| {
            let phase = if closed { SharedPhase::Closed } else { SharedPhase::Open };
            Shared { round, phase, open_until_ms, openings }
        })
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_idempotent_and_monotone(a in records(), b in records(), c in records()) {
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
            prop_assert_eq!(a.merge(a), a);
            prop_assert!(a.merge(b) >= a && a.merge(b) >= b);
        }
    }

    #[test]
    fn a_new_round_beats_the_last_and_closed_beats_open_within_one() {
        let open = |round, until| Shared { round, phase: SharedPhase::Open, open_until_ms: until, openings: 1 };
        let closed = Shared { round: 3, phase: SharedPhase::Closed, open_until_ms: 0, openings: 1 };
        assert_eq!(open(3, 9_000).merge(closed), closed);
        assert_eq!(open(4, 1).merge(closed), open(4, 1));
        assert_eq!(open(3, 10).merge(open(3, 20)), open(3, 20));
        assert_eq!(Shared::NEW.merge(open(1, 0)), open(1, 0));
    }
}
