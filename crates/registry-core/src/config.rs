//! Configuration that reaches running processes step by step: all check it, then all apply it, and it is taken back when
//! one of them fails or is no longer ready.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use crate::registry::{Error, Registry};

/// State of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutState {
    /// Every watcher checks it; nothing has changed yet.
    Validating,
    /// It holds, and every watcher applies it.
    Applying,
    /// All have applied it and stayed ready.
    Live,
    /// It never held.
    Refused,
    /// It held for a while and does not any more.
    RolledBack,
}

impl RolloutState {
    /// Name as the database writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Applying => "applying",
            Self::Live => "live",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether nothing will change any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Validating | Self::Applying)
    }
}

/// A change of configuration and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Its version.
    pub version: i64,
    /// Where it stands.
    pub state: RolloutState,
    /// Why it was refused or taken back.
    pub reason: Option<String>,
    /// Who asked for it.
    pub author: String,
    /// Since when it is in that state, by the database clock.
    pub state_since: DateTime<Utc>,
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct RolloutRow {
    pub(crate) version: i64,
    state: String,
    reason: Option<String>,
    author: String,
    state_since: DateTime<Utc>,
}

impl TryFrom<RolloutRow> for Rollout {
    type Error = Error;

    fn try_from(row: RolloutRow) -> Result<Self, Error> {
        let unexpected = Error::Unexpected { column: "config_rollouts.state", instance_id: Uuid::nil() };
        let state = state_of(&row.state).ok_or(unexpected)?;
        let RolloutRow { version, reason, author, state_since, .. } = row;
        Ok(Self { version, state, reason, author, state_since })
    }
}

/// A change of configuration that is asked for.
#[derive(Debug, Clone)]
pub struct Proposal {
    changes: Map<String, Value>,
    author: String,
    note: Option<String>,
    expected_version: Option<i64>,
    patience_ms: i32,
    settle_ms: i32,
}

impl Proposal {
    /// An empty change, to which [`set`](Self::set) and [`remove`](Self::remove) add.
    #[must_use]
    pub fn new(author: &str) -> Self {
        Self {
            changes: Map::new(),
            author: author.to_owned(),
            note: None,
            expected_version: None,
            patience_ms: 30_000,
            settle_ms: 10_000,
        }
    }

    /// Gives the processes of a name, or all of them (`*`), this document.
    #[must_use]
    pub fn set(mut self, scope: &str, document: Map<String, Value>) -> Self {
        self.changes.insert(scope.to_owned(), Value::Object(document));
        self
    }

    /// Takes the document of a scope away.
    #[must_use]
    pub fn remove(mut self, scope: &str) -> Self {
        self.changes.insert(scope.to_owned(), Value::Null);
        self
    }

    /// Says what it is for.
    #[must_use]
    pub fn note(mut self, note: &str) -> Self {
        self.note = Some(note.to_owned());
        self
    }

    /// Only if the configuration is still at this version.
    #[must_use]
    pub fn if_still_at(mut self, version: i64) -> Self {
        self.expected_version = Some(version);
        self
    }

    /// Milliseconds that checking, and then applying, may take (100 to 3,600,000), and for which all must stay ready
    /// afterwards (0 to 3,600,000).
    #[must_use]
    pub fn within(mut self, patience_ms: i32, settle_ms: i32) -> Self {
        (self.patience_ms, self.settle_ms) = (patience_ms, settle_ms);
        self
    }
}

impl Registry {
    /// Begins a rollout; answers its version.
    ///
    /// # Errors
    /// [`Error::Database`], also when another rollout is under way, the configuration has changed since, or a scope is
    /// no name of a process.
    pub async fn propose_config(&self, proposal: &Proposal) -> Result<i64, Error> {
        sqlx::query_scalar("select registry.propose_config($1, $2, $3, $4, $5, $6)")
            .bind(Json(&proposal.changes))
            .bind(&proposal.author)
            .bind(&proposal.note)
            .bind(proposal.expected_version)
            .bind(proposal.patience_ms)
            .bind(proposal.settle_ms)
            .fetch_one(self.pool())
            .await
            .map_err(Error::Database)
    }

    /// A rollout and what became of it; none of this version.
    ///
    /// # Errors
    /// [`Error::Database`]; [`Error::Unexpected`].
    pub async fn rollout(&self, version: i64) -> Result<Option<Rollout>, Error> {
        // looking is also a way to move it on, where no watcher lives to do so
        advance(self.pool()).await?;
        let row: Option<RolloutRow> = sqlx::query_as(
            "select r.version, r.state, r.reason, r.author, r.state_since
               from registry.config_rollouts r where r.version = $1",
        )
        .bind(version)
        .fetch_optional(self.pool())
        .await
        .map_err(Error::Database)?;
        row.map(Rollout::try_from).transpose()
    }

    /// Stops a rollout that is under way; false if it is not.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn roll_back_config(&self, version: i64, author: &str, reason: &str) -> Result<bool, Error> {
        sqlx::query_scalar("select registry.roll_back_config($1, $2, $3)")
            .bind(version)
            .bind(author)
            .bind(reason)
            .fetch_one(self.pool())
            .await
            .map_err(Error::Database)
    }

    /// The documents that hold, by scope.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn config(&self) -> Result<Vec<(String, Value)>, Error> {
        sqlx::query_as("select c.scope, c.document from registry.config c order by c.scope")
            .fetch_all(self.pool())
            .await
            .map_err(Error::Database)
    }
}

fn state_of(name: &str) -> Option<RolloutState> {
    Some(match name {
        "validating" => RolloutState::Validating,
        "applying" => RolloutState::Applying,
        "live" => RolloutState::Live,
        "refused" => RolloutState::Refused,
        "rolled_back" => RolloutState::RolledBack,
        _ => return None,
    })
}

pub(crate) async fn advance(pool: &PgPool) -> Result<(), Error> {
    let _state: Option<String> =
        sqlx::query_scalar("select registry.advance_config()").fetch_one(pool).await.map_err(Error::Database)?;
    Ok(())
}
