//! Audit rows about messages: writing in the caller's transaction, reading in order.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::Error;

/// An audit row.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Event {
    /// Order of writing.
    pub id: i64,
    /// When, by the database clock.
    pub at: DateTime<Utc>,
    /// What happened.
    pub kind: String,
    /// Whose message it was.
    pub tenant: String,
    /// The message.
    pub message_id: Option<Uuid>,
    /// Its task.
    pub root_id: Option<Uuid>,
    /// `service/role/shard` of the message.
    pub route: Option<String>,
    /// Who did it.
    pub actor: Option<String>,
    /// Facts of the kind.
    pub detail: Value,
}

/// An audit row to be written.
#[derive(Debug, Clone)]
pub struct NewEvent<'a> {
    /// What happened, such as `execute_enqueued`.
    pub kind: &'a str,
    /// Whose message it was.
    pub tenant: &'a str,
    /// The message.
    pub message_id: Option<Uuid>,
    /// Its task.
    pub root_id: Option<Uuid>,
    /// The route it went to.
    pub route: Option<String>,
    /// Who did it.
    pub actor: &'a str,
    /// Facts of the kind.
    pub detail: Value,
}

/// Writes an audit row inside the caller's transaction.
///
/// # Errors
/// When the database does not answer or refuses the kind.
pub async fn record_event(connection: &mut PgConnection, event: &NewEvent<'_>) -> Result<(), Error> {
    sqlx::query(
        "insert into public.bus_events (kind, tenant, message_id, root_id, route, actor, detail)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(event.kind)
    .bind(event.tenant)
    .bind(event.message_id)
    .bind(event.root_id)
    .bind(&event.route)
    .bind(event.actor)
    .bind(&event.detail)
    .execute(connection)
    .await?;
    Ok(())
}

/// All audit rows of a task in order.
///
/// # Errors
/// When the database does not answer.
pub async fn events_of_task(pool: &PgPool, root: Uuid) -> Result<Vec<Event>, Error> {
    let events = sqlx::query_as(
        "select id, at, kind, tenant, message_id, root_id, route, actor, detail
           from public.bus_events where root_id = $1 order by id",
    )
    .bind(root)
    .fetch_all(pool)
    .await?;
    Ok(events)
}

/// Outcomes of dispatched work (`execute_done`, `execute_retry`, `execute_failed`) after a point, in order.
///
/// # Errors
/// When the database does not answer.
pub async fn execution_events_after(pool: &PgPool, after: i64, limit: u32) -> Result<Vec<Event>, Error> {
    let events = sqlx::query_as(
        "select id, at, kind, tenant, message_id, root_id, route, actor, detail
           from public.bus_events
          where kind in ('execute_done', 'execute_retry', 'execute_failed') and id > $1
          order by id limit $2",
    )
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    Ok(events)
}
