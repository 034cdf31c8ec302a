//! How long to wait before a process that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A process that lived this long was fine, so its next death is a new story.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);

/// Doubles with every early death, from 100 ms to 10 s.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    early_deaths: u32,
}

impl Backoff {
    /// The pause after a life of this length.
    pub(crate) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= FORGIVEN_AFTER {
            self.early_deaths = 0;
        }
        let pause = FIRST.saturating_mul(1_u32.checked_shl(self.early_deaths).unwrap_or(u32::MAX)).min(LONGEST);
        self.early_deaths = self.early_deaths.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.after(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        for _ in 0..100 {
            assert_eq!(backoff.after(Duration::ZERO), LONGEST);
        }
    }

    #[test]
    fn a_long_life_is_forgiven() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(Duration::from_secs(30)), FIRST);
        assert_eq!(backoff.after(Duration::from_secs(29)), FIRST * 2);
    }
}
