//! Handlers of many messages at once, each of which ends by itself.

mod gather;

use std::{future::Future, time::Duration};

use cogo_contracts::Route;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use crate::{Claim, HandlerError, RetryPolicy};

pub(crate) use gather::Batched;

/// Most messages that a worker has in hand.
const MOST: u16 = 1000;
/// Longest wait for more messages; their leases run meanwhile.
const LONGEST_LINGER: Duration = Duration::from_secs(10);

/// When a batch is large enough to be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    most: u16,
    linger: Duration,
    by_tenant: bool,
}

impl Default for Batching {
    fn default() -> Self {
        Self::new(32, Duration::from_millis(20))
    }
}

impl Batching {
    /// At `most` messages, 1 to 1000, or when `linger` has passed since its first one, 10 s at most.
    #[must_use]
    pub fn new(most: u16, linger: Duration) -> Self {
        Self { most: most.clamp(1, MOST), linger: linger.min(LONGEST_LINGER), by_tenant: false }
    }

    /// Messages of one tenant only in each batch.
    #[must_use]
    pub const fn by_tenant(mut self) -> Self {
        self.by_tenant = true;
        self
    }

    /// How many messages a worker has in hand, so that a batch can be full: `concurrency`, rounded up to whole batches.
    pub(crate) fn in_hand(self, concurrency: u16) -> u16 {
        (concurrency.max(1).div_ceil(self.most).saturating_mul(self.most)).min(MOST.max(self.most))
    }
}

/// The work of one route, many messages at a time.
///
/// Each message is claimed, kept and ended by itself, exactly as with a [`crate::Handler`]: payloads that do not parse
/// never get here, a message whose time to live passes or that is cancelled ends while the rest of its batch goes on, and
/// what one attempt's [`Claim`] sends, writes or streams belongs to that message alone.
///
/// ```
/// use std::time::Duration;
/// use cogo_contracts::Route;
/// use cogo_service_runtime::{BatchHandler, BatchItem, Batching, HandlerError, Retry, RetryPolicy};
/// use serde_json::{Value, json};
///
/// struct Lengths;
///
/// impl BatchHandler for Lengths {
///     const ROUTE: Route = Route::constant("text", "length");
///     type Request = String;
///     type Reply = Value;
///
///     fn batching(&self) -> Batching {
///         Batching::new(64, Duration::from_millis(50))
///     }
///
///     fn retry_policy(&self) -> RetryPolicy {
///         RetryPolicy::default().on("empty", Retry::never())
///     }
///
///     async fn handle(&self, batch: Vec<BatchItem<String, Value>>) -> Result<(), HandlerError> {
///         for BatchItem { request, attempt } in batch {
///             match request.len() {
///                 0 => attempt.fail(HandlerError::of_kind("empty", anyhow::anyhow!("there is no text"))),
///                 bytes => attempt.complete(json!({"bytes": bytes})),
///             }
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait BatchHandler: Send + Sync + 'static {
    /// The route; its shard is replaced by the setting `agent_shard`.
    const ROUTE: Route;
    /// The payload; one that does not parse becomes a dead letter without a call.
    type Request: DeserializeOwned + Send + 'static;
    /// The result.
    type Reply: Serialize + Send + 'static;

    /// How large a batch is, and how long it waits to become so. The setting `concurrency` counts messages, not batches;
    /// it is rounded up to whole batches. Asked once, at the start.
    fn batching(&self) -> Batching {
        Batching::default()
    }

    /// What errors lead to; operators may change it.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
    }

    /// Handles one batch. A message ends, and is recorded, as soon as its [`BatchAttempt`] is completed or failed; what has
    /// no outcome when this returns fails, each by the retry policy: with the error of the batch, with the kind
    /// [`crate::PANIC`] if it panicked, or with the kind [`crate::UNANSWERED`] if it returned `Ok`.
    ///
    /// The future is dropped when none of its messages waits for an outcome any more and one or more were taken away
    /// (cancelled, expired, lease lost), and at hard shutdown, which hands the unfinished back unworked.
    fn handle(
        &self,
        batch: Vec<BatchItem<Self::Request, Self::Reply>>,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// One message of a batch.
pub struct BatchItem<Q, R> {
    /// What is asked.
    pub request: Q,
    /// The way to its end.
    pub attempt: BatchAttempt<R>,
}

/// The attempt at one message of a batch.
pub struct BatchAttempt<R> {
    claim: Claim,
    ended: oneshot::Sender<Result<R, HandlerError>>,
}

impl<R> BatchAttempt<R> {
    /// The message: its id, tenant, limits and token, and the way to parts, follow-ups and writes of its own.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whether an outcome would still be recorded; the message may have been taken away.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.ended.is_closed()
    }

    /// Ends the attempt with a reply.
    pub fn complete(self, reply: R) {
        self.end(Ok(reply));
    }

    /// Ends the attempt with an error, which costs no other message of the batch anything.
    pub fn fail(self, error: HandlerError) {
        self.end(Err(error));
    }

    /// Ends the attempt either way.
    pub fn end(self, outcome: Result<R, HandlerError>) {
        // nobody listens when the message was taken away
        let _ = self.ended.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrency_is_rounded_up_to_whole_batches() {
        for (most, concurrency, in_hand) in
            [(32, 8, 32), (32, 33, 64), (8, 8, 8), (1, 0, 1), (1000, 1000, 1000), (999, 1000, 1000)]
        {
            assert_eq!(Batching::new(most, Duration::ZERO).in_hand(concurrency), in_hand, "{most} {concurrency}");
        }
        assert_eq!(Batching::new(0, Duration::MAX), Batching::new(1, LONGEST_LINGER));
    }
}
