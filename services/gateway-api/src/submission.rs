//! What a caller submits, read field by field so that a problem names the field.

use cogo_contracts::{Assignment, Budget, DecideRequest, Tenant};
use cogo_service_runtime::ApiError;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::problems::{bad_field, malformed, unknown_field};

/// Thirty days; nothing that waits longer is a task.
const MAX_TTL_MS: u64 = 30 * 24 * 60 * 60 * 1000;
const MAX_INTENT: usize = 63;

/// A submission that holds to the contract.
#[derive(Debug, PartialEq)]
pub(crate) struct Submission {
    pub(crate) tenant: Tenant,
    pub(crate) request: DecideRequest,
}

impl Submission {
    pub(crate) fn parse(body: Value) -> Result<Self, ApiError> {
        let Value::Object(mut fields) = body else {
            return Err(malformed(format!("The body is {}, not an object", kind(&body))));
        };
        let tenant =
            Tenant::new(&text(&mut fields, "tenant")?).map_err(|error| bad_field("tenant", error.to_string()))?;
        let intent = text(&mut fields, "intent")?;
        if intent.is_empty() || intent.chars().count() > MAX_INTENT {
            return Err(bad_field("intent", format!("must have 1 to {MAX_INTENT} characters")));
        }
        let payload = payload(&mut fields)?;
        let budget = optional(&mut fields, "budget").map(budget).transpose()?;
        let ttl_ms = optional(&mut fields, "ttl_ms").map(|value| ttl_ms(&value)).transpose()?;
        if let Some(field) = fields.keys().next() {
            return Err(unknown_field(field));
        }
        Ok(Self { tenant, request: DecideRequest { intent, payload, budget, ttl_ms } })
    }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, ApiError> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(bad_field(name, format!("must be a string, not {}", kind(&other)))),
        None => Err(bad_field(name, "is missing")),
    }
}

fn payload(fields: &mut Map<String, Value>) -> Result<Value, ApiError> {
    match fields.remove("payload") {
        Some(Value::Object(payload)) if payload.contains_key(Assignment::KEY) => {
            let detail = format!("{} is stamped by the dispatcher; use budget and ttl_ms", Assignment::KEY);
            Err(bad_field("payload", detail))
        }
        Some(payload @ Value::Object(_)) => Ok(payload),
        Some(other) => Err(bad_field("payload", format!("must be an object, not {}", kind(&other)))),
        None => Err(bad_field("payload", "is missing")),
    }
}

/// An explicit null says the same as absence.
fn optional(fields: &mut Map<String, Value>, name: &str) -> Option<Value> {
    fields.remove(name).filter(|value| !value.is_null())
}

fn budget(value: Value) -> Result<Budget, ApiError> {
    let Value::Object(fields) = &value else {
        return Err(bad_field("budget", format!("must be an object, not {}", kind(&value))));
    };
    if let Some(field) = fields.keys().find(|name| !["maxCostUsd", "maxTokens"].contains(&name.as_str())) {
        return Err(unknown_field(&format!("budget.{field}")));
    }
    let budget = Budget::deserialize(value).map_err(|error| bad_field("budget", error.to_string()))?;
    match budget.fault() {
        Some(fault) => Err(bad_field("budget", fault)),
        None => Ok(budget),
    }
}

fn ttl_ms(value: &Value) -> Result<u64, ApiError> {
    value
        .as_u64()
        .filter(|ttl_ms| (1..=MAX_TTL_MS).contains(ttl_ms))
        .ok_or_else(|| bad_field("ttl_ms", format!("must be a whole number from 1 to {MAX_TTL_MS}")))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_submission_is_read() {
        let parsed = Submission::parse(json!({
            "tenant": "acme", "intent": "ask", "payload": {"question": "why?"},
            "budget": {"maxCostUsd": 0.1, "maxTokens": 5}, "ttl_ms": 1000}))
        .unwrap();
        assert_eq!((parsed.tenant.as_str(), parsed.request.intent.as_str()), ("acme", "ask"));
        assert_eq!(parsed.request.budget.unwrap().max_tokens, Some(5));
        assert_eq!(parsed.request.ttl_ms, Some(1000));
    }

    #[test]
    fn refusal_names_the_field() {
        let whole = json!({"tenant": "acme", "intent": "ask", "payload": {}});
        for (field, value) in [
            ("tenant", json!(5)),
            ("tenant", json!("a b")),
            ("tenant", json!("")),
            ("intent", json!(null)),
            ("intent", json!("")),
            ("payload", json!([])),
            ("payload", json!("text")),
            ("payload", json!({"__assignment": {}})),
            ("budget", json!(3)),
            ("budget", json!({"maxCostUsd": -1})),
            ("budget", json!({"maxTokens": "many"})),
            ("budget", json!({"max_tokens": 1})),
            ("ttl_ms", json!(0)),
            ("ttl_ms", json!(-5)),
            ("ttl_ms", json!(1.5)),
            ("ttl_ms", json!(u64::MAX)),
            ("surprise", json!(1)),
        ] {
            let mut body = whole.clone();
            body[field] = value.clone();
            let problem = Submission::parse(body).unwrap_err().0;
            assert_eq!(problem.status, 422, "{field} {value}");
            assert!(problem.detail.contains(field), "{}", problem.detail);
        }
        for field in ["tenant", "intent", "payload"] {
            let mut body = whole.clone();
            body.as_object_mut().unwrap().remove(field);
            let problem = Submission::parse(body).unwrap_err().0;
            assert_eq!(problem.detail, format!("{field}: is missing"));
        }
        assert_eq!(Submission::parse(json!([1])).unwrap_err().0.status, 400);
    }
}
