//! The SQL of the registry; every statement runs on the connection or pool that the caller gives.

use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use crate::{agents::AgentRow, registration::Registration, registry::SweepOutcome, usage::Usage};

/// Answer of `registry.register`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct RegisterRow {
    pub(crate) outcome: String,
    pub(crate) epoch: i64,
    pub(crate) holder: String,
    pub(crate) state: String,
}

/// Answer of `registry.beat`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct BeatRow {
    pub(crate) outcome: String,
    pub(crate) state: Option<String>,
    pub(crate) end_reason: Option<String>,
    pub(crate) registry_version: i64,
}

/// One beat.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat {
    pub(crate) instance_id: Uuid,
    pub(crate) epoch: i64,
    pub(crate) sequence: i64,
    pub(crate) ready: bool,
    pub(crate) in_flight: i32,
    pub(crate) usage: Usage,
}

pub(crate) async fn register(
    executor: impl PgExecutor<'_>,
    registration: &Registration,
    previous: Option<Uuid>,
) -> Result<RegisterRow, sqlx::Error> {
    sqlx::query_as(
        "
        select r.outcome, r.epoch, r.holder, r.state
          from registry.register(
            instance_id => $1, domain => $2, name => $3, slot => $4, version => $5, capabilities => $6,
            location => $7, endpoints => $8, level => $9, parent => $10, previous => $11) as r
        ",
    )
    .bind(registration.id.instance_id)
    .bind(&registration.id.domain)
    .bind(&registration.id.name)
    .bind(registration.id.slot)
    .bind(registration.id.version.to_string())
    .bind(&registration.capabilities)
    .bind(Json(&registration.location))
    .bind(Json(&registration.endpoints))
    .bind(registration.level as i32)
    .bind(&registration.parent)
    .bind(previous)
    .fetch_one(executor)
    .await
}

pub(crate) async fn beat(executor: impl PgExecutor<'_>, beat: Beat) -> Result<BeatRow, sqlx::Error> {
    sqlx::query_as(
        "
        select b.outcome, b.state, b.end_reason, b.registry_version
          from registry.beat($1, $2, $3, $4, $5, $6) as b
        ",
    )
    .bind(beat.instance_id)
    .bind(beat.epoch)
    .bind(beat.sequence)
    .bind(beat.ready)
    .bind(beat.in_flight)
    .bind(Json(beat.usage))
    .fetch_one(executor)
    .await
}

pub(crate) async fn activate(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.activate($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn suspend(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.suspend($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn resume(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.resume($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn drain(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.drain($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn deregister(
    executor: impl PgExecutor<'_>,
    instance: Uuid,
    reason: &str,
) -> Result<Option<i32>, sqlx::Error> {
    // an instance id is never used again, so it names its epoch
    sqlx::query_scalar("select registry.deregister($1, null, $2)").bind(instance).bind(reason).fetch_one(executor).await
}

pub(crate) async fn sweep(
    executor: impl PgExecutor<'_>,
    suspect_after_ms: i64,
    dead_after_ms: i64,
) -> Result<SweepOutcome, sqlx::Error> {
    sqlx::query_as(
        "
        select s.swept, s.suspected, s.died, s.held_back, s.requeued
          from registry.sweep($1 * interval '1 millisecond', $2 * interval '1 millisecond') as s
        ",
    )
    .bind(suspect_after_ms)
    .bind(dead_after_ms)
    .fetch_one(executor)
    .await
}

pub(crate) async fn retain(executor: impl PgExecutor<'_>, keep_ms: i64, max_rows: i32) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select registry.retain($1 * interval '1 millisecond', $2)")
        .bind(keep_ms)
        .bind(max_rows)
        .fetch_one(executor)
        .await
}

pub(crate) async fn living(executor: impl PgExecutor<'_>) -> Result<Vec<AgentRow>, sqlx::Error> {
    sqlx::query_as(
        "
        select a.instance_id, a.domain, a.name, a.slot, a.epoch, a.version, a.state, a.holder, a.capabilities,
               a.location, a.endpoints, a.level, a.parent, a.registered_at, a.ended_at, a.end_reason,
               (extract(epoch from clock_timestamp() - b.beat_at) * 1000)::bigint as beat_age_ms,
               b.ready, b.in_flight, b.cpu_cores, b.memory_bytes
          from registry.agents a
          left join registry.beats b on b.instance_id = a.instance_id
         where a.state <> 'terminated'
         order by a.name, a.slot
        ",
    )
    .fetch_all(executor)
    .await
}

pub(crate) async fn ended(executor: impl PgExecutor<'_>, limit: i64) -> Result<Vec<AgentRow>, sqlx::Error> {
    sqlx::query_as(
        "
        select a.instance_id, a.domain, a.name, a.slot, a.epoch, a.version, a.state, a.holder, a.capabilities,
               a.location, a.endpoints, a.level, a.parent, a.registered_at, a.ended_at, a.end_reason,
               null::bigint as beat_age_ms, null::boolean as ready, null::integer as in_flight,
               null::real as cpu_cores, null::bigint as memory_bytes
          from registry.agents a
         where a.state = 'terminated'
         order by a.ended_at desc
         limit $1
        ",
    )
    .bind(limit)
    .fetch_all(executor)
    .await
}

pub(crate) async fn discover(executor: impl PgExecutor<'_>, capability: &str) -> Result<Vec<AgentRow>, sqlx::Error> {
    sqlx::query_as(
        "
        select a.instance_id, a.domain, a.name, a.slot, a.epoch, a.version, a.state, a.holder, a.capabilities,
               a.location, a.endpoints, a.level, a.parent, a.registered_at, a.ended_at, a.end_reason,
               (extract(epoch from clock_timestamp() - b.beat_at) * 1000)::bigint as beat_age_ms,
               b.ready, b.in_flight, b.cpu_cores, b.memory_bytes
          from registry.agents a
          join registry.beats b on b.instance_id = a.instance_id
         where a.state = 'active' and a.state <> 'terminated' and a.capabilities @> array[$1]
         order by a.name, a.slot
        ",
    )
    .bind(capability)
    .fetch_all(executor)
    .await
}
