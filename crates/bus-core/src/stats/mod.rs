//! Figures over the bus for people: counts, latencies, throughput by route. Bounded work on any size of table.

mod lists;
mod look_back;
mod standing;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, Postgres, Transaction};

pub use lists::{FailureGroup, RecentMessage, failures, recent_events, recent_messages};
pub use standing::{Standing, standing};

use crate::Error;

/// Rows that one count looks at; above it the count is "at least".
pub const COUNT_CAP: i64 = 100_000;

/// Rows that rates and latencies look at, newest first; percentiles of more cost a sort and say no more.
pub const SAMPLE_CAP: i64 = 25_000;

/// Rows that [`load`] looks at for rates and times of work.
const LOAD_SAMPLE_CAP: i64 = 4000;

/// Routes that a summary lists; its totals count all.
const LISTED_ROUTES: usize = 500;

/// Series that gauges get.
const LISTED_TOTALS: usize = 2000;

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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteStats {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: i32,
    /// Waiting: to be claimed, for their time, in line behind others of their group, or for others to end.
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
    /// Mean from the last claim to the end, of the claimed ones that were completed or given up within the window.
    pub mean_run_ms: Option<f64>,
}

/// Messages of one route and status, all shards together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusTotal {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Status of these messages.
    pub status: String,
    /// How many; done and cancelled ones count as far as they are among the newest [`COUNT_CAP`] rows.
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
    /// Seconds that the window covers; shorter than asked for when [`SAMPLE_CAP`] rows do not reach back so far.
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
    let standing = standing::by_route(&mut snapshot, COUNT_CAP).await?;
    let ends = look_back::ends(&mut snapshot, COUNT_CAP).await?;
    let recent = look_back::recent(&mut snapshot, window, SAMPLE_CAP).await?;
    snapshot.commit().await?;

    let queued: i64 = standing.iter().map(|row| row.queued).sum();
    let delayed: i64 = standing.iter().map(|row| row.delayed).sum();
    let claimed: i64 = standing.iter().map(|row| row.claimed).sum();
    let total = recent.total;
    Ok(Summary {
        at: ends.at,
        by_status: StatusCounts {
            queued: queued.min(COUNT_CAP),
            claimed: claimed.min(COUNT_CAP),
            done: ends.done.min(COUNT_CAP),
            failed: ends.failed.min(COUNT_CAP),
            cancelled: ends.cancelled.min(COUNT_CAP),
        },
        capped: Capped {
            queued: queued > COUNT_CAP,
            claimed: claimed > COUNT_CAP,
            done: ends.more || ends.done > COUNT_CAP,
            failed: ends.failed > COUNT_CAP,
            cancelled: ends.more || ends.cancelled > COUNT_CAP,
        },
        delayed: delayed.min(COUNT_CAP),
        latency_ms: percentiles(total.total_ms.as_deref(), total.done),
        wait_ms: percentiles(total.wait_ms.as_deref(), total.waited),
        failure_rate: ratio(total.failed, total.done + total.failed),
        throughput_per_s: per_second(total.done, recent.covered_s),
        oldest_queued_age_s: standing.iter().filter_map(|row| row.oldest_age_s).reduce(f64::max),
        window_s: recent.covered_s,
        by_route: by_route(standing, recent.by_route),
    })
}

/// What a pool is scaled by.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Seconds that rates cover; shorter than asked for when much ended lately.
    pub window_s: f64,
    /// Each route with unfinished messages or with ends within the window.
    pub by_route: Vec<RouteStats>,
}

/// What waits, what is at work and what ended within `window`, by route: a part of [`summary`] that is cheap enough to be
/// asked for every second.
///
/// # Errors
/// As [`summary`].
pub async fn load(pool: &PgPool, window: Duration) -> Result<Load, Error> {
    let mut snapshot = bounded(pool).await?;
    let standing = standing::by_route(&mut snapshot, COUNT_CAP).await?;
    let recent = look_back::recent(&mut snapshot, window, LOAD_SAMPLE_CAP).await?;
    snapshot.commit().await?;
    Ok(Load { window_s: recent.covered_s, by_route: by_route(standing, recent.by_route) })
}

/// What stands and what ended, side by side.
fn by_route(standing: Vec<standing::Standing>, ended: Vec<look_back::Ended>) -> Vec<RouteStats> {
    let mut routes = BTreeMap::new();
    for row in standing {
        routes.insert(
            (row.service.clone(), row.role.clone(), row.shard),
            RouteStats {
                service: row.service,
                role: row.role,
                shard: row.shard,
                queued: row.queued,
                claimed: row.claimed,
                done: 0,
                failed: 0,
                oldest_age_s: row.oldest_age_s,
                p50_ms: None,
                p90_ms: None,
                mean_run_ms: None,
            },
        );
    }
    for row in ended {
        let stats = match routes.entry((row.service.clone(), row.role.clone(), row.shard)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(RouteStats {
                service: row.service,
                role: row.role,
                shard: row.shard,
                queued: 0,
                claimed: 0,
                done: 0,
                failed: 0,
                oldest_age_s: None,
                p50_ms: None,
                p90_ms: None,
                mean_run_ms: None,
            }),
        };
        let times = percentiles(row.total_ms.as_deref(), row.done);
        (stats.done, stats.failed) = (row.done, row.failed);
        (stats.p50_ms, stats.p90_ms, stats.mean_run_ms) = (times.p50, times.p90, row.mean_run_ms);
    }
    routes.into_values().take(LISTED_ROUTES).collect()
}

/// Rows of the table by service, role and status, for gauges.
///
/// # Errors
/// As [`summary`].
pub async fn totals(pool: &PgPool) -> Result<Vec<StatusTotal>, Error> {
    let mut snapshot = bounded(pool).await?;
    let standing = standing::by_route(&mut snapshot, COUNT_CAP).await?;
    let ends = look_back::ends_by_route(&mut snapshot, COUNT_CAP).await?;
    snapshot.commit().await?;
    let mut totals = BTreeMap::<(String, String, String), (i64, Option<f64>)>::new();
    let mut add = |service: String, role: String, status: &str, messages: i64, age: Option<f64>| {
        if messages > 0 {
            let total = totals.entry((service, role, status.to_owned())).or_default();
            total.0 += messages;
            total.1 = [total.1, age].into_iter().flatten().reduce(f64::max);
        }
    };
    for row in standing {
        add(row.service.clone(), row.role.clone(), "queued", row.queued, row.oldest_age_s);
        add(row.service, row.role, "claimed", row.claimed, None);
    }
    for row in ends {
        add(row.service, row.role, &row.status, row.messages, None);
    }
    let listed = totals.into_iter().take(LISTED_TOTALS);
    Ok(listed
        .map(|((service, role, status), (messages, oldest_age_s))| StatusTotal {
            service,
            role,
            status,
            messages,
            oldest_age_s,
        })
        .collect())
}

/// One snapshot for all statements, and no statement longer than 2 s: a page for people must not slow down the bus.
async fn bounded(pool: &PgPool) -> Result<Transaction<'static, Postgres>, Error> {
    let mut snapshot = pool.begin_with("begin isolation level repeatable read, read only").await?;
    // every statement here follows indexes up to a limit, whatever the planner thinks of the size of that limit
    sqlx::raw_sql(
        "set local statement_timeout = '2s'; set local enable_seqscan = off; set local enable_bitmapscan = off;
         set local jit = off",
    )
    .execute(&mut *snapshot)
    .await?;
    Ok(snapshot)
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
