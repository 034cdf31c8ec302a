//! What a worker author writes, and what a handler knows of the message in its hands.

use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use cogo_bus_core::{
    Bus, Claimed, Completion, Error as BusError, PartialClaim, PartialError, PartialPace, PartialWriter,
};
use cogo_contracts::{Assignment, NewMessage, Route};
use cogo_supervision::{budget::Budget, clock::Clock};
use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use uuid::Uuid;

use crate::{Dependency, RetryPolicy, Unanswered, deadline};

/// Least and most that is kept back from the time to live for recording the end of an attempt.
const KEPT_BACK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The work of one route.
pub trait Handler: Send + Sync + 'static {
    /// The route; its shard is replaced by the setting `agent_shard`.
    const ROUTE: Route;
    /// The payload; one that does not parse becomes a dead letter without a call.
    type Request: DeserializeOwned + Send;
    /// The result.
    type Reply: Serialize + Send;

    /// What errors lead to; operators may change it.
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
    }

    /// Handles one message. It may run again after a crash, so outside effects need the message's id as their key;
    /// effects inside the database belong into [`Claim::within_completion`] and follow-ups into [`Claim::send`].
    /// The future is dropped when the claim's token fires.
    fn handle(
        &self,
        request: Self::Request,
        claim: &Claim,
    ) -> impl Future<Output = Result<Self::Reply, HandlerError>> + Send;
}

/// How a handler fails; the bus decides on delay and dead letter.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Another attempt could do better.
    #[error("Attempt failed")]
    Retry {
        /// When to try again; absent: as the route's policy says of errors without a kind.
        after: Option<Duration>,
        /// Why.
        source: anyhow::Error,
    },
    /// The route's policy says what an error of this kind leads to.
    #[error("Attempt failed: {kind}")]
    OfKind {
        /// A short name without spaces, as `rate-limited`; it opens the reason that is recorded.
        kind: &'static str,
        /// When to try again, if the error itself says so.
        after: Option<Duration>,
        /// Why.
        source: anyhow::Error,
    },
    /// It could not be tried, as while the circuit of its dependency is open: no attempt is used up, and no policy is
    /// asked. It waits in the queue, where its time to live may end it; without one it becomes a dead letter after it
    /// was handed back 1000 times, which takes three days at least. Meanwhile the worker claims less.
    #[error("Not to be tried now")]
    Deferred {
        /// When it may be tried, 5 min at most.
        after: Duration,
        /// Why.
        source: anyhow::Error,
    },
    /// No attempt can do better.
    #[error("Message rejected")]
    Reject {
        /// Why.
        source: anyhow::Error,
    },
}

impl HandlerError {
    /// Try again later.
    pub fn retry(source: impl Into<anyhow::Error>) -> Self {
        Self::Retry { after: None, source: source.into() }
    }

    /// What the route's policy says of errors of this kind.
    pub fn of_kind(kind: &'static str, source: impl Into<anyhow::Error>) -> Self {
        Self::OfKind { kind, after: None, source: source.into() }
    }

    /// Hand it back untried, to be claimed again after this time.
    pub fn deferred(after: Duration, source: impl Into<anyhow::Error>) -> Self {
        Self::Deferred { after, source: source.into() }
    }

    /// Try again after this time, if at all, as a service asks for that is called too often.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        match &mut self {
            Self::Retry { after, .. } | Self::OfKind { after, .. } => *after = Some(delay),
            Self::Deferred { after, .. } => *after = delay,
            Self::Reject { .. } => {}
        }
        self
    }

    /// Give up on the message.
    pub fn reject(source: impl Into<anyhow::Error>) -> Self {
        Self::Reject { source: source.into() }
    }

    /// Give up on the message, with a reason in words.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Self::Reject { source: anyhow::Error::msg(reason.into()) }
    }
}

