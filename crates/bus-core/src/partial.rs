//! Partial results: what a worker has before it is done, gathered into few statements, in order, resumable by readers.

use std::{
    slice,
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    Bus, Error, Fence,
    jsonb::{has_nul, stored_bytes},
};

/// Most bytes of one part as JSON text. The table's own limit is on its stored form, which for text is hardly larger, and for
/// small numbers six times as large.
pub const MAX_PARTIAL_BYTES: usize = 192 * 1024;
/// Most bytes of one part as it is stored, which the table checks.
const MAX_STORED_BYTES: usize = 256 * 1024;
/// No text below this is larger than [`MAX_STORED_BYTES`] when it is stored: two characters of an array of digits take 12.
const SURELY_SMALL: usize = MAX_STORED_BYTES / 8;
/// First and longest pause before a batch is sent again to a database that was away.
const SEND_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for one answer of the database.
const PATIENCE: Duration = Duration::from_secs(10);

/// A part of a result.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Partial {
    /// The message that is worked on.
    pub message_id: Uuid,
    /// The attempt; when it changes, what came before is void.
    pub attempt: i16,
    /// Place within the attempt, from 1.
    pub seq: i32,
    /// When it was stored, by the database clock.
    pub at: DateTime<Utc>,
    /// The part.
    pub content: Value,
}

/// How far a reader has come with one message; the default is the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PartialPlace {
    /// The attempt.
    pub attempt: i16,
    /// The last part of it that was read.
    pub seq: i32,
}

impl Partial {
    /// The place after which the next part stands.
    #[must_use]
    pub fn place(&self) -> PartialPlace {
        PartialPlace { attempt: self.attempt, seq: self.seq }
    }
}

impl Bus {
    /// Stores parts of a result under the numbers from `first_seq` and renews the lease; answers the last number that is
    /// stored, none if the claim is no longer the holder's. The same parts again change nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] for a gap in the numbers or more than is allowed; [`Error::Database`] when the outcome is
    /// unknown.
    pub async fn emit(
        &self,
        fence: &Fence,
        holder: &str,
        first_seq: i32,
        contents: &[String],
        lease: Duration,
    ) -> Result<Option<i32>, Error> {
        let stored = sqlx::query_scalar("select bus.emit($1, $2, $3, $4, $5::text[]::jsonb[], $6)")
            .bind(fence.id)
            .bind(holder)
            .bind(fence.attempt)
            .bind(first_seq)
            .bind(contents)
            .bind(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
            .fetch_one(&self.pool)
            .await?;
        Ok(stored)
    }

    /// Parts of one message after a place, in order, at most `limit`.
    ///
    /// # Errors
    /// When the database does not answer; [`Error::Contract`] when one of them cannot be read.
    pub async fn partials_after(&self, id: Uuid, after: PartialPlace, limit: u32) -> Result<Vec<Partial>, Error> {
        self.partials_of(&[(id, after)], limit).await
    }

    /// Parts of several messages, each after a place of its own and in order, at most `limit` in all.
    ///
    /// # Errors
    /// As [`Bus::partials_after`].
    pub async fn partials_of(&self, after: &[(Uuid, PartialPlace)], limit: u32) -> Result<Vec<Partial>, Error> {
        let ids: Vec<Uuid> = after.iter().map(|(id, _)| *id).collect();
        let attempts: Vec<i16> = after.iter().map(|(_, place)| place.attempt).collect();
        let seqs: Vec<i32> = after.iter().map(|(_, place)| place.seq).collect();
        let partials =
            sqlx::query_as("select message_id, attempt, seq, at, content from bus.partials_after($1, $2, $3, $4)")
                .bind(ids)
                .bind(attempts)
                .bind(seqs)
                .bind(limit.cast_signed())
                .fetch_all(&self.pool)
                .await;
        partials.map_err(Error::reading("bus.partials_after"))
    }

    /// Removes up to `max_rows` parts of messages that ended longer than `keep` ago; answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn retain_partials(&self, keep: Duration, max_rows: u32) -> Result<u64, Error> {
        let removed: i32 = sqlx::query_scalar("select bus.retain_partials($1 * interval '1 second', $2)")
            .bind(keep.as_secs_f64())
            .bind(max_rows.cast_signed())
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::from(removed.unsigned_abs()))
    }
}

/// Why a part was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartialError {
    /// The claim is no longer the holder's.
    #[error("The claim is no longer this worker's")]
    Lost,
    /// The parts are against the contract: too large, too many, or nothing that the database can hold.
    #[error("The partial result is refused: {0}")]
    Refused(String),
    /// The database failed to store parts for a reason of its own, as a right that is missing, however often it was asked.
    /// Another attempt may do better.
    #[error("The database refuses the partial result: {0}")]
    Failed(String),
    /// The stream was closed, as at the end of an attempt.
    #[error("The stream of partial results is closed")]
    Closed,
}

