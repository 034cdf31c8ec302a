//! The keys that were given out: who holds one, who is in with it, and taking one back.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::registry::{Error, Registry};

/// A key that was given out; the key itself is known to its holder alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct KeyRecord {
    /// Names the key to people; is no secret.
    pub key_id: Uuid,
    /// Name of the processes that may join with it.
    pub name: String,
    /// Whom it was given to, or what for.
    pub label: String,
    /// When it was made, by the database clock.
    pub created_at: DateTime<Utc>,
    /// Since when it opens nothing; none while it does.
    pub revoked_at: Option<DateTime<Utc>>,
    /// The living agents that joined with it, as `name/slot`.
    pub agents: Vec<String>,
}

/// What taking a key back has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct KeyRevoked {
    /// Whether the key opened something before; false for one that was revoked or never was.
    pub revoked: bool,
    /// Runs that had joined with it and have ended now.
    pub ended: i32,
    /// Messages that those held and that are queued again.
    pub requeued: i32,
}

impl Registry {
    /// Every key that was given out, by name and age.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, Error> {
        sqlx::query_as(
            "select k.key_id, k.name, k.label, k.created_at, k.revoked_at, k.agents from registry.list_keys() as k",
        )
        .fetch_all(self.pool())
        .await
        .map_err(Error::Database)
    }

    /// Takes a key back and ends, in the same transaction, the runs that joined with it: their messages are queued
    /// again, and their tokens are dead for everyone whose copy of the registry has heard of it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn revoke_key_and_end(&self, key_id: Uuid, revoked_by: &str) -> Result<KeyRevoked, Error> {
        sqlx::query_as("select r.revoked, r.ended, r.requeued from registry.revoke_key_and_end($1, $2) as r")
            .bind(key_id)
            .bind(revoked_by)
            .fetch_one(self.pool())
            .await
            .map_err(Error::Database)
    }

    /// Forgets the revoked keys of a name, which then joins without one; answers how many there were, none while one of
    /// them is not revoked.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn open_name(&self, name: &str) -> Result<Option<i32>, Error> {
        sqlx::query_scalar("select registry.open_name($1)")
            .bind(name)
            .fetch_one(self.pool())
            .await
            .map_err(Error::Database)
    }
}
