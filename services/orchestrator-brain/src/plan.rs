//! Plan: reads the request, selects the targets that could serve it and the limits that each would get.

use cogo_contracts::{Assignment, Budget, DecideRequest};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::sense::{Snapshot, Target};

/// Why a request cannot be decided on; trying again does not help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No target serves it.
    #[error("Unknown intent {intent:?}; known: {known}")]
    UnknownIntent {
        /// As sent, shortened.
        intent: String,
        /// What would be served.
        known: String,
    },
    /// The payload is something else.
    #[error("Payload must be a JSON object")]
    PayloadNotAnObject,
    /// Postgres stores no NUL in text.
    #[error("Text must not contain NUL (\\u0000)")]
    Nul,
    /// The caller's budget is not an amount.
    #[error("Budget is not usable: {0}")]
    Budget(&'static str),
    /// The caller gives no time.
    #[error("A ttl_ms of 0 leaves no time")]
    NoTime,
    /// No candidate is possible within the caller's limits.
    #[error("No target of intent {intent:?} fits: {reasons}")]
    NothingFits {
        /// The intent.
        intent: String,
        /// Why each was left out.
        reasons: String,
    },
}

impl Refusal {
    /// Stable name of the kind, for HTTP callers.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownIntent { .. } => "unknown-intent",
            Self::PayloadNotAnObject => "payload-not-an-object",
            Self::Nul => "nul-in-text",
            Self::Budget(_) => "bad-budget",
            Self::NoTime => "no-time",
            Self::NothingFits { .. } => "nothing-fits",
        }
    }
}

/// What a message may take; a limit that is absent is left to the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// US dollars.
    pub max_cost_usd: Option<f64>,
    /// Tokens.
    pub max_tokens: Option<u64>,
    /// Time in ms.
    pub ttl_ms: u64,
}

impl Limits {
    /// The tighter of the target's and the caller's, each by itself.
    #[must_use]
    pub fn of(target: &Target, request: &DecideRequest) -> Self {
        let budget = request.budget.unwrap_or_default();
        Self {
            max_cost_usd: tighter(target.max_cost_usd, budget.max_cost_usd, f64::min),
            max_tokens: tighter(target.max_tokens, budget.max_tokens, u64::min),
            ttl_ms: request.ttl_ms.map_or(target.ttl_ms, |wanted| wanted.min(target.ttl_ms)),
        }
    }

    /// As the dispatcher is told.
    #[must_use]
    pub fn assignment(&self, model: Option<String>, decision_id: Uuid) -> Assignment {
        let unlimited = self.max_cost_usd.is_none() && self.max_tokens.is_none();
        Assignment {
            agent_id: None,
            version: None,
            model,
            budget: (!unlimited).then_some(Budget { max_cost_usd: self.max_cost_usd, max_tokens: self.max_tokens }),
            ttl_ms: Some(self.ttl_ms),
            decision_id: Some(decision_id),
        }
    }
}

/// The tighter of two limits; one that is absent sets none.
fn tighter<T: Copy>(one: Option<T>, other: Option<T>, least: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(least(one, other)),
        (one, other) => one.or(other),
    }
}

/// Targets with their limits, and the request for whichever is picked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan<'s> {
    pub(crate) candidates: Vec<(&'s Target, Limits)>,
    pub(crate) payload: Value,
}

/// Checks the request and lists who could serve it.
pub(crate) fn plan<'s>(
    snapshot: &'s Snapshot,
    tenant: &'s str,
    request: &'s DecideRequest,
) -> Result<Plan<'s>, Refusal> {
    let payload = match &request.payload {
        Value::Null => Value::Object(Map::new()),
        Value::Object(object) => Value::Object(object.clone()),
        _ => return Err(Refusal::PayloadNotAnObject),
    };
    if has_nul(&payload) || request.intent.contains('\0') {
        return Err(Refusal::Nul);
    }
    if let Some(fault) = request.budget.and_then(|budget| budget.fault()) {
        return Err(Refusal::Budget(fault));
    }
    if request.ttl_ms == Some(0) {
        return Err(Refusal::NoTime);
    }
    let candidates: Vec<_> =
        snapshot.candidates(tenant, &request.intent).map(|target| (target, Limits::of(target, request))).collect();
    if candidates.is_empty() {
        // errors travel to callers, so a hostile value is not echoed at length
        let intent = request.intent.chars().take(80).collect();
        return Err(Refusal::UnknownIntent { intent, known: snapshot.intents_of(tenant).join(", ") });
    }
    Ok(Plan { candidates, payload })
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(object) => object.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
