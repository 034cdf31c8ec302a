//! Lists for people: recent events, dead letters by cause, recent messages.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{Error, Event, stats::bounded};

/// Dead letters that are grouped by cause, newest first.
const GROUPED_CAP: i64 = 10_000;

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
        r"with dead as materialized (
            select m.id, m.root_id, m.service, m.role, m.shard, m.error, m.done_at,
                   -- ids first, as they hold numbers; a cause is told by its first line
                   regexp_replace(regexp_replace(regexp_replace(
                     left(split_part(m.error, E'\n', 1), 300),
                     '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', '<id>', 'gi'),
                     '\m(0x)?(?=[a-f]*[0-9])[0-9a-f]{12,}\M', '<hex>', 'gi'),
                     '[0-9]+', '<n>', 'g') as cause
              from public.agent_messages m
             where m.status = 'failed'
             order by m.done_at desc limit $2
          )
          select service, role, shard, cause as error, count(*) as count,
                 min(done_at) as first_seen, max(done_at) as last_seen,
                 (array_agg(id order by done_at desc, id desc))[1] as sample_id,
                 (array_agg(root_id order by done_at desc, id desc))[1] as sample_root_id,
                 (array_agg(error order by done_at desc, id desc))[1] as sample_error
            from dead
           group by service, role, shard, cause
           order by last_seen desc, count desc
           limit $1",
    )
    .bind(i64::from(limit))
    .bind(GROUPED_CAP)
    .fetch_all(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(groups)
}

/// Messages to which something happened last: the newest ends, and what is claimed or waits, up to `limit` of each.
///
/// # Errors
/// As [`summary`](crate::summary).
pub async fn recent_messages(pool: &PgPool, limit: u32) -> Result<Vec<RecentMessage>, Error> {
    let mut snapshot = bounded(pool).await?;
    let messages = sqlx::query_as(
        "with recent as (
            (select id from public.agent_messages where done_at is not null order by done_at desc limit $1)
            union all
            (select id from public.agent_messages where status = 'claimed' order by lease_until desc limit $1)
            union all
            (select id from public.agent_messages where status = 'queued' and retry_at is null limit $1)
            union all
            (select id from public.agent_messages where status = 'queued' and retry_at is not null limit $1)
          )
          select m.id, m.root_id, m.parent_id, m.service, m.role, m.shard, m.tenant, m.status, m.attempts,
                 m.claimed_by, m.created_at, coalesce(m.done_at, m.last_error_at, m.claimed_at, m.created_at) as changed_at,
                 -- greatest() would turn a null into 0
                 case when m.claimed_at is not null
                   then greatest(0, extract(epoch from m.claimed_at - m.created_at) * 1000)::float8 end as wait_ms,
                 case when m.claimed_at is not null and m.status <> 'queued'
                   then greatest(0, extract(epoch from coalesce(m.done_at, clock_timestamp()) - m.claimed_at)
                                    * 1000)::float8 end as run_ms,
                 m.error
            from recent join public.agent_messages m using (id)
           order by changed_at desc, m.id desc
           limit $1",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(messages)
}
