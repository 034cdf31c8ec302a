//! Figures over the bus for people: counts, latencies, throughput by route. Bounded work on any size of table.

mod lists;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

pub use lists::{FailureGroup, RecentMessage, failures, recent_events, recent_messages};

use crate::Error;

/// Rows that one count looks at; above it the count is "at least".
pub const COUNT_CAP: i64 = 100_000;

/// Ended messages that rates and latencies look at, newest first; percentiles of more cost a sort and say no more.
pub const SAMPLE_CAP: i64 = 25_000;

/// Messages by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StatusCounts {
    /// Waiting, delayed ones included.
    pub queued: i64,
    /// Owned by a holder.
    pub claimed: i64,
    /// Completed.
    pub done: i64,
    /// Dead letters.
    pub failed: i64,
    /// Taken back.
    pub cancelled: i64,
}

/// Which counts are "at least" because [`COUNT_CAP`] was reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Capped {
    /// More may wait.
    pub queued: bool,
    /// More may be claimed.
    pub claimed: bool,
    /// More may be done.
    pub done: bool,
    /// More may be failed.
    pub failed: bool,
    /// More may be cancelled.
    pub cancelled: bool,
}

/// Percentiles in milliseconds; none without a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half took no longer.
    pub p50: Option<f64>,
    /// Nine in ten took no longer.
    pub p90: Option<f64>,
    /// 99 in 100 took no longer.
    pub p99: Option<f64>,
    /// Size of the sample.
    pub n: i64,
}

/// Figures of one route.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct RouteStats {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: i32,
    /// Waiting, delayed ones included.
    pub queued: i64,
    /// Owned by a holder.
    pub claimed: i64,
    /// Completed within the window.
    pub done: i64,
    /// Given up within the window.
    pub failed: i64,
    /// Seconds that the oldest message has been claimable or would have been, delayed ones aside.
    pub oldest_age_s: Option<f64>,
    /// Median from created to done, of the window.
    pub p50_ms: Option<f64>,
    /// 90th percentile from created to done, of the window.
    pub p90_ms: Option<f64>,
}

/// Messages of one route and status, all shards together.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct StatusTotal {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Status of these messages.
    pub status: String,
    /// How many; done and cancelled ones count as far as they are among the newest [`COUNT_CAP`] ended.
    pub messages: i64,
    /// Seconds that the oldest claimable one has waited; none for other statuses.
    pub oldest_age_s: Option<f64>,
}

/// The bus at one moment, and what ended in a window before it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The moment, by the database clock.
    #[serde(skip)]
    pub at: DateTime<Utc>,
    /// Rows of the table by status.
    #[serde(rename = "byStatus")]
    pub by_status: StatusCounts,
    /// Which of them are "at least".
    pub capped: Capped,
    /// Of the queued, those that wait for their time.
    pub delayed: i64,
    /// From created to done, of messages completed within the window.
    pub latency_ms: Percentiles,
    /// From created to the last claim, of messages that ended within the window.
    pub wait_ms: Percentiles,
    /// Share of failed among done and failed of the window, 0 without any.
    pub failure_rate: f64,
    /// Messages completed per second of the window.
    pub throughput_per_s: f64,
    /// Seconds that the oldest claimable message has waited.
    pub oldest_queued_age_s: Option<f64>,
    /// Seconds that the window covers; shorter than asked for when more than [`SAMPLE_CAP`] messages ended in it.
    pub window_s: f64,
    /// Each route with unfinished messages or with ends within the window.
    #[serde(rename = "byKey")]
    pub by_route: Vec<RouteStats>,
}

