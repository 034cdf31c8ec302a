//! Broadcasts: one row that every consumer of a topic reads at its own pace, at least once.

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_contracts::Tenant;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use tokio::sync::broadcast;
use tracing::warn;

use crate::{Bus, Error, Wake, WakeUps};

/// Between two looks while something is committed that an older open transaction holds back.
const HELD_BACK_POLL: Duration = Duration::from_millis(50);
/// How long a broadcast lives by default, in ms: 7 days.
const DEFAULT_TTL_MS: i64 = 604_800_000;
/// A consumer that reads the topic for every tenant.
const EVERY_TENANT: &str = "*";

/// A broadcast to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBroadcast {
    /// What it is about: `[a-z][a-z0-9_.-]{0,126}`.
    pub topic: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// The content, a JSON object of at most 1 MiB.
    pub payload: Value,
    /// Not read after this time; 7 days if absent, at most 365 days.
    pub ttl: Option<Duration>,
    /// Trace context and other transport headers.
    pub headers: Map<String, Value>,
}

impl NewBroadcast {
    /// A broadcast that lives for the default time.
    #[must_use]
    pub fn new(topic: &str, tenant: Tenant, payload: Value) -> Self {
        Self { topic: topic.to_owned(), tenant, payload, ttl: None, headers: Map::new() }
    }
}

/// Who reads what; all instances of one consumer share its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Name of the consumer: `[A-Za-z0-9][A-Za-z0-9_.:@#/-]{0,127}`.
    pub consumer: String,
    /// The topic.
    pub topic: String,
    /// The tenant whose broadcasts are read; absent: those of all.
    pub tenant: Option<Tenant>,
}

impl Subscription {
    /// A consumer of the topic for all tenants.
    #[must_use]
    pub fn new(consumer: &str, topic: &str) -> Self {
        Self { consumer: consumer.to_owned(), topic: topic.to_owned(), tenant: None }
    }

    fn tenant(&self) -> &str {
        self.tenant.as_ref().map_or(EVERY_TENANT, Tenant::as_str)
    }
}

/// Where a consumer that is new to a topic begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// With everything that has not expired.
    Earliest,
    /// With what is made from now on.
    Latest,
    /// With what was made at this time or later.
    Since(DateTime<Utc>),
}

/// A place in the order of broadcasts, opaque to the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position(String);

/// A broadcast that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Broadcast {
    /// Its number, unlike any other's; not the order of reading.
    pub seq: i64,
    /// When it was made, by the database clock.
    pub at: DateTime<Utc>,
    /// Whose it is.
    pub tenant: String,
    /// The content.
    pub payload: Value,
    /// Transport headers.
    pub headers: Map<String, Value>,
    /// Not read after this time.
    pub expires_at: DateTime<Utc>,
    /// What to acknowledge once this and all before it are worked on.
    pub position: Position,
}

/// What a consumer has to work on, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct BroadcastBatch {
    /// Where the consumer stood when it read.
    pub from: Position,
    /// Where it will stand once all of this is acknowledged.
    pub through: Position,
    /// The broadcasts; one that cannot be read as JSON is left out and passed over.
    pub broadcasts: Vec<Broadcast>,
}

#[derive(sqlx::FromRow)]
struct BroadcastRow {
    seq: i64,
    at: DateTime<Utc>,
    tenant: String,
    payload: String,
    headers: String,
    expires_at: DateTime<Utc>,
    read_from: String,
    read_to: String,
}

impl BroadcastRow {
    fn parse(self) -> Result<Broadcast, serde_json::Error> {
        Ok(Broadcast {
            seq: self.seq,
            at: self.at,
            tenant: self.tenant,
            payload: serde_json::from_str(&self.payload)?,
            headers: serde_json::from_str(&self.headers)?,
            expires_at: self.expires_at,
            position: Position(self.read_to),
        })
    }
}

impl Bus {
    /// Makes a broadcast; answers its number.
    ///
    /// # Errors
    /// [`Error::Refused`] for content against the contract, [`Error::Database`] when the outcome is unknown.
    pub async fn publish(&self, broadcast: &NewBroadcast) -> Result<i64, Error> {
        let mut connection = self.pool.acquire().await?;
        Self::publish_in(&mut connection, broadcast).await
    }

    /// Makes a broadcast inside the caller's transaction: it is read if and only if that commits.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn publish_in(connection: &mut PgConnection, broadcast: &NewBroadcast) -> Result<i64, Error> {
        let ttl_ms = broadcast.ttl.map_or(DEFAULT_TTL_MS, |ttl| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let seq = sqlx::query_scalar("select bus.publish($1, $2, $3, $4, $5)")
            .bind(&broadcast.topic)
            .bind(broadcast.tenant.as_str())
            .bind(&broadcast.payload)
            .bind(ttl_ms)
            .bind(sqlx::types::Json(&broadcast.headers))
            .fetch_one(connection)
            .await?;
        Ok(seq)
    }

