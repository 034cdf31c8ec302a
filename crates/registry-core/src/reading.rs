//! The SQL by which a copy of the registry is made and kept.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use cogo_contracts::{AgentId, AgentState};
use serde::Deserialize;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use crate::{
    change::{Change, ChangeRow, key_from_hex, readable_endpoints, readable_version},
    entry::{Entry, Load},
    registry::Error,
    snapshot::Snapshot,
};

/// What happened after a version.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) registry_version: i64,
    pub(crate) database_time: DateTime<Utc>,
    pub(crate) changes: Vec<Change>,
}

/// The whole registry.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) database_time: DateTime<Utc>,
    pub(crate) snapshot: Snapshot,
}

/// How busy a process and the agents in it are.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct BeatLoad {
    pub(crate) instance_id: Uuid,
    pub(crate) ready: bool,
    pub(crate) in_flight: i32,
    pub(crate) carried: Json<HashMap<String, u32>>,
}

#[derive(Debug, Deserialize)]
struct EntryRow {
    instance_id: Uuid,
    domain: String,
    name: String,
    slot: i32,
    epoch: i64,
    version: String,
    state: String,
    holder: String,
    capabilities: Vec<String>,
    tags: Vec<String>,
    location: serde_json::Value,
    endpoints: serde_json::Value,
    level: i16,
    parent: Option<String>,
    carrier: Option<Uuid>,
    public_key: Option<String>,
}

/// Up to `most` changes after a version, and the newest version there is, both of the same moment.
pub(crate) async fn changes(executor: impl PgExecutor<'_>, after: i64, most: u32) -> Result<News, Error> {
    let row: (i64, DateTime<Utc>, Json<Vec<ChangeRow>>) = sqlx::query_as(
        "
        select c.version, clock_timestamp(), coalesce((
                 select jsonb_agg(to_jsonb(n) order by n.version)
                   from (select l.version, l.at, l.op, l.instance_id, l.epoch, l.holder, l.from_state, l.to_state,
                                l.reason, l.asked_by, l.body
                           from registry.log l where l.version > $1 order by l.version limit $2) as n), '[]')
          from registry.clock c
        ",
    )
    .bind(after)
    .bind(i64::from(most))
    .fetch_one(executor)
    .await
    .map_err(Error::Database)?;
    let (registry_version, database_time, Json(rows)) = row;
    let changes = rows.into_iter().map(Change::try_from).collect::<Result<_, _>>()?;
    Ok(News { registry_version, database_time, changes })
}

/// The log from a version on, for a replay; the ends of what has been forgotten are not in it.
pub(crate) async fn log(executor: impl PgExecutor<'_>, after: i64, most: i64) -> Result<Vec<Change>, Error> {
    let rows: Vec<ChangeRow> = sqlx::query_as(
        "
        select l.version, l.at, l.op, l.instance_id, l.epoch, l.holder, l.from_state, l.to_state, l.reason, l.asked_by,
               l.body
          from registry.log l where l.version > $1 order by l.version limit $2
        ",
    )
    .bind(after)
    .bind(most)
    .fetch_all(executor)
    .await
    .map_err(Error::Database)?;
    rows.into_iter().map(Change::try_from).collect()
}

/// Everything at one moment; what is known of the loads is carried over from `known`.
pub(crate) async fn whole(executor: impl PgExecutor<'_>, known: &Snapshot) -> Result<Whole, Error> {
    // one statement, so that agents and version are of the same moment
    let row: (i64, DateTime<Utc>, Json<Vec<EntryRow>>) = sqlx::query_as(
        "
        select c.version, clock_timestamp(), coalesce((
                 select jsonb_agg(to_jsonb(n))
                   from (select a.instance_id, a.domain, a.name, a.slot, a.epoch, a.version, a.state, a.holder,
                                a.capabilities, a.tags, a.location, a.endpoints, a.level, a.parent, a.carrier,
                                encode(a.public_key, 'hex') as public_key
                           from registry.agents a where a.state <> 'terminated') as n), '[]')
          from registry.clock c
        ",
    )
    .fetch_one(executor)
    .await
    .map_err(Error::Database)?;
    let (version, database_time, Json(rows)) = row;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let load = known.run(row.instance_id).map(|entry| Arc::clone(&entry.load)).unwrap_or_default();
        entries.push(row.entry(load)?);
    }
    Ok(Whole { database_time, snapshot: Snapshot::new(version, entries) })
}

/// How busy everyone is. One that has not beaten yet counts as ready, since it would not be active otherwise.
pub(crate) async fn loads(executor: impl PgExecutor<'_>) -> Result<Vec<BeatLoad>, Error> {
    sqlx::query_as("select b.instance_id, b.ready or b.seq = 0 as ready, b.in_flight, b.carried from registry.beats b")
        .fetch_all(executor)
        .await
        .map_err(Error::Database)
}

impl EntryRow {
    fn entry(self, load: Arc<Load>) -> Result<Entry, Error> {
        let instance_id = self.instance_id;
        let state =
            AgentState::from_name(&self.state).ok_or(Error::Unexpected { column: "agents.state", instance_id })?;
        Ok(Entry {
            id: AgentId {
                domain: self.domain,
                name: self.name,
                slot: self.slot,
                instance_id,
                version: readable_version(&self.version),
            },
            epoch: self.epoch,
            state,
            holder: self.holder,
            capabilities: self.capabilities,
            tags: self.tags,
            location: serde_json::from_value(self.location).ok(),
            endpoints: readable_endpoints(self.endpoints),
            level: self.level,
            parent: self.parent,
            carrier: self.carrier,
            public_key: self.public_key.as_deref().and_then(key_from_hex),
            load,
        })
    }
}
