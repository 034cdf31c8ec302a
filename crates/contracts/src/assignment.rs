//! The policy that travels inside a payload under `__assignment`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a worker may spend and how long it may take; a field that is absent sets no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The agent that was chosen, if a certain one was.
    #[serde(default)]
    pub agent_id: Option<String>,
    /// The version of that agent.
    #[serde(default)]
    pub version: Option<String>,
    /// The model to be used and no other.
    #[serde(default)]
    pub model: Option<String>,
    /// Money and tokens.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Time in ms from the moment of dispatch, over all attempts.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
    /// The decision that led here; outcomes are credited to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<Uuid>,
}

impl Assignment {
    /// Key under which the assignment stands in a payload.
    pub const KEY: &'static str = "__assignment";

    /// Reads the assignment of a payload; one without is an assignment without limits.
    ///
    /// # Errors
    /// When the key is there but not an assignment.
    pub fn of(payload: &serde_json::Value) -> Result<Self, serde_json::Error> {
        payload.get(Self::KEY).map_or_else(|| Ok(Self::default()), Self::deserialize)
    }
}

/// Upper limits of one task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// US dollars.
    #[serde(rename = "maxCostUsd", default)]
    pub max_cost_usd: Option<f64>,
    /// Tokens, prompt and answer together.
    #[serde(rename = "maxTokens", default)]
    pub max_tokens: Option<u64>,
}

impl Budget {
    /// Why the budget cannot be used, if so: money must be a finite number of at least 0.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        match self.max_cost_usd {
            Some(usd) if !usd.is_finite() || usd < 0.0 => Some("maxCostUsd must be a finite number of at least 0"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignment_of_the_seed_is_read() {
        let payload = serde_json::json!({"__assignment": {
            "agent_id": null, "version": null, "model": null,
            "budget": {"maxCostUsd": 0.10, "maxTokens": 200_000}, "ttl_ms": 60_000}});
        let assignment = Assignment::of(&payload).unwrap();
        assert_eq!(assignment.ttl_ms, Some(60_000));
        assert_eq!(assignment.budget.unwrap().max_tokens, Some(200_000));
    }

    #[test]
    fn missing_assignment_sets_no_limits_and_a_bad_one_is_an_error() {
        assert_eq!(Assignment::of(&serde_json::json!({})).unwrap(), Assignment::default());
        assert!(Assignment::of(&serde_json::json!({"__assignment": {"ttl_ms": -1}})).is_err());
    }
}
