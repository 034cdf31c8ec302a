//! What one pool is scaled by.

use std::time::Duration;

/// Bounds, targets and brakes of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Never fewer workers.
    pub min: u32,
    /// Never more workers.
    pub max: u32,
    /// Messages that one worker works on at once.
    pub per_worker: u32,
    /// The share of their time that workers should be busy, above 0 and at most 1; the rest is for bursts.
    pub utilisation: f64,
    /// How long a message may wait: what the workers get through in this time is their target load, and an older
    /// message asks for more of them.
    pub wait_target: Duration,
    /// How long work on one message takes as long as nothing is known of it.
    pub assumed_service_time: Duration,
    /// A wish within this share of the present count changes nothing (Kubernetes: 0.1).
    pub tolerance: f64,
    /// More workers must be wanted for this long.
    pub hold_up: Duration,
    /// Fewer workers must be wanted for this long (the stabilisation window of Kubernetes, 300 s there).
    pub hold_down: Duration,
    /// Least time from any change to one upwards.
    pub cool_down_up: Duration,
    /// Least time from any change to one downwards.
    pub cool_down_down: Duration,
    /// At most this many workers more in one step; none: no limit.
    pub step_up: Option<u32>,
    /// At most this many workers fewer in one step; none: no limit.
    pub step_down: Option<u32>,
    /// How far the forecast looks ahead: about the time until a new worker works.
    pub horizon: Duration,
    /// Weight of a new observation in the level of the forecast, above 0 and at most 1.
    pub level_weight: f64,
    /// Weight of a new observation in its trend, above 0 and at most 1.
    pub trend_weight: f64,
}

impl Default for Settings {
    /// One worker at a time on one message, 70 % busy, waits of up to 10 s; up when more are wanted for 3 s, 3 s after
    /// the last change; down when fewer are wanted for 60 s, 60 s after the last change; forecasts over 10 s.
    fn default() -> Self {
        Self {
            min: 1,
            max: 1,
            per_worker: 1,
            utilisation: 0.7,
            wait_target: Duration::from_secs(10),
            assumed_service_time: Duration::from_secs(1),
            tolerance: 0.1,
            hold_up: Duration::from_secs(3),
            hold_down: Duration::from_secs(60),
            cool_down_up: Duration::from_secs(3),
            cool_down_down: Duration::from_secs(60),
            step_up: None,
            step_down: None,
            horizon: Duration::from_secs(10),
            level_weight: 0.5,
            trend_weight: 0.2,
        }
    }
}

/// Which setting cannot be lived with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Setting {setting} of an autoscaler {rule}")]
pub struct Invalid {
    /// Name of the setting.
    pub setting: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

impl Settings {
    /// Checks what the formulas rely on.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let is_share = |share: f64| share > 0.0 && share <= 1.0;
        let rules = [
            ("min", self.min <= self.max, "must be at most max"),
            ("per_worker", self.per_worker > 0, "must be at least 1"),
            ("utilisation", is_share(self.utilisation), "must be above 0 and at most 1"),
            ("wait_target", !self.wait_target.is_zero(), "must be longer than 0"),
            ("assumed_service_time", !self.assumed_service_time.is_zero(), "must be longer than 0"),
            ("tolerance", (0.0..1.0).contains(&self.tolerance), "must be at least 0 and below 1"),
            ("step_up", self.step_up != Some(0), "must be at least 1"),
            ("step_down", self.step_down != Some(0), "must be at least 1"),
            ("level_weight", is_share(self.level_weight), "must be above 0 and at most 1"),
            ("trend_weight", is_share(self.trend_weight), "must be above 0 and at most 1"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((setting, _, rule)) => Err(Invalid { setting, rule }),
            None => Ok(()),
        }
    }
}
