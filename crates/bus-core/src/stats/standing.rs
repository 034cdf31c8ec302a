//! What is unfinished, by route: where it stands beside the messages tells more than their rows do.

use sqlx::{PgConnection, PgPool};

use crate::{
    Error,
    stats::{COUNT_CAP, bounded},
};

/// Unfinished messages of one route.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Standing {
    /// First part of the routing key.
    pub service: String,
    /// Second part.
    pub role: String,
    /// Third part.
    pub shard: i32,
    /// Not owned by anybody, whatever they wait for.
    pub queued: i64,
    /// Of these, those that wait for their time.
    pub delayed: i64,
    /// Owned, also where the message's row does not show it yet.
    pub claimed: i64,
    /// Seconds since the oldest claimable one was sent.
    pub oldest_age_s: Option<f64>,
}

/// Every route with unfinished messages, by name. Where more than [`COUNT_CAP`] wait or are claimed, counts are "at least".
///
/// # Errors
/// As [`summary`](crate::summary).
pub async fn standing(pool: &PgPool) -> Result<Vec<Standing>, Error> {
    let mut snapshot = bounded(pool).await?;
    let mut routes = by_route(&mut snapshot, COUNT_CAP).await?;
    snapshot.commit().await?;
    routes.sort_by(|one, other| (&one.service, &one.role, one.shard).cmp(&(&other.service, &other.role, other.shard)));
    Ok(routes)
}

/// Each place is read up to `cap` rows, so that a count above it is "at least".
///
/// A message is in one place, except that one of a group may also wait for others: it counts as waiting for them. What was
/// cancelled while a claim that then broke off had its chunk counts as queued until the next claim.
pub(super) async fn by_route(connection: &mut PgConnection, cap: i64) -> Result<Vec<Standing>, Error> {
    // a limit keeps the planner from reading a whole table for a join
    let rows = sqlx::query_as(
        "with ready as (
            -- the first of a chunk is the oldest of it
            select c.route, sum(cardinality(c.ids))::bigint as messages, min(m.created_at) as waits_since
              from (select r.route, r.ids from bus.ready r limit $1 + 1) as c
              left join lateral (
                select o.created_at from public.agent_messages o where o.id = c.ids[1] limit 1) as m on true
             group by c.route
          ), later as (
            select l.lane, l.messages, (select d.id from bus.delayed d where d.lane = l.lane order by d.due limit 1) as id
              from (select d.lane, count(*) as messages from (select lane from bus.delayed limit $1 + 1) as d group by d.lane) as l
          ), behind as (
            select b.lane, count(*) as messages, (select g.id from bus.groups g where g.lane = b.lane limit 1) as id
              from (select lane, tenant, group_key, position, id from bus.groups limit $1 + 1) as b
             where exists (select from bus.groups e
                            where e.lane = b.lane and e.tenant = b.tenant and e.group_key = b.group_key
                              and e.position < b.position)
               and not exists (select from bus.joins j where j.id = b.id)
             group by b.lane
          ), elsewhere as (
            select m.service || '/' || m.role || '/' || m.shard as route, s.queued, s.delayed
              from (select l.id, l.messages as queued, l.messages as delayed from later l
                    union all select b.id, b.messages, 0 from behind b
                    union all (select j.id, 1, 0 from bus.joins j limit $1 + 1)) as s
              cross join lateral (
                select o.service, o.role, o.shard from public.agent_messages o where o.id = s.id limit 1) as m
          ), held as (
            select h.route, count(*) as messages
              from (select c.route, c.holder, u.id, u.attempt
                      from bus.claims c, unnest(c.ids, c.attempts) as u (id, attempt) limit $1 + 1) as h
              cross join lateral (
                select from public.agent_messages o
                 where o.id = h.id
                   and ((o.status = 'queued' and o.attempts = h.attempt - 1)
                        or (o.status = 'claimed' and o.attempts = h.attempt and o.claimed_by = h.holder))
                 limit 1) as m
             group by h.route
          )
          select split_part(a.route, '/', 1) as service, split_part(a.route, '/', 2) as role,
                 split_part(a.route, '/', 3)::integer as shard, sum(a.queued)::bigint as queued,
                 sum(a.delayed)::bigint as delayed, sum(a.claimed)::bigint as claimed,
                 -- greatest() would turn a null into 0
                 case when min(a.waits_since) is not null
                   then greatest(0, extract(epoch from clock_timestamp() - min(a.waits_since)))::float8 end as oldest_age_s
            from (select r.route, r.messages as queued, 0 as delayed, 0 as claimed, r.waits_since from ready r
                  union all select e.route, e.queued, e.delayed, 0, null from elsewhere e
                  union all select h.route, 0, 0, h.messages, null from held h) as a
           group by a.route",
    )
    .bind(cap)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
