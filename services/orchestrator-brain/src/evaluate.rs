//! Evaluate: what an audit row of the bus says about the decision that led to it.

use chrono::{DateTime, Utc};
use cogo_bus_core::Event;
use cogo_contracts::Usage;
use serde::Deserialize;
use uuid::Uuid;

/// How dispatched work ended, or one attempt of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Well.
    Done,
    /// The attempt failed and another follows.
    Retry,
    /// It became a dead letter.
    Failed,
}

impl Ending {
    /// The kind of audit row that says so.
    #[must_use]
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Done => "execute_done",
            Self::Retry => "execute_retry",
            Self::Failed => "execute_failed",
        }
    }

    fn from_kind(kind: &str) -> Option<Self> {
        [Self::Done, Self::Retry, Self::Failed].into_iter().find(|ending| ending.kind() == kind)
    }
}

/// What a worker reported to have used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spent {
    /// US dollars.
    pub cost_usd: f64,
    /// Tokens, read and written.
    pub tokens: i64,
}

/// An outcome, credited to a decision.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// The audit row.
    pub event_id: i64,
    /// The decision.
    pub decision_id: Uuid,
    /// How it ended.
    pub ending: Ending,
    /// When, by the database clock.
    pub at: DateTime<Utc>,
    /// Which attempt.
    pub attempt: Option<i16>,
    /// Time in ms from sending to this end, waiting included.
    pub latency_ms: Option<f64>,
    /// What was used, if reported.
    pub spent: Option<Spent>,
}

/// Reads an audit row; none for one that no decision led to, such as work that was sent past the orchestrator.
#[must_use]
pub(crate) fn outcome(event: &Event) -> Option<Outcome> {
    let ending = Ending::from_kind(&event.kind)?;
    let decision_id = event.detail.get("decision_id")?.as_str()?.parse().ok()?;
    let number = |key: &str| event.detail.get(key).and_then(serde_json::Value::as_f64);
    let latency = number("wait_ms").zip(number("run_ms")).map(|(wait, run)| (wait + run).max(0.0));
    Some(Outcome {
        event_id: event.id,
        decision_id,
        ending,
        at: event.at,
        attempt: event
            .detail
            .get("attempt")
            .and_then(serde_json::Value::as_i64)
            .and_then(|number| number.try_into().ok()),
        latency_ms: latency,
        spent: event.detail.get("usage").and_then(|usage| spent(&Usage::deserialize(usage).ok()?)),
    })
}

/// Workers are not trusted to report sane amounts: one wrong figure must not spoil a mean for ever.
fn spent(usage: &Usage) -> Option<Spent> {
    let sane = usage.cost_usd.is_finite() && (0.0..=1e6).contains(&usage.cost_usd);
    let tokens = i64::try_from(usage.input_tokens.checked_add(usage.output_tokens)?).ok()?;
    sane.then_some(Spent { cost_usd: usage.cost_usd, tokens })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(kind: &str, detail: Value) -> Event {
        Event {
            id: 5,
            at: DateTime::UNIX_EPOCH,
            kind: kind.to_owned(),
            tenant: "t".to_owned(),
            message_id: None,
            root_id: None,
            route: None,
            actor: None,
            detail,
        }
    }

    #[test]
    fn end_of_dispatched_work_is_credited_to_its_decision() {
        let usage = json!({"input_tokens": 900, "output_tokens": 100, "cost_usd": 0.01, "estimated": false});
        let detail = json!({"decision_id": Uuid::nil(), "attempt": 2, "wait_ms": 10, "run_ms": 32.0, "usage": usage});
        let outcome = outcome(&event("execute_done", detail)).unwrap();
        assert_eq!((outcome.ending, outcome.attempt, outcome.latency_ms), (Ending::Done, Some(2), Some(42.0)));
        assert_eq!(outcome.spent, Some(Spent { cost_usd: 0.01, tokens: 1000 }));
    }

    #[test]
    fn work_past_the_orchestrator_and_other_rows_teach_nothing() {
        for (kind, detail) in [
            ("execute_done", json!({"decision_id": null})),
            ("execute_done", json!({"decision_id": "x"})),
            ("execute_done", json!({})),
            ("execute_enqueued", json!({"decision_id": Uuid::nil()})),
        ] {
            assert_eq!(outcome(&event(kind, detail)), None);
        }
    }

    #[test]
    fn one_never_started_has_no_latency_and_insane_usage_is_dropped() {
        let usage = json!({"input_tokens": 1, "output_tokens": 1, "cost_usd": -5.0, "estimated": false});
        let detail = json!({"decision_id": Uuid::nil(), "attempt": 0, "wait_ms": null, "run_ms": null, "usage": usage});
        let outcome = outcome(&event("execute_failed", detail)).unwrap();
        assert_eq!((outcome.latency_ms, outcome.spent), (None, None));
    }
}
