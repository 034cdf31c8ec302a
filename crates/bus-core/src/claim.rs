//! Claims: taking messages, keeping them, and the ways to end them. Each is fenced by `(holder, attempt)`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_contracts::{NewMessage, Route};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Row, postgres::PgRow};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use crate::{Bus, Error};

/// Whom a claim belongs to and which one it is; every write about it must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The message.
    pub id: Uuid,
    /// Number of the claim, from 1.
    pub attempt: i16,
}

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct ClaimRequest<'a> {
    /// The route it serves.
    pub route: &'a Route,
    /// The name of this run of the worker, unlike any other's.
    pub holder: &'a str,
    /// The name of the slot, for messages directed to it.
    pub instance: Option<&'a str>,
    /// At most this many, 1 to 1000.
    pub max_messages: u16,
    /// How long the worker owns them unless it extends.
    pub lease: Duration,
}

/// A message in the hands of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// Its id.
    pub id: Uuid,
    /// Number of this claim, from 1.
    pub attempt: i16,
    /// Counted attempts after which a failure is final.
    pub max_attempts: i16,
    /// Whose it is.
    pub tenant: String,
    /// The request.
    pub payload: Value,
    /// Trace context and other transport headers.
    pub headers: Map<String, Value>,
    /// The task.
    pub root_id: Uuid,
    /// The message whose handler sent it.
    pub parent_id: Option<Uuid>,
    /// Key under which the sender waits.
    pub reply_to: Option<String>,
    /// Milliseconds between sending and this claim.
    pub waited_ms: i64,
    /// Milliseconds until its time to live passes, by the database clock at the claim.
    pub remaining_ms: Option<i64>,
    /// When the database was asked, by this process's clock: before its clock was read.
    pub asked_at: Instant,
}

/// A row of `bus.claim`, by position: looking up twelve names for each message costs as much as reading them.
struct ClaimedRow {
    message: Claimed,
    priority: i16,
    created_at: DateTime<Utc>,
}

/// What Postgres takes for JSON and we cannot read.
struct Unreadable {
    fence: Fence,
    error: serde_json::Error,
}

impl ClaimedRow {
    /// Unchecked means: the types are those of the statement above it, and are not compared again for each field.
    fn read(row: &PgRow, asked_at: Instant) -> Result<Result<Self, Unreadable>, sqlx::Error> {
        let fence = Fence { id: row.try_get_unchecked(0)?, attempt: row.try_get_unchecked(1)? };
        let headers: Option<&str> = row.try_get_unchecked(5)?;
        let (payload, headers) = (
            serde_json::from_str(row.try_get_unchecked(4)?),
            headers.map_or_else(|| Ok(Map::new()), serde_json::from_str),
        );
        let (payload, headers) = match (payload, headers) {
            (Ok(payload), Ok(headers)) => (payload, headers),
            (Err(error), _) | (_, Err(error)) => return Ok(Err(Unreadable { fence, error })),
        };
        let message = Claimed {
            id: fence.id,
            attempt: fence.attempt,
            max_attempts: row.try_get_unchecked(2)?,
            tenant: row.try_get_unchecked(3)?,
            payload,
            headers,
            root_id: row.try_get_unchecked::<Option<Uuid>, _>(6)?.unwrap_or(fence.id),
            parent_id: row.try_get_unchecked(7)?,
            reply_to: row.try_get_unchecked(8)?,
            waited_ms: row.try_get_unchecked(9)?,
            remaining_ms: row.try_get_unchecked(10)?,
            asked_at,
        };
        Ok(Ok(Self { message, priority: row.try_get_unchecked(11)?, created_at: row.try_get_unchecked(12)? }))
    }
}

impl Completion {
    /// Whether it may be recorded together with others, by [`Bus::complete_many`].
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.follow_ups.is_empty()
    }
}

impl Claimed {
    /// What every write about this claim must match.
    #[must_use]
    pub fn fence(&self) -> Fence {
        Fence { id: self.id, attempt: self.attempt }
    }
}

/// The good end of a claim.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// The reply, at most 1 MiB.
    pub result: Option<Value>,
    /// Start of the reply for lists, at most 400 characters.
    pub snippet: Option<String>,
    /// Where a larger reply stands.
    pub result_url: Option<String>,
    /// Messages sent in the same transaction, as children of this one.
    pub follow_ups: Vec<NewMessage>,
}

