//! Settings of the orchestrator; `deploy/config/orchestrator-brain.toml` lists them with their meaning.

use serde::{Deserialize, Serialize};

/// What the orchestrator can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Weight of the score health; only the ratio of the four weights matters.
    pub weight_health: f64,
    /// Weight of the score quality.
    pub weight_quality: f64,
    /// Weight of the score cost.
    pub weight_cost: f64,
    /// Weight of the score kg.
    pub weight_kg: f64,
    /// Decisions per candidate over which exploration stays high; `c` in `c * candidates / (decisions + 1)`.
    pub epsilon_scale: f64,
    /// Least share of exploration.
    pub epsilon_min: f64,
    /// Largest share of exploration.
    pub epsilon_max: f64,
    /// Time in ms after which an observed success or failure counts half.
    pub health_half_life_ms: u64,
    /// US dollars that count as dear for work without a budget of its own.
    pub reference_cost_usd: f64,
    /// Time in ms between two looks at outcomes, agents and targets.
    pub observe_ms: u64,
    /// Days that decisions and their outcomes are kept.
    pub decision_retention_days: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weight_health: 0.4,
            weight_quality: 0.3,
            weight_cost: 0.15,
            weight_kg: 0.15,
            epsilon_scale: 5.0,
            epsilon_min: 0.005,
            epsilon_max: 1.0,
            health_half_life_ms: 60_000,
            reference_cost_usd: 0.10,
            observe_ms: 2_000,
            decision_retention_days: 30,
        }
    }
}
