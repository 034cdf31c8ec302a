//! Tasks as seen from outside: where they stand, following them, taking them back.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use cogo_contracts::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Bus, Error};

/// One attempt of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Attempt {
    /// Number of the claim, from 1.
    pub attempt: i16,
    /// Who held it.
    pub holder: Option<String>,
    /// When it was claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended; none while it runs.
    pub ended_at: Option<DateTime<Utc>>,
    /// `completed`, `running`, `failed`, `lease_expired`, `holder_gone`, `released` or `cancelled`.
    pub outcome: String,
    /// Why, safe to show.
    pub error: Option<String>,
}

#[derive(sqlx::FromRow)]
struct AttemptOf {
    id: Uuid,
    #[sqlx(flatten)]
    attempt: Attempt,
}

/// How a message ended and what it answered.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Outcome {
    /// The message.
    pub id: Uuid,
    /// Its status.
    pub status: String,
    /// What it answered.
    pub result: Option<Value>,
    /// Where a larger answer stands.
    pub result_url: Option<String>,
    /// Why it failed, or the last error before it did not.
    pub error: Option<String>,
}

impl Bus {
    /// The task under this root with all steps; none if there is none.
    ///
    /// # Errors
    /// When the database does not answer; [`Error::Contract`] when a step has a result that cannot be read.
    pub async fn task(&self, root: Uuid) -> Result<Option<Task>, Error> {
        let row = sqlx::query_scalar("select bus.task($1)").bind(root).fetch_optional(&self.pool).await;
        let row: Option<Value> = row.map_err(Error::reading("bus.task"))?.flatten();
        row.map(|task| Task::deserialize(task).map_err(|source| Error::Contract { what: "bus.task", source }))
            .transpose()
    }

    /// Declares interest in a task for `time`; read the task after this call, then wait for its wake-ups.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn watch(&self, root: Uuid, watcher: &str, time: Duration) -> Result<(), Error> {
        sqlx::query("select bus.watch($1, $2, $3)")
            .bind(root)
            .bind(watcher)
            .bind(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Takes back everything of a task that is not finished, also what is being worked on; answers how many messages.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cancel(&self, root: Uuid) -> Result<u64, Error> {
        let cancelled: i32 = sqlx::query_scalar("select bus.cancel($1)").bind(root).fetch_one(&self.pool).await?;
        Ok(u64::from(cancelled.unsigned_abs()))
    }

    /// Newest tasks first, ids only, at most `limit`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn recent_tasks(&self, limit: u32) -> Result<Vec<Uuid>, Error> {
        let ids = sqlx::query_scalar(
            "select m.id from public.agent_messages m where m.id = m.root_id order by m.id desc limit $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        Ok(ids)
    }

    /// Each attempt of a message, first to last; empty if it was never claimed, or if there is no such message.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn history(&self, id: Uuid) -> Result<Vec<Attempt>, Error> {
        let attempts =
            sqlx::query_as("select attempt, holder, started_at, ended_at, outcome, error from bus.history($1)")
                .bind(id)
                .fetch_all(&self.pool)
                .await?;
        Ok(attempts)
    }

    /// Each attempt of each of these messages, first to last; messages that were never claimed are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn histories(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Vec<Attempt>>, Error> {
        let rows: Vec<AttemptOf> = sqlx::query_as(
            "select given.id, h.attempt, h.holder, h.started_at, h.ended_at, h.outcome, h.error
               from unnest($1) as given (id)
              cross join lateral bus.history(given.id) as h
              order by given.id, h.attempt",
        )
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        let mut histories = HashMap::<Uuid, Vec<Attempt>>::new();
        for row in rows {
            histories.entry(row.id).or_default().push(row.attempt);
        }
        Ok(histories)
    }

    /// How these messages ended, in the order of the ids; for a message that awaited them. Unknown ids are left out.
    ///
    /// # Errors
    /// When the database does not answer; [`Error::Contract`] when one of the answers cannot be read.
    pub async fn results(&self, ids: &[Uuid]) -> Result<Vec<Outcome>, Error> {
        let outcomes = sqlx::query_as("select id, status, result, result_url, error from bus.results($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await;
        outcomes.map_err(Error::reading("bus.results"))
    }
}
