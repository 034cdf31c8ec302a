//! An agent as the registry knows it.

use chrono::{DateTime, Utc};
use cogo_contracts::{AgentId, AgentState, Endpoint, Location};
use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;

use crate::registry::Error;

/// One run of a process, living or ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agent {
    /// Who it is.
    #[serde(flatten)]
    pub id: AgentId,
    /// How many owners its slot has had, this one included.
    pub epoch: i64,
    /// State of its life.
    pub state: AgentState,
    /// Name under which it claims.
    pub holder: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Where it runs.
    pub location: Location,
    /// Addresses at which it answers.
    pub endpoints: Vec<Endpoint>,
    /// 1 strategic, 2 operational, 3 external.
    pub level: i16,
    /// `name/slot` of the agent that answers for it.
    pub parent: Option<String>,
    /// When it registered, by the database clock.
    pub registered_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// Milliseconds since its last beat; none once it has ended.
    pub beat_age_ms: Option<i64>,
    /// Whether it said that it can do its work.
    pub ready: bool,
    /// Messages that it works on.
    pub in_flight: i32,
    /// Processor use, 1.0 being one core.
    pub cpu_cores: Option<f32>,
    /// Resident memory in bytes.
    pub memory_bytes: Option<i64>,
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct AgentRow {
    instance_id: Uuid,
    domain: String,
    name: String,
    slot: i32,
    epoch: i64,
    version: String,
    state: String,
    holder: String,
    capabilities: Vec<String>,
    location: serde_json::Value,
    endpoints: Json<Vec<Endpoint>>,
    level: i16,
    parent: Option<String>,
    registered_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    end_reason: Option<String>,
    beat_age_ms: Option<i64>,
    ready: Option<bool>,
    in_flight: Option<i32>,
    cpu_cores: Option<f32>,
    memory_bytes: Option<i64>,
}

impl TryFrom<AgentRow> for Agent {
    type Error = Error;

    fn try_from(row: AgentRow) -> Result<Self, Error> {
        let unexpected = |column: &'static str| Error::Unexpected { column, instance_id: row.instance_id };
        let version = row.version.parse().map_err(|_| unexpected("agents.version"))?;
        let state = AgentState::from_name(&row.state).ok_or_else(|| unexpected("agents.state"))?;
        let location = serde_json::from_value(row.location).map_err(|_| unexpected("agents.location"))?;
        Ok(Self {
            id: AgentId { domain: row.domain, name: row.name, slot: row.slot, instance_id: row.instance_id, version },
            epoch: row.epoch,
            state,
            holder: row.holder,
            capabilities: row.capabilities,
            location,
            endpoints: row.endpoints.0,
            level: row.level,
            parent: row.parent,
            registered_at: row.registered_at,
            ended_at: row.ended_at,
            end_reason: row.end_reason,
            beat_age_ms: row.beat_age_ms,
            ready: row.ready.unwrap_or(false),
            in_flight: row.in_flight.unwrap_or(0),
            cpu_cores: row.cpu_cores,
            memory_bytes: row.memory_bytes,
        })
    }
}