/// The figures of the bus, all from one snapshot; `window` goes back from now.
///
/// # Errors
/// [`Error::Database`] also when a figure takes longer than 2 s.
pub async fn summary(pool: &PgPool, window: Duration) -> Result<Summary, Error> {
    let mut snapshot = bounded(pool).await?;
    let counts = counts(&mut snapshot).await?;
    let ended = ended(&mut snapshot, window).await?;
    let by_route = routes(&mut snapshot, window).await?;
    snapshot.commit().await?;

    let covered = if ended.n >= SAMPLE_CAP { ended.covered_s.unwrap_or_default() } else { window.as_secs_f64() };
    let finished = ended.done + ended.failed;
    Ok(Summary {
        at: counts.at,
        by_status: StatusCounts {
            queued: (counts.ready + counts.delayed).min(COUNT_CAP),
            claimed: counts.claimed.min(COUNT_CAP),
            done: counts.done.min(COUNT_CAP),
            failed: counts.failed.min(COUNT_CAP),
            cancelled: counts.cancelled.min(COUNT_CAP),
        },
        capped: Capped {
            queued: counts.ready + counts.delayed > COUNT_CAP,
            claimed: counts.claimed > COUNT_CAP,
            done: counts.ended > COUNT_CAP,
            failed: counts.failed > COUNT_CAP,
            cancelled: counts.ended > COUNT_CAP,
        },
        delayed: counts.delayed.min(COUNT_CAP),
        latency_ms: percentiles(ended.total_ms.as_deref(), ended.done),
        wait_ms: percentiles(ended.wait_ms.as_deref(), ended.waited),
        failure_rate: ratio(ended.failed, finished),
        throughput_per_s: per_second(ended.done, covered),
        oldest_queued_age_s: counts.oldest_age_s,
        window_s: covered,
        by_route,
    })
}

/// Rows of the table by service, role and status, for gauges.
///
/// # Errors
/// As [`summary`].
pub async fn totals(pool: &PgPool) -> Result<Vec<StatusTotal>, Error> {
    let mut snapshot = bounded(pool).await?;
    let totals = sqlx::query_as(
        "with seen as (
            (select service, role, status, created_at as waits_since
               from public.agent_messages where status = 'queued' and retry_at is null limit $1)
            union all
            (select service, role, status, null
               from public.agent_messages where status = 'queued' and retry_at is not null limit $1)
            union all
            (select service, role, status, null from public.agent_messages where status = 'claimed' limit $1)
            union all
            (select service, role, status, null from public.agent_messages where status = 'failed' limit $1)
            union all
            (select service, role, status, null
               from (select service, role, status from public.agent_messages
                      where done_at is not null order by done_at desc limit $1) as newest
              where status <> 'failed')
          )
          select service, role, status, count(*) as messages,
                 case when count(waits_since) > 0
                   then greatest(0, extract(epoch from clock_timestamp() - min(waits_since)))::float8 end as oldest_age_s
            from seen
           group by service, role, status
           order by service, role, status
           limit 2000",
    )
    .bind(COUNT_CAP)
    .fetch_all(&mut *snapshot)
    .await?;
    snapshot.commit().await?;
    Ok(totals)
}

/// One snapshot for all statements, and no statement longer than 2 s: a page for people must not slow down the bus.
async fn bounded(pool: &PgPool) -> Result<Transaction<'static, Postgres>, Error> {
    let mut snapshot = pool.begin_with("begin isolation level repeatable read, read only").await?;
    sqlx::query("set local statement_timeout = '2s'").execute(&mut *snapshot).await?;
    Ok(snapshot)
}

#[derive(sqlx::FromRow)]
struct Counts {
    at: DateTime<Utc>,
    ready: i64,
    delayed: i64,
    claimed: i64,
    failed: i64,
    done: i64,
    cancelled: i64,
    ended: i64,
    oldest_age_s: Option<f64>,
}

/// Each count walks a partial index and stops one above the cap; done and cancelled share the index of ended rows.
async fn counts(connection: &mut PgConnection) -> Result<Counts, Error> {
    let counts = sqlx::query_as(
        "with ready as materialized (
            select created_at from public.agent_messages where status = 'queued' and retry_at is null limit $1 + 1
          ), newest_ended as materialized (
            select status from public.agent_messages where done_at is not null order by done_at desc limit $1 + 1
          )
          select clock_timestamp() as at,
                 (select count(*) from ready) as ready,
                 -- greatest() would turn a null into 0
                 (select case when count(*) > 0
                    then greatest(0, extract(epoch from clock_timestamp() - min(created_at)))::float8 end from ready)
                   as oldest_age_s,
                 (select count(*) from (select from public.agent_messages
                   where status = 'queued' and retry_at is not null limit $1 + 1) as d) as delayed,
                 (select count(*) from (select from public.agent_messages where status = 'claimed' limit $1 + 1) as c)
                   as claimed,
                 (select count(*) from (select from public.agent_messages where status = 'failed' limit $1 + 1) as f)
                   as failed,
                 (select count(*) from newest_ended where status = 'done') as done,
                 (select count(*) from newest_ended where status = 'cancelled') as cancelled,
                 (select count(*) from newest_ended) as ended",
    )
    .bind(COUNT_CAP)
    .fetch_one(connection)
    .await?;
    Ok(counts)
}