impl From<anyhow::Error> for HandlerError {
    fn from(source: anyhow::Error) -> Self {
        Self::retry(source)
    }
}

impl From<BusError> for HandlerError {
    fn from(error: BusError) -> Self {
        // a conflict goes by, as when a route is drained no longer, and must cost no message its life
        if error.is_final() { Self::reject(error) } else { Self::retry(error) }
    }
}

impl From<PartialError> for HandlerError {
    fn from(error: PartialError) -> Self {
        // a claim that is lost is worked on elsewhere; whatever is answered here is not written
        if matches!(error, PartialError::Refused(_)) { Self::reject(error) } else { Self::retry(error) }
    }
}

impl From<sqlx::Error> for HandlerError {
    fn from(error: sqlx::Error) -> Self {
        Self::retry(error)
    }
}

/// A write that stands or falls with the completion. It may be called again when a commit broke off.
pub(crate) type Effect = Box<dyn for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), BusError>> + Send + Sync>;

/// Where the partial results of the claims of a worker go.
pub(crate) struct Streaming {
    pub(crate) bus: Bus,
    pub(crate) lease: Duration,
    pub(crate) tracker: TaskTracker,
}

/// A message in the hands of a handler.
pub struct Claim {
    held: Arc<Held>,
    /// Where follow-ups belong, if they are sent from elsewhere.
    trace: Option<Map<String, Value>>,
}

/// What all handles on a claim share.
struct Held {
    claimed: Claimed,
    assignment: Assignment,
    holder: Arc<str>,
    deadline: Option<Instant>,
    token: Arc<CancellationToken>,
    outbox: Mutex<Outbox>,
    streaming: Arc<Streaming>,
    partials: OnceLock<PartialWriter>,
}

#[derive(Default)]
struct Outbox {
    completion: Completion,
    effects: Vec<Effect>,
}

impl Claim {
    pub(crate) fn new(
        claimed: Claimed,
        assignment: Assignment,
        holder: Arc<str>,
        token: Arc<CancellationToken>,
        deadline: Option<Instant>,
        streaming: Arc<Streaming>,
    ) -> Self {
        let (outbox, partials) = (Mutex::default(), OnceLock::new());
        let held = Held { claimed, assignment, holder, deadline, token, outbox, streaming, partials };
        Self { held: Arc::new(held), trace: None }
    }

    /// The same claim for another task; what is sent from there belongs to the present span.
    pub(crate) fn share(&self) -> Self {
        Self { held: Arc::clone(&self.held), trace: Some(cogo_telemetry::inject_current()) }
    }