/// When parts are sent.
#[derive(Debug, Clone, Copy)]
pub struct PartialPace {
    /// No part waits longer for others, unless the database is slow.
    pub flush_after: Duration,
    /// So many parts do not wait for more; as many again may wait while these are being stored.
    pub max_items: usize,
    /// So many bytes of JSON do not wait for more.
    pub max_bytes: usize,
}

impl Default for PartialPace {
    fn default() -> Self {
        Self { flush_after: Duration::from_millis(50), max_items: 100, max_bytes: 64 * 1024 }
    }
}

/// The claim that a stream belongs to.
#[derive(Debug, Clone)]
pub struct PartialClaim {
    /// Message and attempt.
    pub fence: Fence,
    /// Who holds it.
    pub holder: String,
    /// What each storing renews the lease by; that of the claim.
    pub lease: Duration,
}

enum Order {
    Part(String),
    Flush(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// The way in of a stream; clones write into the same one.
#[derive(Debug, Clone)]
pub struct PartialWriter {
    orders: mpsc::Sender<Order>,
    end: Arc<OnceLock<PartialError>>,
}

impl PartialWriter {
    /// A stream for a claim, and the part of it that stores, which somebody must run. `stop` ends it unfinished, as when
    /// the lease is lost.
    #[must_use]
    pub fn new(bus: Bus, claim: PartialClaim, pace: PartialPace, stop: CancellationToken) -> (Self, PartialFlusher) {
        let (orders, incoming) = mpsc::channel(pace.max_items.max(1));
        let end = Arc::new(OnceLock::new());
        let flusher = PartialFlusher { bus, claim, pace, stop, incoming, end: Arc::clone(&end), next_seq: 1 };
        (Self { orders, end }, flusher)
    }

    /// Adds a part; waits while too many wait to be stored.
    ///
    /// # Errors
    /// When the stream has ended, or the part is refused, as one that is too large: then nothing is sent, and the stream
    /// goes on without it. Earlier parts stand.
    pub async fn write(&self, content: &Value) -> Result<(), PartialError> {
        let text = content.to_string();
        if text.len() > MAX_PARTIAL_BYTES {
            return Err(PartialError::Refused(format!("a part is larger than {MAX_PARTIAL_BYTES} bytes")));
        }
        if text.contains(r"\u0000") && has_nul(content) {
            let why = r"a part has the character \u0000, which jsonb cannot hold; leave it out or encode the text";
            return Err(PartialError::Refused(why.to_owned()));
        }
        if text.len() > SURELY_SMALL && stored_bytes(content) > MAX_STORED_BYTES {
            let why =
                format!("a part takes more than {MAX_STORED_BYTES} bytes as jsonb; send it as several, or as text");
            return Err(PartialError::Refused(why));
        }
        self.order(Order::Part(text)).await
    }

    /// Returns once everything written so far is stored.
    ///
    /// # Errors
    /// When the stream ended before.
    pub async fn flush(&self) -> Result<(), PartialError> {
        let (stored, answer) = oneshot::channel();
        self.order(Order::Flush(stored)).await?;
        answer.await.map_err(|_ended| self.why())
    }

    /// Stores what is left and ends the stream, for all clones.
    ///
    /// # Errors
    /// When the stream ended before, or does by a part that is not taken: [`PartialError::Refused`] beyond 8 MiB or
    /// 100,000 parts of an attempt, [`PartialError::Failed`] where the database cannot store it.
    pub async fn close(&self) -> Result<(), PartialError> {
        let (stored, answer) = oneshot::channel();
        self.order(Order::Close(stored)).await?;
        answer.await.map_err(|_ended| self.why())
    }

    async fn order(&self, order: Order) -> Result<(), PartialError> {
        self.orders.send(order).await.map_err(|_ended| self.why())
    }

    fn why(&self) -> PartialError {
        self.end.get().cloned().unwrap_or(PartialError::Closed)
    }
}

/// Stores what a [`PartialWriter`] is given.
#[derive(Debug)]
pub struct PartialFlusher {
    bus: Bus,
    claim: PartialClaim,
    pace: PartialPace,
    stop: CancellationToken,
    incoming: mpsc::Receiver<Order>,
    end: Arc<OnceLock<PartialError>>,
    next_seq: i32,
}

/// What is stored by one statement, and who waits for it.
#[derive(Default)]
struct Batch {
    parts: Vec<String>,
    bytes: usize,
    waiting: Vec<oneshot::Sender<()>>,
    is_last: bool,
}

impl Batch {
    fn add(&mut self, order: Order) {
        match order {
            Order::Part(text) => {
                self.bytes += text.len();
                self.parts.push(text);
            }
            Order::Flush(waiting) => self.waiting.push(waiting),
            Order::Close(waiting) => {
                self.waiting.push(waiting);
                self.is_last = true;
            }
        }
    }

    fn is_due(&self, pace: &PartialPace) -> bool {
        !self.waiting.is_empty() || self.parts.len() >= pace.max_items || self.bytes >= pace.max_bytes
    }
}

impl PartialFlusher {
    /// Stores until the stream is closed, every writer is dropped, the claim is lost or `stop` fires.
    pub async fn run(mut self) {
        let (stop, end) = (self.stop.clone(), Arc::clone(&self.end));
        // each before it drops anybody who waits: a writer that is refused must find the reason
        let stopped = async {
            stop.cancelled().await;
            let _ = end.set(PartialError::Lost);
        };
        tokio::select! {
            biased;
            () = stopped => {}
            () = self.store_all() => {}
        }
        let end = self.end.get_or_init(|| PartialError::Closed);
        debug!(message.id = %self.claim.fence.id, %end, "stream of partial results ended");
    }

    async fn store_all(&mut self) {
        while let Some(batch) = self.gather().await {
            if let Err(why) = self.store(&batch.parts).await {
                let _ = self.end.set(why);
                return;
            }
            for waiting in batch.waiting {
                // one that no longer waits does not mind
                let _ = waiting.send(());
            }
            if batch.is_last {
                return;
            }
        }
    }

    /// What is to be stored next; none once no more can come.
    async fn gather(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        batch.add(self.incoming.recv().await?);
        let due = Instant::now() + self.pace.flush_after;
        while !batch.is_due(&self.pace) {
            match timeout_at(due, self.incoming.recv()).await {
                Ok(Some(order)) => batch.add(order),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    /// Stores a batch; of one that is refused, all but the parts that cause it.
    async fn store(&mut self, parts: &[String]) -> Result<(), PartialError> {
        match self.send(parts).await {
            Err(PartialError::Refused(_)) if parts.len() > 1 => {}
            sent => return sent,
        }
        let mut refused = Ok(());
        for part in parts {
            match self.send(slice::from_ref(part)).await {
                Err(why @ PartialError::Refused(_)) => refused = refused.and(Err(why)),
                sent => sent?,
            }
        }
        // whoever wrote it was told that it is taken, and must hear that it is not
        refused
    }

    /// Sends parts until they stand; numbers make it safe to send them again. What fails for a reason that does not pass
    /// ends the stream, or the attempt would wait for its last part until somebody removes that reason.
    async fn send(&mut self, parts: &[String]) -> Result<(), PartialError> {
        if parts.is_empty() {
            return Ok(());
        }
        let PartialClaim { fence, holder, lease } = &self.claim;
        let mut pause = SEND_AGAIN.0;
        let mut refusals = 0;
        loop {
            match timeout(PATIENCE, self.bus.emit(fence, holder, self.next_seq, parts, *lease)).await {
                Ok(Ok(Some(stored))) => {
                    self.next_seq = stored + 1;
                    return Ok(());
                }
                Ok(Ok(None)) => return Err(PartialError::Lost),
                Ok(Err(error)) => {
                    refusals += u8::from(!error.is_passing());
                    match error {
                        Error::Database(error) if refusals < Error::REFUSALS => {
                            warn!(%error, "partial results not stored yet");
                        }
                        Error::Database(error) => return Err(PartialError::Failed(error.to_string())),
                        refused => return Err(PartialError::Refused(refused.to_string())),
                    }
                }
                Err(_elapsed) => warn!("partial results not stored yet, the database is silent"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SEND_AGAIN.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use cogo_contracts::{NewMessage, Route, Tenant};
    use serde_json::json;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::ClaimRequest;

    const ROUTE: Route = Route::constant("test", "work");
    /// Far longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_the_database_cannot_do_ends_the_stream_instead_of_being_tried_for_ever() {
        let database = cogo_test_support::database().await;
        let bus = Bus::new(database.pool.clone());
        bus.enqueue(&NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({}))).await.unwrap();
        let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 1, lease: LONG };
        let claimed = bus.claim(&request).await.unwrap().remove(0);
        sqlx::raw_sql("alter function bus.emit rename to hidden").execute(&database.pool).await.unwrap();
        let claim = PartialClaim { fence: claimed.fence(), holder: "w".to_owned(), lease: LONG };
        let (writer, flusher) =
            PartialWriter::new(bus.clone(), claim, PartialPace::default(), CancellationToken::new());
        let flushing = TaskTracker::new().spawn(flusher.run());
        for part in 1..=5 {
            writer.write(&json!(part)).await.unwrap();
        }
        let why = timeout(LONG, writer.close()).await.expect("it is tried for ever");
        assert!(matches!(&why, Err(PartialError::Failed(why)) if why.contains("bus.emit")), "{why:?}");
        assert_eq!(writer.write(&json!(6)).await, why);
        timeout(LONG, flushing).await.expect("it goes on").unwrap();
    }
}
