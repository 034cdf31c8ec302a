//! Dead letters: listing them, looking at one, sending one again.

use chrono::{DateTime, Utc};
use cogo_contracts::{DeadLetter, Route, Tenant};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{Bus, Error};

#[derive(sqlx::FromRow)]
struct DeadLetterRow {
    id: Uuid,
    root_id: Uuid,
    service: String,
    role: String,
    shard: i32,
    tenant: String,
    attempts: i16,
    error: String,
    failed_at: DateTime<Utc>,
    replayed_by: Option<Uuid>,
}

impl TryFrom<DeadLetterRow> for DeadLetter {
    type Error = Error;

    fn try_from(row: DeadLetterRow) -> Result<Self, Error> {
        let broken = |invalid: cogo_contracts::Invalid| Error::Contract {
            what: "public.agent_messages",
            source: serde::de::Error::custom(format!("{}: {invalid}", row.id)),
        };
        let shard = u16::try_from(row.shard).unwrap_or(u16::MAX);
        Ok(Self {
            id: row.id,
            root_id: row.root_id,
            route: Route::new(&row.service, &row.role, shard).map_err(broken)?,
            tenant: Tenant::new(&row.tenant).map_err(broken)?,
            attempts: row.attempts,
            error: row.error.clone(),
            failed_at: row.failed_at,
            replayed_by: row.replayed_by,
        })
    }
}

/// A dead letter and the message that was sent in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Replayed {
    /// The dead letter.
    pub dead_letter: Uuid,
    /// The message that runs it again.
    #[serde(rename = "replay")]
    pub id: Uuid,
}

impl Bus {
    /// The newest dead letters, those that were replayed included.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dead_letters(&self, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let rows: Vec<DeadLetterRow> = sqlx::query_as(
            "select d.id, m.root_id, m.service, m.role, m.shard, m.tenant, m.attempts, m.error, d.failed_at,
                    (select r.id from public.agent_messages r
                      where r.root_id = m.root_id and r.root_id <> r.id and r.replay_of = d.id
                      order by r.id desc limit 1) as replayed_by
               from (select l.id, l.failed_at from bus.dead_letters l order by l.failed_at desc limit $1) as d
              -- the limit keeps the planner from reading the whole table for a join
              cross join lateral (
                 select o.root_id, o.service, o.role, o.shard, o.tenant, o.attempts, o.error
                   from public.agent_messages o where o.id = d.id limit 1) as m
              order by d.failed_at desc, d.id desc",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(DeadLetter::try_from).collect()
    }

    /// How many dead letters there are, those that were replayed included; counts up to `at_most`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dead_letter_count(&self, at_most: u32) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("select count(*) from (select from bus.dead_letters limit $1) as d")
            .bind(i64::from(at_most))
            .fetch_one(&self.pool)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// One message as it stands, every column; none if there is none.
    ///
    /// # Errors
    /// When the database does not answer; [`Error::Contract`] when its payload or result cannot be read.
    pub async fn message(&self, id: Uuid) -> Result<Option<Value>, Error> {
        let row = sqlx::query_scalar("select to_jsonb(m) from public.agent_messages m where m.id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await;
        row.map_err(Error::reading("public.agent_messages"))
    }

    /// Sends a dead letter again as a new message that points back; answers the new id.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Conflict`] when it is not a dead letter or was replayed already.
    pub async fn replay(&self, dead_letter: Uuid) -> Result<Uuid, Error> {
        let replay = sqlx::query_scalar("select bus.replay($1)").bind(dead_letter).fetch_one(&self.pool).await?;
        Ok(replay)
    }

    /// Sends dead letters that were not replayed yet again, oldest first, at most `max`; started at `per_second` at most.
    /// `route` keeps to one route, `error_like` to errors that fit a pattern of SQL's `like`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the rate is not positive, [`Error::Conflict`] when somebody else replays the same ones.
    pub async fn replay_many(
        &self,
        route: Option<&Route>,
        error_like: Option<&str>,
        per_second: f64,
        max: u32,
    ) -> Result<Vec<Replayed>, Error> {
        let replayed = sqlx::query_as("select dead_letter, id from bus.replay_many($1, $2, $3, $4)")
            .bind(route.map(ToString::to_string))
            .bind(error_like)
            .bind(per_second)
            .bind(i32::try_from(max).unwrap_or(i32::MAX))
            .fetch_all(&self.pool)
            .await?;
        Ok(replayed)
    }
}
