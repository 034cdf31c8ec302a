//! Timeout budgets: how long all of a request may take, shrinking with every hop.

use std::time::Duration;

use crate::clock::Clock;

/// What is left of the time for a request. A hop gets a child of it, which never outlives its parent.
#[derive(Debug, Clone)]
pub struct Budget {
    clock: Clock,
    deadline: Duration,
}

/// How much of what is left a hop gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// This part of it, from 0 to 1; what is beyond counts as the nearer of both.
    Fraction(f64),
    /// All but this, which the caller needs to deal with the answer.
    Reserve(Duration),
}

/// There is no time left, so nothing was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Time budget is exhausted")]
pub struct Exhausted;

/// Why a call within a budget gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfTime {
    /// It was not begun.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// It was given up when its time was over.
    #[error("Call did not end within its {} ms", allowed.as_millis())]
    Elapsed {
        /// How long it was allowed to take.
        allowed: Duration,
    },
}

impl Budget {
    /// From now on, this much time.
    #[must_use]
    pub fn new(clock: Clock, total: Duration) -> Self {
        let deadline = clock.now().saturating_add(total);
        Self { clock, deadline }
    }

    /// What is left; as whole milliseconds this is what travels to another process, which begins a new budget with it.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_sub(self.clock.now())
    }

    /// What is left, if anything is.
    ///
    /// # Errors
    /// When nothing is.
    pub fn expect_time(&self) -> Result<Duration, Exhausted> {
        let remaining = self.remaining();
        if remaining.is_zero() { Err(Exhausted) } else { Ok(remaining) }
    }

    /// The budget of the next hop, not later than this one.
    ///
    /// # Errors
    /// When the hop would have no time: better not to begin than to be given up half-way.
    pub fn child(&self, share: Share) -> Result<Self, Exhausted> {
        let now = self.clock.now();
        let remaining = self.deadline.saturating_sub(now);
        let allowed = match share {
            Share::Fraction(fraction) if fraction > 0.0 => remaining.mul_f64(fraction.min(1.0)),
            Share::Fraction(_) => Duration::ZERO,
            Share::Reserve(reserve) => remaining.saturating_sub(reserve),
        };
        // rounding must not give a child more than there is
        let allowed = allowed.min(remaining);
        if allowed.is_zero() {
            return Err(Exhausted);
        }
        Ok(Self { clock: self.clock.clone(), deadline: now + allowed })
    }

    /// Runs a call and gives it up when the time is over. Waits on the time of the runtime.
    ///
    /// # Errors
    /// When there was no time, or not enough.
    pub async fn run<T>(&self, call: impl Future<Output = T>) -> Result<T, OutOfTime> {
        let allowed = self.expect_time()?;
        tokio::time::timeout(allowed, call).await.map_err(|_elapsed| OutOfTime::Elapsed { allowed })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_hop_has_less_and_the_last_is_refused() {
        let hand = ManualClock::new();
        let budget = Budget::new(hand.clock(), SECOND * 10);
        let half = budget.child(Share::Fraction(0.5)).unwrap();
        assert_eq!(half.remaining(), SECOND * 5);
        let rest = half.child(Share::Reserve(SECOND * 2)).unwrap();
        assert_eq!(rest.remaining(), SECOND * 3);
        hand.advance(SECOND * 2);
        assert_eq!((budget.remaining(), half.remaining(), rest.remaining()), (SECOND * 8, SECOND * 3, SECOND));
        assert_eq!(rest.child(Share::Reserve(SECOND)).unwrap_err(), Exhausted);
        assert_eq!(rest.child(Share::Fraction(0.0)).unwrap_err(), Exhausted);
        assert_eq!(rest.child(Share::Fraction(f64::NAN)).unwrap_err(), Exhausted);
        hand.advance(SECOND);
        assert_eq!(rest.expect_time().unwrap_err(), Exhausted);
    }

    proptest! {
        #[test]
        fn a_child_never_outlives_its_parent(
            total in 0_u64..100_000, spent in 0_u64..100_000, shares in prop::collection::vec(-1.0_f64..3.0, 1..8),
        ) {
            let hand = ManualClock::new();
            let mut budget = Budget::new(hand.clock(), Duration::from_millis(total));
            hand.advance(Duration::from_millis(spent));
            for share in shares {
                match budget.child(Share::Fraction(share)) {
                    Ok(child) => {
                        prop_assert!(child.deadline <= budget.deadline && !child.remaining().is_zero());
                        budget = child;
                    }
                    Err(Exhausted) => break,
                }
            }
        }
    }

    #[tokio::test]
    async fn a_call_without_time_is_not_begun() {
        let budget = Budget::new(Clock::system(), Duration::ZERO);
        let mut begun = false;
        assert_eq!(budget.run(async { begun = true }).await, Err(OutOfTime::Exhausted(Exhausted)));
        assert!(!begun);
        let short = Budget::new(Clock::system(), Duration::from_millis(5));
        assert!(matches!(short.run(std::future::pending::<()>()).await, Err(OutOfTime::Elapsed { .. })));
    }
}
