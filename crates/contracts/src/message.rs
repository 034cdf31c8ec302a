//! What a sender says of a message, and the states it goes through.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Route, Tenant};

/// State of a message, as in `agent_messages.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageStatus {
    /// Waits to be claimed.
    Queued,
    /// Owned by a holder until its lease ends.
    Claimed,
    /// Completed once.
    Done,
    /// Dead letter.
    Failed,
    /// Taken back.
    Cancelled,
}

/// A message to be sent. The field names are those of `bus.enqueue_many`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewMessage {
    /// Where to.
    #[serde(flatten)]
    pub route: Route,
    /// Whose; a follow-up inherits it from the message being handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// The request, a JSON object.
    pub payload: Value,
    /// Id given by the sender, else the database makes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// 0 to 1000, lower first, default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Counted attempts after which a failure is final, default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<i16>,
    /// Not before this many ms from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Never started later than this many ms from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// One message per tenant and key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// How long the key stays in use, ms; default 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_ms: Option<u64>,
    /// Messages of one group on one route run in order, one at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_key: Option<String>,
    /// What limits per key count by, within the tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_key: Option<String>,
    /// Only this instance may claim it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_instance: Option<String>,
    /// Key under which the sender waits for a reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Trace context and other transport headers.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub headers: Map<String, Value>,
    /// Messages that must have ended, well or not, before it starts: such as exist, or stand in the same batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub awaits: Vec<Uuid>,
}

impl NewMessage {
    /// A message with defaults for everything but its address and request.
    #[must_use]
    pub fn new(route: Route, tenant: Option<Tenant>, payload: Value) -> Self {
        Self {
            route,
            tenant,
            payload,
            id: None,
            priority: None,
            max_attempts: None,
            delay_ms: None,
            ttl_ms: None,
            idempotency_key: None,
            idempotency_ms: None,
            group_key: None,
            limit_key: None,
            target_instance: None,
            reply_to: None,
            headers: Map::new(),
            awaits: Vec::new(),
        }
    }

    /// Whether it has an address and content only, and defaults for all else.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        // every field is named, so that a new one is thought of here
        let Self {
            route: _,
            tenant: _,
            payload: _,
            id: _,
            headers: _,
            priority: None,
            max_attempts: None,
            delay_ms: None,
            ttl_ms: None,
            idempotency_key: None,
            idempotency_ms: None,
            group_key: None,
            limit_key: None,
            target_instance: None,
            reply_to: None,
            awaits,
        } = self
        else {
            return false;
        };
        awaits.is_empty()
    }

    /// A follow-up of the message being handled, with a typed request.
    ///
    /// # Errors
    /// When the request does not serialize to JSON.
    pub fn follow_up(route: Route, request: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new(route, None, serde_json::to_value(request)?))
    }
}

/// A failed message, as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its id.
    pub id: Uuid,
    /// The task it belonged to.
    pub root_id: Uuid,
    /// Where it was sent.
    pub route: Route,
    /// Whose it was.
    pub tenant: Tenant,
    /// Claims made.
    pub attempts: i16,
    /// Reason of the last failure.
    pub error: String,
    /// When it was given up.
    pub failed_at: DateTime<Utc>,
    /// The message that ran it again, if any.
    pub replayed_by: Option<Uuid>,
}
