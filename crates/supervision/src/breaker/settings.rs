//! When a breaker opens, for how long, and what closes it again.

use std::time::Duration;

/// Thresholds of one breaker. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How far back outcomes count.
    pub window: Duration,
    /// Below this many outcomes in the window no share is judged.
    pub minimum_calls: u32,
    /// Opens when this share of the window's calls failed.
    pub failure_rate: f64,
    /// Opens after this many failures in a row, however few calls there were; 0 switches the rule off.
    pub consecutive_failures: u32,
    /// A call that took at least this long was slow, whatever came of it.
    pub slow_call: Duration,
    /// Opens when this share of the window's calls was slow.
    pub slow_rate: f64,
    /// How long it stays open the first time.
    pub open_for: Duration,
    /// Each opening that follows without a quiet window lasts this many times longer than the one before.
    pub growth: f64,
    /// No opening lasts longer than this before jitter.
    pub longest_open: Duration,
    /// Up to this share is added to every opening, so that many breakers do not try again at one moment.
    pub jitter: f64,
    /// At most this many calls at once while it tries whether things are well again.
    pub half_open_permits: u32,
    /// This many of them must succeed to close it.
    pub half_open_successes: u32,
    /// Without a verdict within this time it opens again: the calls that should tell hang.
    pub half_open_for: Duration,
}

impl Default for Settings {
    /// 10 s window, half of at least 10 calls failed, 5 in a row, or 80 % slower than 5 s; open for 5 s, then 10 s, up
    /// to 60 s, with 20 % of jitter; one trial at a time, two good ones close it.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            minimum_calls: 10,
            failure_rate: 0.5,
            consecutive_failures: 5,
            slow_call: Duration::from_secs(5),
            slow_rate: 0.8,
            open_for: Duration::from_secs(5),
            growth: 2.0,
            longest_open: Duration::from_secs(60),
            jitter: 0.2,
            half_open_permits: 1,
            half_open_successes: 2,
            half_open_for: Duration::from_secs(30),
        }
    }
}

/// Which setting cannot be lived with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Setting {setting} of a circuit breaker {rule}")]
pub struct Invalid {
    /// Name of the setting.
    pub setting: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

impl Settings {
    /// Checks what the rules rely on.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let is_share = |share: f64| share > 0.0 && share <= 1.0;
        let rules = [
            ("window", !self.window.is_zero(), "must be longer than 0"),
            ("minimum_calls", self.minimum_calls > 0, "must be at least 1"),
            ("failure_rate", is_share(self.failure_rate), "must be above 0 and at most 1"),
            ("slow_rate", is_share(self.slow_rate), "must be above 0 and at most 1"),
            ("open_for", !self.open_for.is_zero(), "must be longer than 0"),
            ("growth", self.growth.is_finite() && self.growth >= 1.0, "must be at least 1"),
            ("longest_open", self.longest_open >= self.open_for, "must be at least open_for"),
            ("jitter", (0.0..=1.0).contains(&self.jitter), "must be from 0 to 1"),
            ("half_open_permits", self.half_open_permits > 0, "must be at least 1"),
            ("half_open_successes", self.half_open_successes > 0, "must be at least 1"),
            ("half_open_for", !self.half_open_for.is_zero(), "must be longer than 0"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((setting, _, rule)) => Err(Invalid { setting, rule }),
            None => Ok(()),
        }
    }

    /// How long the given opening lasts, the first being 1; `draw` is from 0 to 1.
    pub(crate) fn open_time(&self, opening: u32, draw: f64) -> Duration {
        let doublings = i32::try_from(opening.saturating_sub(1)).unwrap_or(i32::MAX).min(1000);
        let longest = self.longest_open.as_secs_f64();
        let grown = (self.open_for.as_secs_f64() * self.growth.powi(doublings)).min(longest);
        Duration::from_secs_f64(grown * (1.0 + self.jitter * draw))
    }
}
