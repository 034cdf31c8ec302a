//! The handle of the bus, and sending.

use cogo_contracts::NewMessage;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::Error;

/// A cheap-to-clone handle; every operation is one statement or one short transaction.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) pool: PgPool,
}

/// What became of a message that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Enqueued {
    /// Id of the message; under a known idempotency key that of the first.
    pub id: Uuid,
    /// Whether the idempotency key was known and nothing new was sent.
    pub duplicate: bool,
}

impl Bus {
    /// A bus on this pool.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for statements of other owners in the same process.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Sends one message; once this returns, it is not lost.
    ///
    /// # Errors
    /// [`Error::Refused`] for content against the contract, [`Error::Database`] when the outcome is unknown.
    pub async fn enqueue(&self, message: &NewMessage) -> Result<Enqueued, Error> {
        let mut connection = self.pool.acquire().await?;
        Self::enqueue_in(&mut connection, message).await
    }

    /// Sends many messages in one statement: all or none.
    ///
    /// # Errors
    /// As [`Bus::enqueue`].
    pub async fn enqueue_many(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, Error> {
        let mut connection = self.pool.acquire().await?;
        Self::enqueue_many_in(&mut connection, messages).await
    }

    /// Sends one message inside the caller's transaction: it exists if and only if that commits.
    ///
    /// # Errors
    /// As [`Bus::enqueue`].
    pub async fn enqueue_in(connection: &mut PgConnection, message: &NewMessage) -> Result<Enqueued, Error> {
        let sent = Self::enqueue_many_in(connection, std::slice::from_ref(message)).await?;
        sent.into_iter().next().ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// Sends many messages inside the caller's transaction.
    ///
    /// # Errors
    /// As [`Bus::enqueue`].
    pub async fn enqueue_many_in(
        connection: &mut PgConnection,
        messages: &[NewMessage],
    ) -> Result<Vec<Enqueued>, Error> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let enqueued = sqlx::query_as("select id, duplicate from bus.enqueue_many($1) order by ord")
            .bind(sqlx::types::Json(messages))
            .fetch_all(connection)
            .await?;
        Ok(enqueued)
    }
}
