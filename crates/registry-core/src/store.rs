//! The SQL of the registry; every statement runs on the connection or pool that the caller gives.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use crate::{
    agents::AgentRow,
    registration::Registration,
    registry::SweepOutcome,
    target::{Target, Whom},
    usage::Usage,
};

/// Answer of `registry.register`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct RegisterRow {
    pub(crate) outcome: String,
    pub(crate) epoch: i64,
    pub(crate) holder: String,
    pub(crate) state: String,
    pub(crate) registry_version: i64,
    pub(crate) database_time: DateTime<Utc>,
}

/// Answer of `registry.beat`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct BeatRow {
    pub(crate) outcome: String,
    pub(crate) state: Option<String>,
    pub(crate) end_reason: Option<String>,
    pub(crate) registry_version: i64,
    pub(crate) config_version: i64,
    pub(crate) schema_version: i64,
    pub(crate) database_time: DateTime<Utc>,
}

/// Answer of `registry.order_state`.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct OrderRow {
    pub(crate) run: Uuid,
    pub(crate) holder: String,
    pub(crate) epoch: i64,
    pub(crate) before: String,
    pub(crate) state: String,
    pub(crate) accepted: bool,
    pub(crate) registry_version: i64,
}

/// One beat.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    pub(crate) instance_id: Uuid,
    pub(crate) epoch: i64,
    pub(crate) sequence: i64,
    pub(crate) ready: bool,
    pub(crate) in_flight: i32,
    pub(crate) stats: Stats,
}

/// What a beat tells beside the counters.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Stats {
    #[serde(flatten)]
    pub(crate) usage: Usage,
    pub(crate) carried: BTreeMap<String, u32>,
}

pub(crate) async fn register(
    executor: impl PgExecutor<'_>,
    registration: &Registration,
    previous: Option<Uuid>,
) -> Result<RegisterRow, sqlx::Error> {
    sqlx::query_as(
        "
        select r.outcome, r.epoch, r.holder, r.state, r.registry_version, r.database_time
          from registry.register(
            instance_id => $1, domain => $2, name => $3, slot => $4, version => $5, capabilities => $6,
            location => $7, endpoints => $8, level => $9, parent => $10, previous => $11, tags => $12,
            carrier => $13, public_key => $14, key_proof => $15) as r
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
    .bind(&registration.tags)
    .bind(registration.carrier)
    .bind(registration.signer.public_key().to_vec())
    .bind(registration.key_proof.map(|proof| proof.0.to_vec()))
    .fetch_one(executor)
    .await
}

pub(crate) async fn beat(executor: impl PgExecutor<'_>, beat: Beat) -> Result<BeatRow, sqlx::Error> {
    sqlx::query_as(
        "
        select b.outcome, b.state, b.end_reason, b.registry_version, b.config_version, b.database_time,
               b.schema_version
          from registry.beat($1, $2, $3, $4, $5, $6) as b
        ",
    )
    .bind(beat.instance_id)
    .bind(beat.epoch)
    .bind(beat.sequence)
    .bind(beat.ready)
    .bind(beat.in_flight)
    .bind(Json(beat.stats))
    .fetch_one(executor)
    .await
}

pub(crate) async fn activate(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.activate($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn drain(executor: impl PgExecutor<'_>, instance: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select registry.drain($1)").bind(instance).fetch_one(executor).await
}

pub(crate) async fn order(
    executor: impl PgExecutor<'_>,
    wish: &str,
    target: &Target,
) -> Result<Option<OrderRow>, sqlx::Error> {
    let (run, name, slot) = match &target.whom {
        Whom::Run(run) => (Some(*run), None, None),
        Whom::Slot(name, slot) => (None, Some(name.as_str()), Some(*slot)),
    };
    sqlx::query_as(
        "
        select o.run, o.holder, o.epoch, o.before, o.state, o.accepted, o.registry_version
          from registry.order_state($1, $2, $3, $4, $5) as o
        ",
    )
    .bind(wish)
    .bind(run)
    .bind(name)
    .bind(slot)
    .bind(&target.reason)
    .fetch_optional(executor)
    .await
}

pub(crate) async fn issue_key(
    executor: impl PgExecutor<'_>,
    name: &str,
    proof_hash: &[u8],
    label: &str,
) -> Result<Uuid, sqlx::Error> {
    sqlx::query_scalar("select registry.issue_key($1, $2, $3)")
        .bind(name)
        .bind(proof_hash)
        .bind(label)
        .fetch_one(executor)
        .await
}

pub(crate) async fn key_opens(executor: impl PgExecutor<'_>, name: &str, proof: &[u8]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select registry.key_opens($1, $2)").bind(name).bind(proof).fetch_one(executor).await
}

pub(crate) async fn revoke_key(executor: impl PgExecutor<'_>, key_id: Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select registry.revoke_key($1)").bind(key_id).fetch_one(executor).await
}

pub(crate) async fn deregister(
    executor: impl PgExecutor<'_>,
    instance: Uuid,
    reason: &str,
) -> Result<Option<i32>, sqlx::Error> {
    // an instance id is never used again, so it names its epoch
    sqlx::query_scalar("select registry.deregister($1, null, $2)").bind(instance).bind(reason).fetch_one(executor).await
}

/// Milliseconds since the last beat of the agent that has been silent for longest, none if there is nobody; and whether
/// one has ended so lately that a claim of its may still come to light.
pub(crate) async fn longest_silence(executor: impl PgExecutor<'_>) -> Result<(Option<i64>, bool), sqlx::Error> {
    sqlx::query_as(
        "
        select (extract(epoch from clock_timestamp() - (select min(b.beat_at) from registry.beats b)) * 1000)::bigint,
               exists (select from registry.agents a
                        where a.state = 'terminated' and a.ended_at > clock_timestamp() - interval '2 minutes')
        ",
    )
    .fetch_one(executor)
    .await
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
               (extract(epoch from clock_timestamp() - b.beat_at) * 1000)::bigint as beat_age_ms, b.ready,
               case when a.carrier is null then b.in_flight
                    else coalesce((b.carried ->> (a.name || '/' || a.slot))::integer, 0) end as in_flight,
               case when a.carrier is null then b.cpu_cores end as cpu_cores,
               case when a.carrier is null then b.memory_bytes end as memory_bytes
          from registry.agents a
          left join registry.beats b on b.instance_id = coalesce(a.carrier, a.instance_id)
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
               (extract(epoch from clock_timestamp() - b.beat_at) * 1000)::bigint as beat_age_ms, b.ready,
               case when a.carrier is null then b.in_flight
                    else coalesce((b.carried ->> (a.name || '/' || a.slot))::integer, 0) end as in_flight,
               case when a.carrier is null then b.cpu_cores end as cpu_cores,
               case when a.carrier is null then b.memory_bytes end as memory_bytes
          from registry.agents a
          join registry.beats b on b.instance_id = coalesce(a.carrier, a.instance_id)
         where a.state = 'active' and a.state <> 'terminated' and a.capabilities @> array[$1]
         order by a.name, a.slot
        ",
    )
    .bind(capability)
    .fetch_all(executor)
    .await
}
