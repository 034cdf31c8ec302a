//! The handle of the bus, and sending.

use cogo_contracts::{NewMessage, Route, Tenant};
use serde_json::{Map, Value};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{Error, line::Lines};

/// A cheap-to-clone handle; every operation is one statement or one short transaction.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) pool: PgPool,
    /// For single statements that come with every message.
    pub(crate) lines: Lines,
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
        Self { lines: Lines::beside(&pool), pool }
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
        let sent = self.enqueue_many(std::slice::from_ref(message)).await?;
        sent.into_iter().next().ok_or(Error::Database(sqlx::Error::RowNotFound))
    }

    /// Sends many messages in one statement: all or none.
    ///
    /// # Errors
    /// As [`Bus::enqueue`].
    pub async fn enqueue_many(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, Error> {
        let mut line = self.lines.lend().await?;
        let sent = send(&mut line, messages).await;
        Ok(line.back(sent)?)
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
        Ok(send(connection, messages).await?)
    }
}

async fn send(connection: &mut PgConnection, messages: &[NewMessage]) -> Result<Vec<Enqueued>, sqlx::Error> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    if let Some((route, tenant)) = plain_to_one_place(messages) {
        return insert_plain(connection, route, tenant, messages).await;
    }
    sqlx::query_as("select id, duplicate from bus.enqueue_many($1) order by ord")
        .bind(sqlx::types::Json(messages))
        .fetch_all(connection)
        .await
}

/// The address of a batch that needs nothing of the database but to be stored: one route, one tenant, defaults.
fn plain_to_one_place(messages: &[NewMessage]) -> Option<(&Route, &Tenant)> {
    let first = messages.first()?;
    let tenant = first.tenant.as_ref()?;
    let same = |message: &NewMessage| {
        message.is_plain() && message.route == first.route && message.tenant.as_ref() == Some(tenant)
    };
    messages.iter().all(same).then_some((&first.route, tenant))
}

/// The same rows as `bus.enqueue_many` makes, as columns: the database parses no field names and makes no ids.
async fn insert_plain(
    connection: &mut PgConnection,
    route: &Route,
    tenant: &Tenant,
    messages: &[NewMessage],
) -> Result<Vec<Enqueued>, sqlx::Error> {
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id.unwrap_or_else(Uuid::now_v7)).collect();
    let payloads: Vec<Json<&Value>> = messages.iter().map(|message| Json(&message.payload)).collect();
    let headers: Option<Vec<Json<&Map<String, Value>>>> = messages
        .iter()
        .any(|message| !message.headers.is_empty())
        .then(|| messages.iter().map(|message| Json(&message.headers)).collect());
    // several pass the triggers of the table by, which have a short way for one alone
    let statement = if messages.len() > 1 {
        "select bus.enqueue_payloads($1, $2, $4, $6, $7, $3, $5)"
    } else {
        "insert into public.agent_messages (id, root_id, service, role, shard, tenant, payload, headers)
         select given.id, given.id, $1, $2, $3, $4, given.payload, coalesce(given.headers, '{}')
           from unnest($5::uuid[], $6::jsonb[], $7::jsonb[]) as given (id, payload, headers)"
    };
    sqlx::query(statement)
        .bind(route.service())
        .bind(route.role())
        .bind(i32::from(route.shard()))
        .bind(tenant.as_str())
        .bind(&ids)
        .bind(payloads)
        .bind(headers)
        .execute(connection)
        .await?;
    Ok(ids.into_iter().map(|id| Enqueued { id, duplicate: false }).collect())
}
