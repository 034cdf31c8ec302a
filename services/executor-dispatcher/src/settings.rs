//! Settings of the dispatcher; `deploy/config/executor-dispatcher.toml` lists them with their meaning.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// What the dispatcher can be told: what a decision gets that names no limit, and what none may go beyond.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// US dollars where the decision names no amount.
    pub default_max_cost_usd: f64,
    /// Tokens where the decision names no number.
    pub default_max_tokens: u64,
    /// Time in ms where the decision names none.
    pub default_ttl_ms: u64,
    /// Most US dollars that any message gets.
    pub cap_max_cost_usd: f64,
    /// Most tokens that any message gets.
    pub cap_max_tokens: u64,
    /// Most time in ms that any message gets.
    pub cap_ttl_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_max_cost_usd: 0.10,
            default_max_tokens: 200_000,
            default_ttl_ms: 60_000,
            cap_max_cost_usd: 10.0,
            cap_max_tokens: 10_000_000,
            cap_ttl_ms: 3_600_000,
        }
    }
}

impl Settings {
    /// Refuses amounts that are none, and times that leave none.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> anyhow::Result<()> {
        for (key, value) in
            [("default_max_cost_usd", self.default_max_cost_usd), ("cap_max_cost_usd", self.cap_max_cost_usd)]
        {
            ensure!(value.is_finite() && value >= 0.0, "Setting {key} must be a finite number of at least 0");
        }
        for (key, value) in [("default_ttl_ms", self.default_ttl_ms), ("cap_ttl_ms", self.cap_ttl_ms)] {
            ensure!((1..=365 * 24 * 3_600_000).contains(&value), "Setting {key} must be 1 ms to a year");
        }
        Ok(())
    }
}
