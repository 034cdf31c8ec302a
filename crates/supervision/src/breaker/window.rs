//! Counts outcomes over a sliding window, in a fixed amount of memory.

use std::time::Duration;

const BUCKETS: usize = 10;

/// What the window holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
}

/// Ten buckets that are emptied one after the other, so a call is forgotten between 0.9 and 1 window after it.
#[derive(Debug)]
pub(super) struct Window {
    bucket: Duration,
    buckets: [Counts; BUCKETS],
    /// Number of the newest bucket since the clock's beginning.
    newest: u128,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        let bucket = (length / u32::try_from(BUCKETS).unwrap_or(1)).max(Duration::from_nanos(1));
        Self { bucket, buckets: [Counts::default(); BUCKETS], newest: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
    }

    /// Notes an outcome and answers the counts with it.
    pub(super) fn add(&mut self, now: Duration, failed: bool, slow: bool) -> Counts {
        self.turn(now);
        let bucket = &mut self.buckets[index(self.newest)];
        bucket.calls = bucket.calls.saturating_add(1);
        bucket.failed = bucket.failed.saturating_add(u32::from(failed));
        bucket.slow = bucket.slow.saturating_add(u32::from(slow));
        self.total()
    }

    pub(super) fn counts(&mut self, now: Duration) -> Counts {
        self.turn(now);
        self.total()
    }

    fn total(&self) -> Counts {
        self.buckets.iter().fold(Counts::default(), |sum, bucket| Counts {
            calls: sum.calls.saturating_add(bucket.calls),
            failed: sum.failed.saturating_add(bucket.failed),
            slow: sum.slow.saturating_add(bucket.slow),
        })
    }

    fn turn(&mut self, now: Duration) {
        let current = now.as_nanos() / self.bucket.as_nanos();
        let passed = current.saturating_sub(self.newest).min(BUCKETS as u128);
        for step in 0..passed {
            self.buckets[index(current - step)] = Counts::default();
        }
        self.newest = self.newest.max(current);
    }
}

fn index(bucket: u128) -> usize {
    usize::try_from(bucket % BUCKETS as u128).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_forgotten_after_the_window() {
        let mut window = Window::new(Duration::from_secs(10));
        window.add(Duration::from_millis(500), true, false);
        window.add(Duration::from_millis(5500), false, true);
        assert_eq!(window.counts(Duration::from_millis(9999)), Counts { calls: 2, failed: 1, slow: 1 });
        assert_eq!(window.counts(Duration::from_secs(10)), Counts { calls: 1, failed: 0, slow: 1 });
        assert_eq!(window.counts(Duration::from_secs(15)), Counts::default());
        window.add(Duration::from_secs(1_000_000), true, true);
        assert_eq!(window.counts(Duration::from_secs(1_000_000)), Counts { calls: 1, failed: 1, slow: 1 });
        assert_eq!(window.counts(Duration::from_secs(999_999)).calls, 1, "time that goes back changes nothing");
    }
}
