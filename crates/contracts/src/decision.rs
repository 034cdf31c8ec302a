//! Requests and replies of orchestrator/decide and executor/dispatch.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Assignment, Budget, Route};

/// What comes in through the front door. Payload of orchestrator/decide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecideRequest {
    /// What is wanted, such as `ask`, `index` or `run`; it selects the candidates.
    pub intent: String,
    /// The request for the target that will be chosen, a JSON object.
    #[serde(default)]
    pub payload: Value,
    /// Limits that the caller sets; tighter than the policy's, never wider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Time in ms that the caller gives the whole task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// The four scores of a candidate, each in 0..=1, higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Is it alive, and does it answer in time and without errors?
    pub health: f64,
    /// How well did it do this intent?
    pub quality: f64,
    /// How cheap is it?
    pub cost: f64,
    /// How much of what is asked does its knowledge cover?
    pub kg: f64,
}

/// A target that could have been chosen, with why it was or was not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where the work would go.
    pub route: Route,
    /// The model it would use, if it uses one.
    #[serde(default)]
    pub model: Option<String>,
    /// What was observed of it.
    pub scores: Scores,
    /// Weighted sum of the scores.
    pub total: f64,
    /// Probability with which the policy picks it.
    pub probability: f64,
}

/// Result of orchestrator/decide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecideReply {
    /// Key of the recorded decision.
    pub decision_id: Uuid,
    /// Where the work goes.
    pub route: Route,
    /// The model, if the target uses one.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether the pick was exploration.
    pub explored: bool,
    /// Share of exploration at this decision.
    pub epsilon: f64,
    /// Probability of the pick.
    pub probability: f64,
    /// Everything that could have been picked.
    pub candidates: Vec<Candidate>,
}

/// Payload of executor/dispatch: decided work without its stamp yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchRequest {
    /// Where to send it.
    pub target: Route,
    /// The request for the target, a JSON object.
    pub payload: Value,
    /// What the decision asks for; the dispatcher's policy may tighten it.
    pub assignment: Assignment,
}

/// Result of executor/dispatch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DispatchReply {
    /// Where it was sent.
    pub target: Route,
    /// The stamp as sent.
    pub assignment: Assignment,
}