/// The bad end of a claim.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why, safe to show.
    pub reason: String,
    /// Whether another attempt could do better.
    pub retriable: bool,
    /// When to try again; absent: exponential with jitter.
    pub retry_after: Option<Duration>,
}

/// What a failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Another attempt follows.
    Again,
    /// It was given up.
    DeadLetter,
}

impl Settled {
    /// By the status that a failure left the message in.
    pub(crate) fn from_status(status: &str) -> Self {
        if status == "queued" { Self::Again } else { Self::DeadLetter }
    }
}

impl Bus {
    /// Takes up to `max_messages`, by priority then age.
    ///
    /// # Errors
    /// When the database does not answer or refuses the request.
    pub async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Vec<Claimed>, Error> {
        let mut line = self.lines.lend().await?;
        // that a connection was long in coming costs no message its time
        let asked_at = Instant::now();
        let rows = sqlx::query(
            // what most messages do not have comes as null, which costs nothing to send and to read
            "select id, attempt, max_attempts, tenant, payload::text, nullif(headers, '{}')::text, nullif(root_id, id),
                    parent_id, reply_to, waited_ms, remaining_ms, priority, created_at
               from bus.claim($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(request.route.service())
        .bind(request.route.role())
        .bind(i32::from(request.route.shard()))
        .bind(request.holder)
        .bind(i32::from(request.max_messages))
        .bind(milliseconds(request.lease))
        .bind(request.instance)
        .fetch_all(&mut *line)
        .await;
        let rows = line.back(rows)?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            match ClaimedRow::read(row, asked_at)? {
                Ok(message) => claimed.push(message),
                // it must not cost those that were claimed with it
                Err(Unreadable { fence, error }) => {
                    let reason = format!("payload cannot be read: {error}");
                    let failure = Failure { reason, retriable: false, retry_after: None };
                    if let Err(error) = self.fail(&fence, request.holder, &failure).await {
                        // its lease ends, and the next claim tries again
                        warn!(message.id = %fence.id, %error, "unreadable message not given up yet");
                    }
                }
            }
        }
        claimed.sort_by_cached_key(|row| (row.priority, row.created_at, row.message.id));
        Ok(claimed.into_iter().map(|row| row.message).collect())
    }

    /// How long until the next delayed message of a route is due or a rate lets one start; zero if something is ready and
    /// no limit holds it, none if nothing waits for time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn next_due(&self, route: &Route) -> Result<Option<Duration>, Error> {
        self.next_due_for(route, None).await
    }

