//! The policy of a decision: how scores are weighted and how much is explored.

use std::time::Duration;

use cogo_contracts::Scores;
use serde::Serialize;

use crate::settings::Settings;

/// Weights of the four scores, of sum 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weights {
    /// Weight of health.
    pub health: f64,
    /// Weight of quality.
    pub quality: f64,
    /// Weight of cost.
    pub cost: f64,
    /// Weight of kg.
    pub kg: f64,
}

impl Weights {
    /// The weighted sum of scores in 0..=1, itself in 0..=1.
    #[must_use]
    pub fn total(&self, scores: &Scores) -> f64 {
        let sum =
            self.health * scores.health + self.quality * scores.quality + self.cost * scores.cost + self.kg * scores.kg;
        sum.clamp(0.0, 1.0)
    }

    /// As an array in the order of the fields, as decisions record them.
    #[must_use]
    pub fn to_array(&self) -> [f64; 4] {
        [self.health, self.quality, self.cost, self.kg]
    }

    /// The opposite of [`Weights::to_array`].
    #[must_use]
    pub fn from_array([health, quality, cost, kg]: [f64; 4]) -> Self {
        Self { health, quality, cost, kg }
    }
}

/// Settings that contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Setting {key} is not usable: {rule}")]
pub struct PolicyError {
    key: &'static str,
    rule: &'static str,
}

/// Everything that a decision depends on besides the request and what was observed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// Version of the formulas, recorded with each decision.
    pub version: &'static str,
    /// How scores add up.
    pub weights: Weights,
    /// `c` of [`Policy::epsilon`].
    pub epsilon_scale: f64,
    /// Least share of exploration.
    pub epsilon_min: f64,
    /// Largest share of exploration.
    pub epsilon_max: f64,
    /// Time in ms after which an observation counts half.
    pub half_life_ms: u64,
    /// US dollars that count as dear without a budget.
    pub reference_cost_usd: f64,
}

impl Policy {
    /// To be changed with every change of a formula that decisions depend on.
    pub const VERSION: &'static str = "decaying-epsilon-greedy/1";

    /// Checks the settings and puts the weights on a sum of 1.
    ///
    /// # Errors
    /// Names the setting that is not usable.
    pub fn new(settings: &Settings) -> Result<Self, PolicyError> {
        let weights = [
            ("weight_health", settings.weight_health),
            ("weight_quality", settings.weight_quality),
            ("weight_cost", settings.weight_cost),
            ("weight_kg", settings.weight_kg),
        ];
        for (key, value) in weights {
            usable(key, value, (0.0..=1e6).contains(&value), "a weight is a number of 0 to 1000000")?;
        }
        let sum: f64 = weights.iter().map(|(_, value)| value).sum();
        usable("weight_health", sum, sum > 0.0, "at least one weight must be above 0")?;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        usable("epsilon_scale", 0.0, (0.0..=1e9).contains(&settings.epsilon_scale), "it is a number of at least 0")?;
        usable("epsilon_min", 0.0, share(settings.epsilon_min), "it is a share of 0 to 1")?;
        let above_min = share(settings.epsilon_max) && settings.epsilon_max >= settings.epsilon_min;
        usable("epsilon_max", 0.0, above_min, "it is a share of epsilon_min to 1")?;
        let dear = settings.reference_cost_usd;
        usable("reference_cost_usd", dear, dear.is_finite() && dear > 0.0, "it is an amount above 0")?;
        usable("health_half_life_ms", 0.0, settings.health_half_life_ms > 0, "it is a time above 0")?;
        usable("observe_ms", 0.0, settings.observe_ms > 0, "it is a time above 0")?;
        Ok(Self {
            version: Self::VERSION,
            weights: Weights::from_array(weights.map(|(_, value)| value / sum)),
            epsilon_scale: settings.epsilon_scale,
            epsilon_min: settings.epsilon_min,
            epsilon_max: settings.epsilon_max,
            half_life_ms: settings.health_half_life_ms,
            reference_cost_usd: dear,
        })
    }

    /// Time after which an observation counts half.
    #[must_use]
    pub fn half_life(&self) -> Duration {
        Duration::from_millis(self.half_life_ms)
    }

    /// Share of exploration among `eligible` candidates after `decisions` decisions on the intent:
    /// `clamp(c * eligible / (decisions + 1), min, max)`, the decaying rule of epsilon-n greedy. A single candidate
    /// leaves nothing to explore, hence 0.
    #[must_use]
    pub fn epsilon(&self, eligible: usize, decisions: u64) -> f64 {
        if eligible < 2 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 decisions the share is the least one anyway")]
        let share = self.epsilon_scale * eligible as f64 / (decisions as f64 + 1.0);
        share.clamp(self.epsilon_min, self.epsilon_max)
    }
}

fn usable(key: &'static str, value: f64, fits: bool, rule: &'static str) -> Result<(), PolicyError> {
    if fits && value.is_finite() { Ok(()) } else { Err(PolicyError { key, rule }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exploration_decays_from_its_largest_to_its_least_share() {
        let policy = Policy::new(&Settings::default()).unwrap();
        assert_eq!(policy.epsilon(3, 0), 1.0);
        assert_eq!(policy.epsilon(3, 149), 0.1);
        assert_eq!(policy.epsilon(3, u64::MAX), 0.005);
        assert_eq!(policy.epsilon(1, 0), 0.0);
        assert_eq!(policy.epsilon(0, 0), 0.0);
    }

    #[test]
    fn weights_add_up_to_one() {
        let settings = Settings {
            weight_health: 8.0,
            weight_quality: 4.0,
            weight_cost: 2.0,
            weight_kg: 2.0,
            ..Settings::default()
        };
        assert_eq!(Policy::new(&settings).unwrap().weights.to_array(), [0.5, 0.25, 0.125, 0.125]);
    }

    #[test]
    fn contradicting_settings_are_refused_by_name() {
        let defaults = Settings::default;
        for (settings, key) in [
            (Settings { weight_kg: -1.0, ..defaults() }, "weight_kg"),
            (Settings { weight_cost: f64::NAN, ..defaults() }, "weight_cost"),
            (Settings { epsilon_min: 0.5, epsilon_max: 0.1, ..defaults() }, "epsilon_max"),
            (Settings { epsilon_min: 2.0, ..defaults() }, "epsilon_min"),
            (Settings { epsilon_scale: f64::INFINITY, ..defaults() }, "epsilon_scale"),
            (Settings { reference_cost_usd: 0.0, ..defaults() }, "reference_cost_usd"),
            (Settings { health_half_life_ms: 0, ..defaults() }, "health_half_life_ms"),
        ] {
            let error = Policy::new(&settings).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let none = Settings { weight_health: 0.0, weight_quality: 0.0, weight_cost: 0.0, weight_kg: 0.0, ..defaults() };
        assert!(Policy::new(&none).is_err());
    }
}