    /// Lets a consumer follow a topic; one that follows it already stays where it is, and false is answered.
    ///
    /// # Errors
    /// [`Error::Refused`] for a bad name, [`Error::Database`] when the database does not answer.
    pub async fn subscribe(&self, subscription: &Subscription, start: StartAt) -> Result<bool, Error> {
        let start = match start {
            StartAt::Earliest => "earliest".to_owned(),
            StartAt::Latest => "latest".to_owned(),
            StartAt::Since(time) => time.to_rfc3339(),
        };
        let subscribed = sqlx::query_scalar("select bus.subscribe($1, $2, $3, $4)")
            .bind(&subscription.consumer)
            .bind(&subscription.topic)
            .bind(start)
            .bind(subscription.tenant())
            .fetch_one(&self.pool)
            .await?;
        Ok(subscribed)
    }

    /// Forgets how far a consumer has read; false if it did not follow the topic.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unsubscribe(&self, subscription: &Subscription) -> Result<bool, Error> {
        let removed = sqlx::query_scalar("select bus.unsubscribe($1, $2, $3)")
            .bind(&subscription.consumer)
            .bind(&subscription.topic)
            .bind(subscription.tenant())
            .fetch_one(&self.pool)
            .await?;
        Ok(removed)
    }

    /// Up to `max_rows` (1 to 1000) that the consumer has not acknowledged; none if there is nothing to read now. What
    /// is not acknowledged is read again.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the consumer does not follow the topic, [`Error::Database`] when there is no answer.
    pub async fn read_broadcasts(
        &self,
        subscription: &Subscription,
        max_rows: u16,
    ) -> Result<Option<BroadcastBatch>, Error> {
        let rows: Vec<BroadcastRow> = sqlx::query_as(
            "select seq, at, tenant, payload::text as payload, headers::text as headers, expires_at, read_from, read_to
               from bus.read_broadcasts($1, $2, $3, $4)",
        )
        .bind(&subscription.consumer)
        .bind(&subscription.topic)
        .bind(i32::from(max_rows))
        .bind(subscription.tenant())
        .fetch_all(&self.pool)
        .await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(None) };
        let (from, through) = (Position(first.read_from.clone()), Position(last.read_to.clone()));
        let mut broadcasts = Vec::with_capacity(rows.len());
        for row in rows {
            let seq = row.seq;
            match row.parse() {
                Ok(broadcast) => broadcasts.push(broadcast),
                // what Postgres takes for JSON and we cannot read must not hold up all that follows
                Err(error) => warn!(broadcast.seq = seq, %error, "passed over a broadcast that cannot be read"),
            }
        }
        Ok(Some(BroadcastBatch { from, through, broadcasts }))
    }

    /// Moves the consumer from one position to a later one; false if another instance moved it meanwhile, which then
    /// has worked on the same broadcasts.
    ///
    /// # Errors
    /// [`Error::Refused`] for a position that cannot have been read, [`Error::Database`] when the outcome is unknown.
    pub async fn acknowledge_broadcasts(
        &self,
        subscription: &Subscription,
        from: &Position,
        through: &Position,
    ) -> Result<bool, Error> {
        let advanced = sqlx::query_scalar("select bus.acknowledge_broadcasts($1, $2, $3, $4, $5)")
            .bind(&subscription.consumer)
            .bind(&subscription.topic)
            .bind(&from.0)
            .bind(&through.0)
            .bind(subscription.tenant())
            .fetch_one(&self.pool)
            .await?;
        Ok(advanced)
    }

    /// Waits until there is something to read: a hint makes it look at once, and `poll` is the floor without hints.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`Bus::read_broadcasts`].
    pub async fn next_broadcasts(
        &self,
        subscription: &Subscription,
        max_rows: u16,
        wakeups: &WakeUps,
        poll: Duration,
    ) -> Result<BroadcastBatch, Error> {
        // hints first, then the look: what is made in between is announced
        let mut hints = wakeups.subscribe();
        loop {
            if let Some(batch) = self.read_broadcasts(subscription, max_rows).await? {
                return Ok(batch);
            }
            let held_back: bool = sqlx::query_scalar("select bus.broadcasts_held_back($1)")
                .bind(&subscription.topic)
                .fetch_one(&self.pool)
                .await?;
            let patience = if held_back { HELD_BACK_POLL.min(poll) } else { poll };
            let _hint = tokio::time::timeout(patience, hint_about(&mut hints, &subscription.topic)).await;
        }
    }

    /// Removes up to `max_rows` broadcasts that have expired, and cursors that nobody has read for 30 days; answers how
    /// many broadcasts went.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retain_broadcasts(&self, max_rows: u32) -> Result<u64, Error> {
        let removed: i32 = sqlx::query_scalar("select bus.retain_broadcasts($1)")
            .bind(max_rows.cast_signed())
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(removed.unsigned_abs()))
    }
}

async fn hint_about(hints: &mut broadcast::Receiver<Wake>, topic: &str) {
    loop {
        match hints.recv().await {
            Ok(Wake::Broadcast(about)) if about == topic => return,
            Ok(Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            Ok(_) => {}
        }
    }
}