    /// Id of the message: the key under which outside effects should be made only once.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.held.claimed.id
    }

    /// The task that the message belongs to.
    #[must_use]
    pub fn task(&self) -> Uuid {
        self.held.claimed.root_id
    }

    /// Number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> i16 {
        self.held.claimed.attempt
    }

    /// Whose message it is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.held.claimed.tenant
    }

    /// Who holds the claim.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.held.holder
    }

    /// Budget, model and ttl that the worker must honour.
    #[must_use]
    pub fn assignment(&self) -> &Assignment {
        &self.held.assignment
    }

    /// When the time to live passes, by this process's monotonic clock counted from when the claim was asked for: never
    /// later than by the database's.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.held.deadline
    }

    /// What is left of the time to live for what the handler calls, a tenth of it kept back for recording the end; none
    /// without a time to live.
    #[must_use]
    pub fn budget(&self) -> Option<Budget> {
        let left = self.held.deadline?.saturating_duration_since(Instant::now());
        let kept = (left / 10).clamp(KEPT_BACK.0, KEPT_BACK.1);
        Some(Budget::new(Clock::system(), left.saturating_sub(kept)))
    }

    /// Makes a call under the guard of a dependency, for the tenant of the message and within the time that it has left.
    /// Only errors for which `tells_against` holds count against the dependency.
    ///
    /// # Errors
    /// As [`Dependency::call`].
    pub async fn call<T, E>(
        &self,
        dependency: &Dependency,
        call: impl Future<Output = Result<T, E>>,
        tells_against: impl FnOnce(&E) -> bool,
    ) -> Result<T, Unanswered<E>> {
        dependency.call(self.tenant(), self.budget().as_ref(), call, tells_against).await
    }

    /// Fires at the ttl, when the lease is lost, when the message is cancelled and at hard shutdown.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.held.token
    }

    /// Sends a message as a child of this one, in the transaction of its completion and not without it. It never has
    /// more time to live than is left of this one's.
    pub fn send(&self, mut message: NewMessage) {
        if let Some(deadline) = self.held.deadline {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let left = u64::try_from(left).unwrap_or(u64::MAX);
            message.ttl_ms = Some(message.ttl_ms.map_or(left, |own| own.min(left)));
        }
        if message.headers.is_empty() {
            message.headers = self.trace.clone().unwrap_or_else(cogo_telemetry::inject_current);
        }
        self.outbox().completion.follow_ups.push(message);
    }

    /// Adds a write that stands or falls with the completion. A panic in it ends the attempt as one of the handler does.
    pub fn within_completion<E>(&self, effect: E)
    where
        E: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), BusError>> + Send + Sync + 'static,
    {
        self.outbox().effects.push(Box::new(effect));
    }

    /// What lists show of the result, instead of its first characters.
    pub fn summarize(&self, snippet: impl Into<String>) {
        self.outbox().completion.snippet = Some(snippet.into());
    }

    /// Where a larger reply stands, as [`cogo_bus_core::ArtifactDigest::url`] of an artifact that was put.
    pub fn result_at(&self, url: impl Into<String>) {
        self.outbox().completion.result_url = Some(url.into());
    }

    /// What readers of the task get before the reply: parts in order, gathered and stored with the claim's fence. All
    /// that was written is stored before the attempt ends; another attempt starts anew. Where the bus takes no more, as
    /// beyond 8 MiB or 100,000 parts, a handler that answers `Ok` has failed for good.
    pub fn partials(&self) -> PartialWriter {
        let start = || {
            let Streaming { bus, lease, tracker } = &*self.held.streaming;
            let claim = PartialClaim {
                fence: self.held.claimed.fence(),
                holder: self.held.holder.as_ref().to_owned(),
                lease: *lease,
            };
            let (writer, flusher) =
                PartialWriter::new(bus.clone(), claim, PartialPace::default(), self.held.token.child_token());
            tracker.spawn(flusher.run());
            writer
        };
        self.held.partials.get_or_init(start).clone()
    }

    /// Whether the time to live has passed.
    pub(crate) fn is_late(&self) -> bool {
        deadline::has_passed(self.held.deadline)
    }

    /// Waits until every part stands, if there are any.
    ///
    /// # Errors
    /// When the database did not take parts that were written. Those of a claim that is lost are void as its end is.
    pub(crate) async fn close_partials(&self) -> Result<(), PartialError> {
        let Some(writer) = self.held.partials.get() else { return Ok(()) };
        match writer.close().await {
            // the handler may have closed it
            Ok(()) | Err(PartialError::Closed) => Ok(()),
            Err(error) => {
                debug!(%error, "partial results are not complete");
                if error == PartialError::Lost { Ok(()) } else { Err(error) }
            }
        }
    }

    pub(crate) fn claimed(&self) -> &Claimed {
        &self.held.claimed
    }

    /// Takes what the handler left to be written, once it has ended.
    pub(crate) fn take_outbox(&self) -> (Completion, Vec<Effect>) {
        let outbox = std::mem::take(&mut *self.outbox());
        (outbox.completion, outbox.effects)
    }

    fn outbox(&self) -> std::sync::MutexGuard<'_, Outbox> {
        // a panic between two pushes leaves a whole outbox behind
        self.held.outbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