    /// The same for an instance, whose own messages count too.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn next_due_for(&self, route: &Route, instance: Option<&str>) -> Result<Option<Duration>, Error> {
        let due: Option<i64> = sqlx::query_scalar("select bus.next_due($1, $2, $3, $4)")
            .bind(route.service())
            .bind(route.role())
            .bind(i32::from(route.shard()))
            .bind(instance)
            .fetch_one(&self.pool)
            .await?;
        Ok(due.map(|wait| Duration::from_millis(wait.unsigned_abs())))
    }

    /// Renews leases; answers the ids that are still the holder's. The others are lost.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn extend(&self, fences: &[Fence], holder: &str, lease: Duration) -> Result<Vec<Uuid>, Error> {
        let (ids, attempts) = columns(fences);
        let kept = sqlx::query_scalar("select id from bus.extend($1, $2, $3, $4)")
            .bind(ids)
            .bind(attempts)
            .bind(holder)
            .bind(milliseconds(lease))
            .fetch_all(&self.pool)
            .await?;
        Ok(kept)
    }

    /// Ends the attempt with an error; none if the claim was no longer the holder's.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn fail(&self, fence: &Fence, holder: &str, failure: &Failure) -> Result<Option<Settled>, Error> {
        let status: Option<String> = sqlx::query_scalar("select bus.fail($1, $2, $3, $4, $5, $6)")
            .bind(fence.id)
            .bind(holder)
            .bind(fence.attempt)
            .bind(failure.reason.replace('\0', "\u{fffd}"))
            .bind(failure.retriable)
            .bind(failure.retry_after.map(milliseconds))
            .fetch_one(&self.pool)
            .await?;
        Ok(status.map(|status| Settled::from_status(&status)))
    }

    /// Hands claims back unworked, at once claimable by others.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release(&self, fences: &[Fence], holder: &str) -> Result<u64, Error> {
        let (ids, attempts) = columns(fences);
        let released: i32 = sqlx::query_scalar("select bus.release($1, $2, $3)")
            .bind(ids)
            .bind(attempts)
            .bind(holder)
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(released.unsigned_abs()))
    }

    /// Hands back what `holder` has claimed of a route beside `held`, the messages that it knows of: after a claim whose
    /// answer was lost, nobody else would work on them before the lease ends. Answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn hand_back_unheld(&self, route: &Route, holder: &str, held: &[Uuid]) -> Result<u64, Error> {
        let released: i32 = sqlx::query_scalar("select bus.hand_back_unheld($1, $2, $3)")
            .bind(holder)
            .bind(route.to_string())
            .bind(held)
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(released.unsigned_abs()))
    }

    /// Requeues up to `max_rows` messages whose lease has passed; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reclaim(&self, max_rows: u32) -> Result<u64, Error> {
        self.chore("select bus.reclaim($1)", max_rows).await
    }

    /// Turns up to `max_rows` queued messages whose time to live has passed into dead letters; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn expire(&self, max_rows: u32) -> Result<u64, Error> {
        self.chore("select bus.expire($1)", max_rows).await
    }

    /// Makes the parts of the table that days to come lack; answers how many. As long as tomorrow has its part, that waits
    /// until nobody would be held up by it.
    ///
    /// # Errors
    /// When the database does not answer, or tomorrow has no part and cannot have one just now.
    pub async fn ensure_days_ahead(&self) -> Result<u64, Error> {
        let made: i32 = sqlx::query_scalar("select bus.ensure_days_ahead()").fetch_one(&self.pool).await?;
        Ok(u64::from(made.unsigned_abs()))
    }

    /// How many parts the table has: one for each day that has one, and one for what is of no such day.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn parts(&self) -> Result<u64, Error> {
        let parts: i64 = sqlx::query_scalar(
            "select count(*) from pg_catalog.pg_inherits where inhparent = 'public.agent_messages'::regclass",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(parts.unsigned_abs())
    }

    /// Removes what ended longer than `keep` ago: the part of one day of which that is true as a whole, and up to `max_tasks`
    /// tasks one by one of days that cannot go so. Answers how many messages went. That is 0 also while another session does
    /// it or has the day open, for a day that was empty, and for the call that first finds days old enough and prepares them;
    /// so it is done once two calls in a row have removed neither messages nor [`Bus::parts`].
    ///
    /// It takes the time that it needs, whatever the pool says of statements: a day is read to its last row.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retain(&self, keep: Duration, max_tasks: u32) -> Result<u64, Error> {
        self.sweep("retain", keep, max_tasks).await
    }

    /// Removes up to `max_rows` audit rows older than `keep`; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retain_events(&self, keep: Duration, max_rows: u32) -> Result<u64, Error> {
        self.sweep("retain_events", keep, max_rows).await
    }

    async fn chore(&self, statement: &'static str, max_rows: u32) -> Result<u64, Error> {
        let rows: i32 = sqlx::query_scalar(statement).bind(max_rows.cast_signed()).fetch_one(&self.pool).await?;
        Ok(u64::from(rows.unsigned_abs()))
    }

    async fn sweep(&self, function: &'static str, keep: Duration, max_rows: u32) -> Result<u64, Error> {
        // One message is one transaction, which the server ends itself: were it to wait for a client to say so, one that is
        // frozen would keep all locked that the end of a day locks. For locks it waits no longer than a statement may take.
        let statement = format!(
            "set local statement_timeout = 0; set local lock_timeout = '30s';
             select bus.{function}({} * interval '1 second', {})",
            keep.as_secs_f64(),
            max_rows.cast_signed()
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(&self.pool).await?;
        let removed: i32 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        Ok(u64::from(removed.unsigned_abs()))
    }
}

pub(crate) fn columns(fences: &[Fence]) -> (Vec<Uuid>, Vec<i16>) {
    fences.iter().map(|fence| (fence.id, fence.attempt)).unzip()
}

/// Durations beyond the range of the database mean "for ever" to a caller; they are cut.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
