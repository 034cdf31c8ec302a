//! One attempt of a child at one message: the work, the lease under it, and its end, which is written until it stands.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use cogo_bus_core::{Bus, Claimed, Completion, Error as BusError, Failure, Fence};
use futures_util::FutureExt;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::{HandlerError, deadline, patience::in_time, record::WRITE_AGAIN};

/// Extended three times per lease, so that two beats may fail.
const BEATS_PER_LEASE: u32 = 3;

/// How long a child holds a message without a word of the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Lease of a claim.
    pub(crate) lease: Duration,
    /// Longest wait for one answer of the database.
    pub(crate) patience: Duration,
}

/// A message in the hands of a child.
pub(super) struct Attempt {
    pub(super) bus: Bus,
    pub(super) fence: Fence,
    pub(super) holder: String,
    pub(super) pace: Pace,
    /// Until when the child may believe that it owns the message.
    pub(super) until: Instant,
    /// When the time to live of the message passes.
    pub(super) deadline: Option<Instant>,
}

/// How an attempt ended.
enum End {
    Done(Completion),
    Failed(Failure),
    Deferred { after: Duration, reason: String },
}

impl Attempt {
    /// Works on the message, to its recorded end; what is lost meanwhile is dropped.
    pub(super) async fn run<W, A>(mut self, message: Claimed, work: Arc<W>)
    where
        W: Fn(Claimed) -> A,
        A: Future<Output = Result<Value, HandlerError>>,
    {
        let (id, deadline) = (self.fence.id, self.deadline);
        // the call itself may panic as well
        let worked = AssertUnwindSafe(async { work(message).await }).catch_unwind();
        let outcome = if deadline::has_passed(deadline) {
            Err(HandlerError::rejected(deadline::BEFORE))
        } else {
            tokio::select! {
                outcome = worked => outcome.unwrap_or_else(|_| Err(HandlerError::retry(anyhow::anyhow!("The work panicked")))),
                why = self.keep() => return info!(message.id = %id, "message {id} was lost: {why}"),
                // left to its lease it would count as lost by its child, and who waits for it would wait as long
                () = deadline::passes(deadline) => Err(HandlerError::rejected(deadline::MEANWHILE)),
            }
        };
        match self.record(End::from(outcome), deadline).await {
            Ok(true) => debug!(message.id = %id, "attempt ended"),
            Ok(false) => info!(message.id = %id, "message {id} was lost before its end was recorded"),
            Err(error) => warn!(%error, message.id = %id, "the end of message {id} was not recorded"),
        }
    }

    /// Extends the lease until the message is lost, and answers why it is.
    async fn keep(&mut self) -> &'static str {
        let period = self.pace.lease / BEATS_PER_LEASE;
        let mut beat = Instant::now() + period;
        loop {
            sleep_until(beat.min(self.until)).await;
            let asked = Instant::now();
            if asked >= self.until {
                return "its lease ran out while the database was away";
            }
            beat = asked + period;
            // a database that says nothing holds the work no longer than the lease
            let patience = period.min(self.until - asked);
            let extended = self.bus.extend(std::slice::from_ref(&self.fence), &self.holder, self.pace.lease);
            match in_time(patience, extended).await {
                Ok(kept) if kept.is_empty() => return "it is cancelled, or somebody else's now",
                Ok(_) => self.until = asked + self.pace.lease,
                Err(error) => warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    message.id = %self.fence.id,
                    "lease not extended"
                ),
            }
        }
    }

    /// Writes the end, again and again while the database is away and the message may still be the child's; false if it
    /// was not any more. An end that is refused becomes a failure, or the work would be done again at each end of a lease.
    async fn record(&self, mut end: End, deadline: Option<Instant>) -> Result<bool, BusError> {
        let last = deadline.map_or(self.until, |deadline| deadline.min(self.until));
        let mut pause = WRITE_AGAIN.0;
        let mut refusals = 0;
        loop {
            let (refused, retriable) = match in_time(self.pace.patience, self.write(&end)).await {
                Ok(ours) => return Ok(ours),
                Err(refused) => {
                    refusals += u8::from(!refused.is_passing());
                    if let BusError::Database(error) = &refused
                        && refusals < BusError::REFUSALS
                    {
                        warn!(%error, message.id = %self.fence.id, "end of the attempt not written yet");
                        let again = Instant::now() + pause;
                        if again >= last {
                            return Err(refused);
                        }
                        sleep_until(again).await;
                        pause = (pause * 2).min(WRITE_AGAIN.1);
                        continue;
                    }
                    // of a result that is itself against the contract no other attempt makes a better one
                    let retriable = !refused.is_final();
                    (refused, retriable)
                }
            };
            if matches!(end, End::Failed(_)) {
                return Err(refused);
            }
            let reason = match &refused {
                BusError::Database(error) => format!("the database refuses the completion: {error}"),
                refused => refused.to_string(),
            };
            warn!(error = reason, message.id = %self.fence.id, "completion refused");
            refusals = 0;
            end = End::Failed(Failure { reason, retriable, retry_after: None });
        }
    }

    async fn write(&self, end: &End) -> Result<bool, BusError> {
        let (bus, fence, holder) = (&self.bus, &self.fence, &self.holder);
        match end {
            End::Done(completion) => bus.complete(fence, holder, completion).await,
            End::Failed(failure) => Ok(bus.fail(fence, holder, failure).await?.is_some()),
            End::Deferred { after, reason } => {
                Ok(bus.defer(std::slice::from_ref(fence), holder, *after, reason).await? > 0)
            }
        }
    }
}

impl From<Result<Value, HandlerError>> for End {
    fn from(outcome: Result<Value, HandlerError>) -> Self {
        let failed = |reason, retriable, retry_after| Self::Failed(Failure { reason, retriable, retry_after });
        match outcome {
            Ok(result) => Self::Done(Completion { result: Some(result), ..Completion::default() }),
            Err(HandlerError::Deferred { after, source }) => Self::Deferred { after, reason: format!("{source:#}") },
            Err(HandlerError::Reject { source }) => failed(format!("{source:#}"), false, None),
            Err(HandlerError::Retry { after, source }) => failed(format!("{source:#}"), true, after),
            Err(HandlerError::OfKind { kind, after, source }) => failed(format!("{kind}: {source:#}"), true, after),
        }
    }
}
