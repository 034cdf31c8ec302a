//! When a message that could not be tried is claimed again.

use std::time::Duration;

use super::chance;

/// Longest wait: what kept the message from being tried may be over sooner than it was foreseen.
const LONGEST: Duration = Duration::from_secs(300);
/// Most that is added to a wait, as a part of it: what was refused together does not come back together.
const SPREAD: f64 = 0.2;

/// A message that could not be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deferral {
    /// How long it waits.
    pub(crate) wait: Duration,
    /// Why, safe to show.
    pub(crate) reason: String,
}

impl Deferral {
    pub(crate) fn new(after: Duration, source: &anyhow::Error) -> Self {
        Self { wait: spread(after, chance()), reason: format!("{source:#}") }
    }
}

/// The wait itself or more, so that nobody comes back before the time.
fn spread(after: Duration, chance: f64) -> Duration {
    after.min(LONGEST).mul_f64(1.0 + SPREAD * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_never_shorter_than_it_was_told() {
        let minute = Duration::from_secs(60);
        assert_eq!([0.0, 0.5, 1.0].map(|chance| spread(minute, chance).as_secs()), [60, 66, 72]);
        assert_eq!(spread(Duration::MAX, 1.0), Duration::from_secs(360));
        assert_eq!(spread(Duration::ZERO, 1.0), Duration::ZERO);
    }
}
