//! What ended last. No index tells the time of an end, so this looks at a bounded number of the newest messages by id.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::Error;

/// Messages that were sent longer than this before a window are not in its figures, though they may have ended in it.
const SLACK: Duration = Duration::from_hours(1);

/// `seen`: the newest `$1` rows by id and, where more messages wait than that, up to as many again from just before those
/// that are claimed next, since what ended last stands there; none from before `$2` seconds ago, if that is given.
/// Each `below` is one such stretch; one with as many rows as `most` may go on.
macro_rules! with_seen_rows {
    ($query:literal) => {
        concat!(
            "with recursive head as (
                (select r.lane, r.share, r.ids[1] as id, 1 as n from bus.ready r
                  order by r.lane, r.share, r.due, r.chunk limit 1)
                union all
                select f.lane, f.share, f.id, h.n + 1
                  from head h
                  cross join lateral (
                    select r.lane, r.share, r.ids[1] as id from bus.ready r
                     where (r.lane, r.share) > (h.lane, h.share)
                     order by r.lane, r.share, r.due, r.chunk limit 1) as f
                 where h.n < 64
              ), stretch as (
                select s.below, s.most,
                       greatest(
                         coalesce(lead(s.below) over (order by s.below desc), '00000000-0000-0000-0000-000000000000'),
                         case when $2::float8 is not null
                           then bus.first_id(clock_timestamp() - $2 * interval '1 second') end) as first
                  from (select 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid as below, $1::bigint as most
                        union all
                        -- below the lowest of them stand only older ones, ended for the most part
                        select h.id, case when row_number() over (order by h.id) = 1 then $1 / 2
                                          else greatest($1 / 2 / count(*) over (), 1) end
                          from head h) as s
              ), seen as materialized (
                select s.below, s.most, m.id, m.service, m.role, m.shard, m.status, m.created_at, m.claimed_at, m.done_at
                  from stretch s
                  cross join lateral (
                    select o.id, o.service, o.role, o.shard, o.status, o.created_at, o.claimed_at, o.done_at
                      from public.agent_messages o
                     where o.id >= s.first and o.id < s.below
                     order by o.id desc limit s.most) as m
              ) ",
            $query
        )
    };
}
pub(super) use with_seen_rows;

/// How many ended, however long ago.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Ends {
    pub(super) at: DateTime<Utc>,
    pub(super) done: i64,
    pub(super) failed: i64,
    pub(super) cancelled: i64,
    /// Whether there are rows that were not looked at.
    pub(super) more: bool,
}

pub(super) async fn ends(connection: &mut PgConnection, cap: i64) -> Result<Ends, Error> {
    let ends = sqlx::query_as(with_seen_rows!(
        "select clock_timestamp() as at,
                (select count(*) from (select from bus.dead_letters limit $1) as d) as failed,
                coalesce(sum(p.done), 0)::bigint as done, coalesce(sum(p.cancelled), 0)::bigint as cancelled,
                coalesce(bool_or(p.looked_at >= p.most), false) as more
           from (select s.most, count(*) as looked_at, count(*) filter (where s.status = 'done') as done,
                        count(*) filter (where s.status = 'cancelled') as cancelled
                   from seen s group by s.below, s.most) as p"
    ))
    // one more than counts, so that a full count is told from a greater one
    .bind(cap + 1)
    .bind(None::<f64>)
    .fetch_one(connection)
    .await?;
    Ok(ends)
}

/// Ended messages of one status.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RouteEnds {
    pub(super) service: String,
    pub(super) role: String,
    pub(super) status: String,
    pub(super) messages: i64,
}

pub(super) async fn ends_by_route(connection: &mut PgConnection, cap: i64) -> Result<Vec<RouteEnds>, Error> {
    let ends = sqlx::query_as(with_seen_rows!(
        "select s.service, s.role, s.status, count(*) as messages
           from seen s where s.status in ('done', 'cancelled') group by s.service, s.role, s.status
         union all
         select split_part(d.route, '/', 1), split_part(d.route, '/', 2), 'failed', count(*)
           from (select route from bus.dead_letters limit $1) as d group by 1, 2"
    ))
    .bind(cap)
    .bind(None::<f64>)
    .fetch_all(connection)
    .await?;
    Ok(ends)
}

/// What ended within a window.
#[derive(Debug)]
pub(super) struct Recent {
    /// Seconds for which the sample is whole: those of the window unless too many rows ended in it.
    pub(super) covered_s: f64,
    pub(super) total: Ended,
    pub(super) by_route: Vec<Ended>,
}

/// Ends of one route or of all.
#[derive(Debug, Default, sqlx::FromRow)]
pub(super) struct Ended {
    pub(super) service: String,
    pub(super) role: String,
    pub(super) shard: i32,
    pub(super) done: i64,
    pub(super) failed: i64,
    pub(super) waited: i64,
    pub(super) total_ms: Option<Vec<f64>>,
    pub(super) wait_ms: Option<Vec<f64>>,
    pub(super) mean_run_ms: Option<f64>,
    is_total: bool,
    covered_s: Option<f64>,
}

/// Rates and latencies of the ends within `window`; a stretch that may go on says something from its first end on only.
pub(super) async fn recent(connection: &mut PgConnection, window: Duration, cap: i64) -> Result<Recent, Error> {
    let rows: Vec<Ended> = sqlx::query_as(with_seen_rows!(
        ", reach as materialized (
            select clock_timestamp() as now, greatest(clock_timestamp() - $3 * interval '1 second', max(p.first_end)) as since,
                   max(p.first_end) > clock_timestamp() - $3 * interval '1 second' as shortened
              from (select min(s.done_at) as first_end from seen s group by s.below, s.most having count(*) >= s.most) as p
          ), sample as (
            select s.service, s.role, s.shard, s.status, s.claimed_at is not null as was_claimed,
                   greatest(0, extract(epoch from s.done_at - s.created_at) * 1000)::float8 as total_ms,
                   greatest(0, extract(epoch from s.claimed_at - s.created_at) * 1000)::float8 as wait_ms,
                   greatest(0, extract(epoch from s.done_at - s.claimed_at) * 1000)::float8 as run_ms
              from seen s where s.done_at >= (select r.since from reach r)
          )
          select coalesce(s.service, '') as service, coalesce(s.role, '') as role, coalesce(s.shard, 0) as shard,
                 grouping(s.service) = 1 as is_total,
                 count(*) filter (where s.status = 'done') as done,
                 count(*) filter (where s.status = 'failed') as failed,
                 count(*) filter (where s.was_claimed) as waited,
                 percentile_cont(array[0.5, 0.9, 0.99]) within group (order by s.total_ms) filter (where s.status = 'done')
                   as total_ms,
                 percentile_cont(array[0.5, 0.9, 0.99]) within group (order by s.wait_ms) filter (where s.was_claimed)
                   as wait_ms,
                 avg(s.run_ms) filter (where s.was_claimed and s.status in ('done', 'failed')) as mean_run_ms,
                 (select extract(epoch from r.now - r.since)::float8 from reach r where r.shortened) as covered_s
            from sample s
           group by grouping sets ((), (s.service, s.role, s.shard))"
    ))
    .bind(cap)
    .bind((window + SLACK).as_secs_f64())
    .bind(window.as_secs_f64())
    .fetch_all(connection)
    .await?;
    let (total, by_route): (Vec<Ended>, Vec<Ended>) = rows.into_iter().partition(|row| row.is_total);
    let total = total.into_iter().next().unwrap_or_default();
    Ok(Recent { covered_s: total.covered_s.unwrap_or(window.as_secs_f64()), total, by_route })
}
