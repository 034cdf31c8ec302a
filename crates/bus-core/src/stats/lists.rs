//! Lists for people: recent events, dead letters by cause, recent messages.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    Error, Event,
    stats::{bounded, look_back::with_seen_rows},
};

/// Rows by id among which the newest ends are looked for; ten times the longest list.
const RECENT_CAP: i64 = 5000;

/// Dead letters with the same cause on the same route.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct FailureGroup {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: i32,
    /// The error with ids and numbers taken out.
    pub error: String,
    /// How many.
    pub count: i64,
    /// End of the first one.
    pub first_seen: DateTime<Utc>,
    /// End of the newest one.
    pub last_seen: DateTime<Utc>,
    /// The newest one.
    pub sample_id: Uuid,
    /// Task of the newest one.
    pub sample_root_id: Uuid,
    /// Error of the newest one as it stands.
    pub sample_error: String,
}

/// One message without its content, for lists.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct RecentMessage {
    /// Its id.
    pub id: Uuid,
    /// Its task.
    pub root_id: Uuid,
    /// The message whose handler sent it.
    pub parent_id: Option<Uuid>,
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: i32,
    /// Whose it is.
    pub tenant: String,
    /// Its status.
    pub status: String,
    /// Claims made.
    pub attempts: i16,
    /// Last holder.
    pub claimed_by: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When something last happened to it.
    pub changed_at: DateTime<Utc>,
    /// Milliseconds from created to the last claim.
    pub wait_ms: Option<f64>,
    /// Milliseconds from the last claim to its end, or until now while it runs; none while it waits.
    pub run_ms: Option<f64>,
    /// Last error.
    pub error: Option<String>,
}

/// Audit rows in the order of writing: those after an id, or the newest ones without one.
///
/// # Errors
/// As [`summary`](crate::summary).
pub async fn recent_events(
    pool: &PgPool,
    after: Option<i64>,
    kind: Option<&str>,
    limit: u32,
) -> Result<Vec<Event>, Error> {
    let mut snapshot = bounded(pool).await?;
    let query = if after.is_some() {
        "select id, at, kind, tenant, message_id, root_id, route, actor, detail
           from public.bus_events
          where id > $1 and ($2::text is null or kind = $2)
          order by id limit $3"
    } else {
        "select id, at, kind, tenant, message_id, root_id, route, actor, detail
           from (select id, at, kind, tenant, message_id, root_id, route, actor, detail
                   from public.bus_events
                  where $1::bigint is null and ($2::text is null or kind = $2)
                  order by id desc limit $3) as newest
          order by id"
    };
    let events = sqlx::query_as(query).bind(after).bind(kind).bind(i64::from(limit)).fetch_all(&mut *snapshot).await?;
    snapshot.commit().await?;
    Ok(events)
}

/// The newest 10,000 dead letters grouped by route and cause, the group that failed last first.
///
/// # Errors
/// As [`summary`](crate::summary).
pub async fn failures(pool: &PgPool, limit: u32) -> Result<Vec<FailureGroup>, Error> {
    let mut snapshot = bounded(pool).await?;
    let groups = sqlx::query_as(
        "select service, role, shard, error, count, first_seen, last_seen, sample_id, sample_root_id, sample_error
           from bus.failure_groups($1)",
    )
    .bind(i32::try_from(limit).unwrap_or(i32::MAX))
    .fetch_all(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(groups)
}

/// Messages to which something happened last: the newest ends, and what is claimed or waits, up to `limit` of each. The
/// newest ends are those among the newest rows by id.
///
/// # Errors
/// As [`summary`](crate::summary).
pub async fn recent_messages(pool: &PgPool, limit: u32) -> Result<Vec<RecentMessage>, Error> {
    let mut snapshot = bounded(pool).await?;
    let messages = sqlx::query_as(with_seen_rows!(
        ", held as materialized (
            select u.id, u.attempt, c.holder, c.claimed_at
              from (select holder, claimed_at, ids, attempts from bus.claims order by lease_until desc limit $3) as c,
                   unnest(c.ids, c.attempts) as u (id, attempt)
              limit $3 * 10
          ), recent as (
            (select id from seen where done_at is not null order by done_at desc limit $3)
            union
            (select id from seen where done_at is null order by id desc limit $3)
            union
            (select id from held)
            union
            (select id from bus.delayed limit $3)
          )
          select m.id, m.root_id, m.parent_id, m.service, m.role, m.shard, m.tenant,
                 case when h.id is not null then 'claimed' else m.status end as status,
                 coalesce(h.attempt, m.attempts) as attempts, coalesce(h.holder, m.claimed_by) as claimed_by, m.created_at,
                 coalesce(m.done_at, greatest(h.claimed_at, m.claimed_at, m.last_error_at, m.created_at)) as changed_at,
                 case when t.claimed_at is not null
                   then greatest(0, extract(epoch from t.claimed_at - m.created_at) * 1000)::float8 end as wait_ms,
                 -- greatest() would turn a null into 0
                 case when t.claimed_at is not null and (h.id is not null or m.status <> 'queued')
                   then greatest(0, extract(epoch from coalesce(m.done_at, clock_timestamp()) - t.claimed_at)
                                    * 1000)::float8 end as run_ms,
                 m.error
            from recent
           cross join lateral (
              select o.id, o.root_id, o.parent_id, o.service, o.role, o.shard, o.tenant, o.status, o.attempts, o.claimed_by,
                     o.created_at, o.claimed_at, o.done_at, o.last_error_at, o.error
                from public.agent_messages o where o.id = recent.id limit 1) as m
            -- the row of a message that was claimed with many others does not show it yet
            left join held h
              on h.id = m.id
             and ((m.status = 'queued' and m.attempts = h.attempt - 1)
                  or (m.status = 'claimed' and m.attempts = h.attempt and m.claimed_by = h.holder))
           cross join lateral (select coalesce(h.claimed_at, m.claimed_at) as claimed_at) as t
           order by changed_at desc, m.id desc
           limit $3"
    ))
    .bind(RECENT_CAP)
    .bind(None::<f64>)
    .bind(i64::from(limit))
    .fetch_all(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(messages)
}
