//! What the database holds at the end: messages, audit rows, agents, counters.

use std::collections::{BTreeMap, HashSet};

use cogo_bus_core::{Bus, StatusTotal};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool};
use uuid::Uuid;

/// A row of `public.agent_messages`; times are microseconds of the Unix epoch.
#[derive(Debug, Clone, PartialEq, FromRow)]
#[expect(missing_docs, reason = "named and described as the columns of the table are")]
pub struct MessageRow {
    pub id: Uuid,
    pub created_us: i64,
    pub route: String,
    pub tenant: String,
    pub status: String,
    pub attempts: i16,
    pub released: i16,
    pub max_attempts: i16,
    pub claimed_by: Option<String>,
    pub claimed_us: Option<i64>,
    pub expires_us: Option<i64>,
    pub done_us: Option<i64>,
    pub root_id: Uuid,
    pub parent_id: Option<Uuid>,
    pub replay_of: Option<Uuid>,
    pub idempotency_key: Option<String>,
    pub group_key: Option<String>,
    pub result: Option<Value>,
    pub error: Option<String>,
    pub priority: i16,
    /// What stands under `__assignment` of the payload.
    pub assignment: Option<Value>,
    /// What stands under `mark` of the payload.
    pub mark: Option<String>,
    /// What stands under `said` of the payload: how its sender described it.
    pub said: Option<Value>,
}

impl MessageRow {
    /// Whether nothing more can happen to it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "done" | "failed" | "cancelled")
    }
}

/// A row of `public.bus_events` that tells of a message.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct EventRow {
    /// What happened.
    pub kind: String,
    /// Whose message it was.
    pub tenant: String,
    /// The message.
    pub message_id: Uuid,
    /// Number of the attempt that it tells of, if it does.
    pub attempt: Option<i32>,
}

/// A row of `bus.attempts`: a claim that ended without a completion.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct AttemptRow {
    /// The message.
    pub id: Uuid,
    /// Number of the claim.
    pub attempt: i16,
    /// Who held it.
    pub holder: String,
    /// When it was claimed, in microseconds of the Unix epoch.
    pub started_us: Option<i64>,
}

/// How many messages of a route may run at once.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct LimitRow {
    /// Service, role and shard.
    pub route: String,
    /// Whether each tenant has a count of its own.
    pub by_tenant: bool,
    /// At most so many.
    pub max_running: i32,
}

/// A run of an agent in the registry.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct AgentRow {
    /// Name of the agent.
    pub name: String,
    /// Its slot.
    pub slot: i32,
    /// Number of the run within the slot.
    pub epoch: i64,
    /// Name of the run.
    pub holder: String,
    /// Whether it has not ended.
    pub lives: bool,
}

/// The end of a history in the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// All messages.
    pub messages: Vec<MessageRow>,
    /// All audit rows of messages.
    pub events: Vec<EventRow>,
    /// All claims that ended without a completion.
    pub attempts: Vec<AttemptRow>,
    /// All runs of agents.
    pub agents: Vec<AgentRow>,
    /// Limits of routes for all tenants together or for each alike; those for one subject or key are not judged.
    pub limits: Vec<LimitRow>,
    /// Messages that are not where they should be, as far as the layout can tell, and where they are instead.
    pub misplaced: Vec<(Uuid, String)>,
    /// Where unfinished messages stand, as far as the layout can tell.
    pub places: Vec<(Uuid, String)>,
    /// Messages by status, as the bus reports them to people.
    pub shown: BTreeMap<String, i64>,
    /// How many messages were there to be counted, those of other histories too.
    pub counted: usize,
}

impl Rows {
    /// Reads everything in one snapshot; the counters come from the bus itself, so the database must be at rest.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(pool: &PgPool) -> Result<Self, cogo_bus_core::Error> {
        let mut snapshot = pool.begin_with("begin isolation level repeatable read read only").await?;
        let rows = Self::load_tables(&mut snapshot).await?;
        snapshot.commit().await?;
        let mut shown = BTreeMap::new();
        for StatusTotal { status, messages, .. } in cogo_bus_core::totals(Bus::new(pool.clone()).pool()).await? {
            *shown.entry(status).or_default() += messages;
        }
        Ok(Self { shown, ..rows })
    }

    /// Leaves out messages of another history, all of them ended.
    pub fn forget(&mut self, former: &HashSet<Uuid>) {
        for row in self.messages.iter().filter(|row| former.contains(&row.id)) {
            if let Some(count) = self.shown.get_mut(&row.status) {
                *count -= 1;
            }
        }
        self.messages.retain(|row| !former.contains(&row.id));
        self.events.retain(|event| !former.contains(&event.message_id));
        self.attempts.retain(|attempt| !former.contains(&attempt.id));
    }

    async fn load_tables(snapshot: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let messages = sqlx::query_as(
            "select id, (extract(epoch from created_at) * 1000000)::bigint as created_us,
                    service || '/' || role || '/' || shard as route, tenant, status, attempts, released, max_attempts,
                    claimed_by, (extract(epoch from claimed_at) * 1000000)::bigint as claimed_us,
                    (extract(epoch from expires_at) * 1000000)::bigint as expires_us,
                    (extract(epoch from done_at) * 1000000)::bigint as done_us,
                    root_id, parent_id, replay_of, idempotency_key, group_key, result, error, priority,
                    payload -> '__assignment' as assignment, payload ->> 'mark' as mark, payload -> 'said' as said
               from public.agent_messages",
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let events = sqlx::query_as(
            "select kind, tenant, message_id, (detail ->> 'attempt')::integer as attempt
               from public.bus_events where message_id is not null order by id",
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let attempts = sqlx::query_as(
            "select id, attempt, holder, (extract(epoch from started_at) * 1000000)::bigint as started_us from bus.attempts",
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let agents = sqlx::query_as(
            "select name, slot, epoch, holder, state <> 'terminated' as lives from registry.agents order by epoch",
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let limits = sqlx::query_as(
            "select r.service || '/' || r.role || '/' || r.shard as route, l.counted_by = 'tenant' as by_tenant, l.max_running
               from bus.limits l join bus.routes r on r.lane = l.lane
              where l.max_running is not null and l.subject = '' and l.counted_by in ('route', 'tenant')",
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let can_tell: bool = sqlx::query_scalar("select to_regprocedure('bus.misplaced()') is not null")
            .fetch_one(&mut *snapshot)
            .await?;
        let misplaced = if can_tell {
            sqlx::query_as(
                "select id, coalesce('in ' || nullif(array_to_string(places, ' and '), ''), 'nowhere') from bus.misplaced()",
            )
            .fetch_all(&mut *snapshot)
            .await?
        } else {
            Vec::new()
        };
        let places = if can_tell {
            sqlx::query_as("select id, place from bus.whereabouts()").fetch_all(&mut *snapshot).await?
        } else {
            Vec::new()
        };
        let counted = messages.len();
        Ok(Self { messages, events, attempts, agents, limits, misplaced, places, shown: BTreeMap::new(), counted })
    }
}
