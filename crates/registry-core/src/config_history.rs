//! Rollouts of configuration as they went: what each changed, who answered what, and taking one back that holds.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    config::{Proposal, Rollout, RolloutRow, advance},
    registry::{Error, Registry},
};

/// What one watcher answered to a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct WatcherAnswer {
    /// The run.
    pub instance_id: Uuid,
    /// The run as `name/slot#…`; its id alone once the registry has forgotten it.
    pub holder: String,
    /// `valid` or `invalid` while validating, `applied` or `failed` while applying.
    pub answer: String,
    /// Why not.
    pub detail: Option<String>,
    /// When, by the database clock.
    pub at: DateTime<Utc>,
}

/// A rollout with all that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutRecord {
    /// Where it stands.
    pub rollout: Rollout,
    /// New document by scope; null takes one away.
    pub changes: Map<String, Value>,
    /// Documents of the same scopes before it was applied, null where there was none; empty if it never was.
    pub before: Map<String, Value>,
    /// What it is for.
    pub note: Option<String>,
    /// Milliseconds that checking, and then applying, may take.
    pub patience_ms: i32,
    /// Milliseconds for which all must stay ready afterwards.
    pub settle_ms: i32,
    /// When it was asked for, by the database clock.
    pub created_at: DateTime<Utc>,
    /// What was answered, oldest first.
    pub answers: Vec<WatcherAnswer>,
    /// Living watchers whom it concerns and who have not given the answer of the present step, as `name/slot#…`; empty
    /// once it is over.
    pub awaited: Vec<String>,
}

/// Why a rollout cannot be taken back.
#[derive(Debug, thiserror::Error)]
pub enum NotTakenBack {
    /// There is none of this version.
    #[error("There is no rollout {version}")]
    NoSuchRollout {
        /// The version.
        version: i64,
    },
    /// It never held, or was taken back before.
    #[error("Rollout {version} does not hold")]
    DoesNotHold {
        /// The version.
        version: i64,
    },
    /// A later one changed the same scopes; what was before this one is not what was before that.
    #[error("Rollout {by} has changed the same scopes since rollout {version}")]
    Overtaken {
        /// The version.
        version: i64,
        /// Version of the newest of the later ones.
        by: i64,
    },
    /// The registry did not answer, or another rollout is under way.
    #[error(transparent)]
    Registry(#[from] Error),
}

#[derive(Debug, sqlx::FromRow)]
struct RecordRow {
    #[sqlx(flatten)]
    rollout: RolloutRow,
    changes: Json<Map<String, Value>>,
    before: Json<Map<String, Value>>,
    note: Option<String>,
    patience_ms: i32,
    settle_ms: i32,
    created_at: DateTime<Utc>,
    awaited: Vec<String>,
}

impl Registry {
    /// Version of the configuration, which grows with every step of a rollout; a proposal may name it as the one that it
    /// was made for.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn config_version(&self) -> Result<i64, Error> {
        sqlx::query_scalar("select c.config_version from registry.clock c")
            .fetch_one(self.pool())
            .await
            .map_err(Error::Database)
    }

    /// The rollout that is under way, if one is.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn rollout_under_way(&self) -> Result<Option<Rollout>, Error> {
        advance(self.pool()).await?;
        let row: Option<RolloutRow> = sqlx::query_as(
            "select r.version, r.state, r.reason, r.author, r.state_since from registry.config_rollouts r
              where r.state in ('validating', 'applying')",
        )
        .fetch_optional(self.pool())
        .await
        .map_err(Error::Database)?;
        row.map(Rollout::try_from).transpose()
    }

    /// The newest rollouts, newest first.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn rollouts(&self, most: u32) -> Result<Vec<RolloutRecord>, Error> {
        self.records(None, i64::from(most)).await
    }

    /// A rollout with what was answered to it; none of this version. Looking also moves it on, as
    /// [`rollout`](Self::rollout) does.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn rollout_record(&self, version: i64) -> Result<Option<RolloutRecord>, Error> {
        Ok(self.records(Some(version), 1).await?.pop())
    }

    async fn records(&self, version: Option<i64>, most: i64) -> Result<Vec<RolloutRecord>, Error> {
        advance(self.pool()).await?;
        let rows: Vec<RecordRow> = sqlx::query_as(
            "
            select r.version, r.state, r.reason, r.author, r.state_since, r.changes, r.before, r.note, r.patience_ms,
                   r.settle_ms, r.created_at,
                   array(select a.holder from registry.config_watchers w
                           join registry.agents a on a.instance_id = w.instance_id
                          where r.state in ('validating', 'applying') and a.state <> 'terminated'
                            and (r.changes ? a.name or r.changes ? '*')
                            and not exists (select from registry.config_acks k
                                             where k.version = r.version and k.instance_id = a.instance_id
                                               and k.answer = case r.state when 'validating' then 'valid' else 'applied' end)
                          order by a.holder) as awaited
              from registry.config_rollouts r
             where r.version = coalesce($1, r.version)
             order by r.version desc limit $2
            ",
        )
        .bind(version)
        .bind(most)
        .fetch_all(self.pool())
        .await
        .map_err(Error::Database)?;
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let answers = self.answers(row.rollout.version).await?;
            records.push(row.with(answers)?);
        }
        Ok(records)
    }

    async fn answers(&self, version: i64) -> Result<Vec<WatcherAnswer>, Error> {
        sqlx::query_as(
            "select k.instance_id, coalesce(a.holder, k.instance_id::text) as holder, k.answer, k.detail, k.at
               from registry.config_acks k left join registry.agents a on a.instance_id = k.instance_id
              where k.version = $1 order by k.at, holder",
        )
        .bind(version)
        .fetch_all(self.pool())
        .await
        .map_err(Error::Database)
    }

    /// A proposal by which what was before a rollout that holds will hold again; it names the version of the
    /// configuration at which that is so.
    ///
    /// # Errors
    /// [`NotTakenBack`] for one that does not hold, or whose scopes were changed since.
    pub async fn taking_back(&self, version: i64, author: &str) -> Result<Proposal, NotTakenBack> {
        // the version first: whatever changes afterwards makes the proposal fail
        let config_version = self.config_version().await?;
        let record = self.rollout_record(version).await?.ok_or(NotTakenBack::NoSuchRollout { version })?;
        if record.rollout.state != crate::config::RolloutState::Live {
            return Err(NotTakenBack::DoesNotHold { version });
        }
        let scopes: Vec<&String> = record.changes.keys().collect();
        let later: Option<i64> = sqlx::query_scalar(
            "select max(r.version) from registry.config_rollouts r
              where r.version > $1 and r.state = 'live' and r.changes ?| $2::text[]",
        )
        .bind(version)
        .bind(&scopes)
        .fetch_one(self.pool())
        .await
        .map_err(Error::Database)?;
        if let Some(by) = later {
            return Err(NotTakenBack::Overtaken { version, by });
        }
        let empty = Proposal::new(author).if_still_at(config_version);
        Ok(record.before.into_iter().fold(empty, |proposal, (scope, document)| match document {
            Value::Object(document) => proposal.set(&scope, document),
            _ => proposal.remove(&scope),
        }))
    }
}

impl RecordRow {
    fn with(self, answers: Vec<WatcherAnswer>) -> Result<RolloutRecord, Error> {
        let RecordRow { rollout, changes, before, note, patience_ms, settle_ms, created_at, awaited } = self;
        let (rollout, Json(changes), Json(before)) = (Rollout::try_from(rollout)?, changes, before);
        Ok(RolloutRecord { rollout, changes, before, note, patience_ms, settle_ms, created_at, answers, awaited })
    }
}
