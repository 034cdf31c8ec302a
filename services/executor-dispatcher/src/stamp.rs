//! The stamp: fills what a decision leaves open, and never widens what it set.

use cogo_contracts::{Assignment, Budget, DispatchRequest};
use serde_json::Value;

use crate::{agents::AgentSort, settings::Settings};

/// Services that only send work on; work sent to them would go round in circles.
const CONTROL_PLANE: [&str; 2] = ["orchestrator", "executor"];

/// Why work cannot be dispatched; trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The target would send it back here.
    #[error("Target {0} only sends work on, so dispatching to it would go round in circles")]
    ControlPlane(String),
    /// The payload is something else.
    #[error("Payload for {0} must be a JSON object")]
    PayloadNotAnObject(String),
    /// The budget is not an amount.
    #[error("Budget is not usable: {0}")]
    Budget(&'static str),
    /// The decision gives no time.
    #[error("A ttl_ms of 0 leaves no time")]
    NoTime,
}

/// The payload with its stamp, and the stamp by itself.
///
/// Each limit is the decision's, else the default, and in any case at most the cap. An assignment that came in with
/// the payload is replaced: only the decision is trusted. Agent and version are the decision's, else those of the only
/// sort of agent that serves the target.
///
/// # Errors
/// [`Refusal`] when the work must not be sent.
pub fn stamp(
    request: &DispatchRequest,
    agent: Option<&AgentSort>,
    settings: &Settings,
) -> Result<(Value, Assignment), Refusal> {
    if CONTROL_PLANE.contains(&request.target.service()) {
        return Err(Refusal::ControlPlane(request.target.to_string()));
    }
    let Value::Object(payload) = &request.payload else {
        return Err(Refusal::PayloadNotAnObject(request.target.to_string()));
    };
    let decided = &request.assignment;
    if let Some(fault) = decided.budget.and_then(|budget| budget.fault()) {
        return Err(Refusal::Budget(fault));
    }
    if decided.ttl_ms == Some(0) {
        return Err(Refusal::NoTime);
    }
    let budget = decided.budget.unwrap_or_default();
    let usd = budget.max_cost_usd.unwrap_or(settings.default_max_cost_usd).min(settings.cap_max_cost_usd);
    let tokens = budget.max_tokens.unwrap_or(settings.default_max_tokens).min(settings.cap_max_tokens);
    let ttl_ms = decided.ttl_ms.unwrap_or(settings.default_ttl_ms).min(settings.cap_ttl_ms);
    // a decision that names an agent but no version must not be paired with the version of another
    let agent = agent.filter(|_| decided.agent_id.is_none() && decided.version.is_none());
    let assignment = Assignment {
        agent_id: decided.agent_id.clone().or_else(|| agent.map(|sort| sort.name.clone())),
        version: decided.version.clone().or_else(|| agent.map(|sort| sort.version.clone())),
        model: decided.model.clone(),
        budget: Some(Budget { max_cost_usd: Some(usd), max_tokens: Some(tokens) }),
        ttl_ms: Some(ttl_ms),
        decision_id: decided.decision_id,
    };
    let mut stamped = payload.clone();
    let value = serde_json::to_value(&assignment).expect("names and finite numbers serialize");
    stamped.insert(Assignment::KEY.to_owned(), value);
    Ok((Value::Object(stamped), assignment))
}

#[cfg(test)]
mod tests {
    use cogo_contracts::routes;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn request(assignment: Assignment) -> DispatchRequest {
        DispatchRequest { target: routes::CHAT, payload: json!({"question": "why?"}), assignment }
    }

    fn stamped(assignment: Assignment) -> Result<Assignment, Refusal> {
        stamp(&request(assignment), None, &Settings::default()).map(|(_, stamp)| stamp)
    }

    fn limits(assignment: &Assignment) -> (Option<f64>, Option<u64>, Option<u64>) {
        let budget = assignment.budget.unwrap();
        (budget.max_cost_usd, budget.max_tokens, assignment.ttl_ms)
    }

    fn decided(usd: Option<f64>, tokens: Option<u64>, ttl_ms: Option<u64>) -> Assignment {
        let budget = Some(Budget { max_cost_usd: usd, max_tokens: tokens });
        Assignment { budget, ttl_ms, ..Assignment::default() }
    }

    #[test]
    fn what_is_open_is_filled_with_the_defaults_of_the_seed() {
        assert_eq!(limits(&stamped(Assignment::default()).unwrap()), (Some(0.10), Some(200_000), Some(60_000)));
        assert_eq!(limits(&stamped(decided(None, Some(5), None)).unwrap()), (Some(0.10), Some(5), Some(60_000)));
    }

    #[test]
    fn decided_limits_stay_below_the_cap_and_are_cut_above() {
        let tight = decided(Some(0.0), Some(0), Some(1));
        assert_eq!(limits(&stamped(tight).unwrap()), (Some(0.0), Some(0), Some(1)));
        let wide = decided(Some(1e9), Some(u64::MAX), Some(u64::MAX));
        assert_eq!(limits(&stamped(wide).unwrap()), (Some(10.0), Some(10_000_000), Some(3_600_000)));
    }

    #[test]
    fn unusable_limits_are_refused() {
        for usd in [-0.01, f64::NAN, f64::INFINITY] {
            assert!(matches!(stamped(decided(Some(usd), None, None)), Err(Refusal::Budget(_))), "{usd}");
        }
        assert_eq!(stamped(decided(None, None, Some(0))), Err(Refusal::NoTime));
    }

    #[test]
    fn stamp_replaces_one_that_came_from_outside() {
        let mut forged = request(Assignment { decision_id: Some(Uuid::nil()), ..Assignment::default() });
        forged.payload = json!({"question": "why?", "__assignment": {"budget": {"maxCostUsd": 1e6}, "model": "dear"}});
        let (payload, stamp) = stamp(&forged, None, &Settings::default()).unwrap();
        assert_eq!(Assignment::of(&payload).unwrap(), stamp);
        assert_eq!((stamp.model.clone(), limits(&stamp).0), (None, Some(0.10)));
        assert_eq!(payload["question"], "why?");
    }

    #[test]
    fn work_for_the_control_plane_or_without_an_object_is_refused() {
        for target in [routes::DECIDE, routes::DISPATCH] {
            let circular = DispatchRequest { target, ..request(Assignment::default()) };
            assert!(matches!(stamp(&circular, None, &Settings::default()), Err(Refusal::ControlPlane(_))));
        }
        for payload in [json!(null), json!([]), json!("x"), json!(1)] {
            let bare = DispatchRequest { payload, ..request(Assignment::default()) };
            assert!(matches!(stamp(&bare, None, &Settings::default()), Err(Refusal::PayloadNotAnObject(_))));
        }
    }

    #[test]
    fn agent_is_filled_in_only_where_the_decision_names_none() {
        let sort = AgentSort { name: "gateway-chat".to_owned(), version: "1.2.3".to_owned() };
        let of = |assignment| stamp(&request(assignment), Some(&sort), &Settings::default()).unwrap().1;
        let filled = of(Assignment::default());
        assert_eq!((filled.agent_id.as_deref(), filled.version.as_deref()), (Some("gateway-chat"), Some("1.2.3")));
        let named = of(Assignment { agent_id: Some("other".to_owned()), ..Assignment::default() });
        assert_eq!((named.agent_id.as_deref(), named.version), (Some("other"), None));
    }
}
