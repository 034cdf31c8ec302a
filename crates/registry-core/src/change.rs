//! One row of the registry's log: who changed from what to what, and why.

use chrono::{DateTime, Utc};
use cogo_contracts::{AgentId, AgentState, Endpoint};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    entry::{Entry, Load},
    registry::Error,
};

/// One change of membership.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Version of the registry that it made.
    pub version: i64,
    /// When, by the database clock.
    pub at: DateTime<Utc>,
    /// What happened, as in [`TRANSITIONS`](crate::TRANSITIONS).
    pub op: String,
    /// Whom it happened to.
    pub instance_id: Uuid,
    /// Epoch of that run.
    pub epoch: i64,
    /// Its holder name.
    pub holder: String,
    /// State before.
    pub from: String,
    /// State after.
    pub to: AgentState,
    /// Why, where somebody said so.
    pub reason: Option<String>,
    /// Which program asked for it.
    pub asked_by: Option<String>,
    /// The agent, for one that joined.
    pub(crate) joined: Option<Box<Entry>>,
}

#[derive(Debug, Deserialize, sqlx::FromRow)]
pub(crate) struct ChangeRow {
    version: i64,
    at: DateTime<Utc>,
    op: String,
    instance_id: Uuid,
    epoch: i64,
    holder: String,
    from_state: String,
    to_state: String,
    reason: Option<String>,
    asked_by: Option<String>,
    body: serde_json::Value,
}

/// What the log keeps of an agent that joined; what is missing was not known yet when the row was written.
#[derive(Debug, Deserialize)]
struct Joined {
    domain: String,
    name: String,
    slot: i32,
    version: String,
    capabilities: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    location: serde_json::Value,
    endpoints: serde_json::Value,
    level: i16,
    parent: Option<String>,
    #[serde(default)]
    carrier: Option<Uuid>,
    #[serde(default)]
    public_key: Option<String>,
}

impl TryFrom<ChangeRow> for Change {
    type Error = Error;

    fn try_from(row: ChangeRow) -> Result<Self, Error> {
        let unexpected = |column: &'static str| Error::Unexpected { column, instance_id: row.instance_id };
        let to = AgentState::from_name(&row.to_state).ok_or_else(|| unexpected("log.to_state"))?;
        let joined = if row.op == "registered" {
            let joined: Joined = serde_json::from_value(row.body).map_err(|_| unexpected("log.body"))?;
            Some(Box::new(joined.entry(row.instance_id, row.epoch, &row.holder)))
        } else {
            None
        };
        Ok(Self {
            version: row.version,
            at: row.at,
            op: row.op,
            instance_id: row.instance_id,
            epoch: row.epoch,
            holder: row.holder,
            from: row.from_state,
            to,
            reason: row.reason,
            asked_by: row.asked_by,
            joined,
        })
    }
}

impl Joined {
    fn entry(self, instance_id: Uuid, epoch: i64, holder: &str) -> Entry {
        Entry {
            id: AgentId {
                domain: self.domain,
                name: self.name,
                slot: self.slot,
                instance_id,
                version: readable_version(&self.version),
            },
            epoch,
            state: AgentState::Registered,
            holder: holder.to_owned(),
            capabilities: self.capabilities,
            tags: self.tags,
            location: serde_json::from_value(self.location).ok(),
            endpoints: readable_endpoints(self.endpoints),
            level: self.level,
            parent: self.parent,
            carrier: self.carrier,
            public_key: self.public_key.as_deref().and_then(key_from_hex),
            load: std::sync::Arc::new(Load::default()),
        }
    }
}

/// The version, or its numbers alone where the database is content with what semantic versioning is not.
pub(crate) fn readable_version(text: &str) -> semver::Version {
    let numbers = || text.split(['-', '+']).next().and_then(|numbers| numbers.parse().ok());
    text.parse().ok().or_else(numbers).unwrap_or(semver::Version::new(0, 0, 0))
}

/// The endpoints that are of the usual form; agents in other languages may write what they like.
pub(crate) fn readable_endpoints(listed: serde_json::Value) -> Vec<Endpoint> {
    let serde_json::Value::Array(listed) = listed else {
        return Vec::new();
    };
    listed.into_iter().filter_map(|endpoint| serde_json::from_value(endpoint).ok()).collect()
}

pub(crate) fn key_from_hex(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_hex() {
        assert_eq!(key_from_hex(&"0a".repeat(32)), Some([10; 32]));
        assert_eq!(key_from_hex("0a"), None);
        assert_eq!(key_from_hex(&"zz".repeat(32)), None);
    }
}