#[derive(sqlx::FromRow)]
struct Ended {
    n: i64,
    done: i64,
    failed: i64,
    waited: i64,
    covered_s: Option<f64>,
    total_ms: Option<Vec<f64>>,
    wait_ms: Option<Vec<f64>>,
}

async fn ended(connection: &mut PgConnection, window: Duration) -> Result<Ended, Error> {
    let ended = sqlx::query_as(
        "with ended as materialized (
            select status, created_at, claimed_at, done_at
              from public.agent_messages
              -- in a subquery the clock is read once, so that the index on done_at bounds the scan
             where done_at >= (select clock_timestamp() - $1 * interval '1 second')
             order by done_at desc limit $2
          )
          select count(*) as n,
                 count(*) filter (where status = 'done') as done,
                 count(*) filter (where status = 'failed') as failed,
                 count(claimed_at) as waited,
                 extract(epoch from clock_timestamp() - min(done_at))::float8 as covered_s,
                 percentile_cont(array[0.5, 0.9, 0.99]) within group (
                   order by greatest(0, extract(epoch from done_at - created_at) * 1000)::float8)
                   filter (where status = 'done') as total_ms,
                 percentile_cont(array[0.5, 0.9, 0.99]) within group (
                   order by greatest(0, extract(epoch from claimed_at - created_at) * 1000)::float8)
                   filter (where claimed_at is not null) as wait_ms
            from ended",
    )
    .bind(window.as_secs_f64())
    .bind(SAMPLE_CAP)
    .fetch_one(connection)
    .await?;
    Ok(ended)
}

async fn routes(connection: &mut PgConnection, window: Duration) -> Result<Vec<RouteStats>, Error> {
    let routes = sqlx::query_as(
        "with unfinished as (
            -- apart from the ended ones: a percentile sorts, and a long queue would be sorted with it
            select service, role, shard, min(waits_since) as waits_since,
                   count(*) filter (where not held) as queued, count(*) filter (where held) as claimed
              from (
                (select service, role, shard, false as held, created_at as waits_since
                   from public.agent_messages where status = 'queued' and retry_at is null limit $2)
                union all
                (select service, role, shard, false, null
                   from public.agent_messages where status = 'queued' and retry_at is not null limit $2)
                union all
                (select service, role, shard, true, null
                   from public.agent_messages where status = 'claimed' limit $2)
              ) as counted
             group by service, role, shard
          ), sample as (
            select service, role, shard, status,
                   greatest(0, extract(epoch from done_at - created_at) * 1000)::float8 as total_ms
              from public.agent_messages
             where done_at >= (select clock_timestamp() - $1 * interval '1 second')
             order by done_at desc limit $3
          ), ended as (
            select service, role, shard,
                   count(*) filter (where status = 'done') as done,
                   count(*) filter (where status = 'failed') as failed,
                   percentile_cont(array[0.5, 0.9]) within group (order by total_ms) filter (where status = 'done') as ms
              from sample group by service, role, shard
          )
          select service, role, shard,
                 coalesce(u.queued, 0) as queued, coalesce(u.claimed, 0) as claimed,
                 coalesce(e.done, 0) as done, coalesce(e.failed, 0) as failed,
                 case when u.waits_since is not null
                   then greatest(0, extract(epoch from clock_timestamp() - u.waits_since))::float8 end as oldest_age_s,
                 e.ms[1] as p50_ms, e.ms[2] as p90_ms
            from unfinished u full join ended e using (service, role, shard)
           order by service, role, shard
           limit 500",
    )
    .bind(window.as_secs_f64())
    .bind(COUNT_CAP)
    .bind(SAMPLE_CAP)
    .fetch_all(connection)
    .await?;
    Ok(routes)
}

fn percentiles(values: Option<&[f64]>, n: i64) -> Percentiles {
    let at = |index: usize| values.and_then(|values| values.get(index)).copied();
    Percentiles { p50: at(0), p90: at(1), p99: at(2), n }
}

fn ratio(part: i64, whole: i64) -> f64 {
    if whole > 0 { to_f64(part) / to_f64(whole) } else { 0.0 }
}

fn per_second(count: i64, seconds: f64) -> f64 {
    if seconds > 0.0 { to_f64(count) / seconds } else { 0.0 }
}

/// Exact: counts end at [`COUNT_CAP`].
fn to_f64(count: i64) -> f64 {
    i32::try_from(count).map_or(f64::MAX, f64::from)
}
