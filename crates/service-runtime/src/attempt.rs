//! One attempt at one message, from the parsed request to the recorded end.

use std::{any::Any, future::poll_fn, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll, time::Duration};

use cogo_bus_core::{Bus, Claimed, Completion, Failure, Fence};
use cogo_contracts::{Assignment, Route};
use cogo_registry_core::SchemaRegistry;
use cogo_telemetry::RouteMetrics;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Span, info_span, warn};
use uuid::fmt::Hyphenated;

use crate::{
    Claim, Handler, HandlerError, RetryPolicy, deadline,
    dependency::Brake,
    handler::{Effect, Streaming},
    hands::Hands,
    leases::Leases,
    retry::{Deferral, Fault},
    schema_check,
    settle::{Ended, Order, Portion, Settler},
};

/// Characters of a result that lists show.
const SNIPPET: usize = 400;

/// What every attempt of a worker shares.
pub(crate) struct Attempts<H> {
    pub(crate) handler: H,
    pub(crate) route: Route,
    pub(crate) bus: Bus,
    /// What requests and replies are held against, where their routes have a schema.
    pub(crate) schemas: SchemaRegistry,
    /// What has ended and waits to be recorded with others.
    pub(crate) settler: Settler,
    pub(crate) hands: Hands,
    pub(crate) metrics: RouteMetrics,
    pub(crate) leases: Leases,
    /// Slows the worker down while messages cannot be tried.
    pub(crate) brake: Brake,
    /// What errors lead to.
    pub(crate) retry: RetryPolicy,
    pub(crate) lease: Duration,
    /// Longest wait for one answer of the database.
    pub(crate) patience: Duration,
    pub(crate) hard_stop: CancellationToken,
    pub(crate) streaming: Arc<Streaming>,
    /// Name of the spans, made once.
    pub(crate) span_name: String,
    pub(crate) tracker: TaskTracker,
}

/// A message that was claimed.
pub(crate) struct Taken {
    claimed: Claimed,
    holder: Arc<str>,
    token: Arc<CancellationToken>,
    /// When its time to live passes.
    deadline: Option<Instant>,
    /// What was claimed with it.
    portion: Arc<Portion>,
}

/// What a handler answered, or what it panicked with.
type Handled<R> = Result<Result<R, HandlerError>, Box<dyn Any + Send>>;

/// How an attempt ended.
pub(crate) enum End {
    Done(Completion, Vec<Effect>),
    Failed(Failure),
    /// Could not be tried: hand it back for later.
    Deferred(Deferral),
    /// Shutdown: hand it back unworked.
    Released,
    /// Not ours any more: write nothing.
    Lost,
}

impl<H: Handler> Attempts<H> {
    /// Counts what a claim that was `asked` for then took as in hand; the token of each fires when it no longer is.
    pub(crate) fn take_in_hand(&self, claimed: Vec<Claimed>, holder: &Arc<str>, asked: Instant) -> Vec<Taken> {
        let portion = Arc::new(Portion::new(claimed.len()));
        let take = |claimed| {
            // a child of the hard stop would cost every message the lock of all
            let token = Arc::default();
            let deadline = deadline::of(&claimed, asked);
            Taken { claimed, holder: Arc::clone(holder), token, deadline, portion: Arc::clone(&portion) }
        };
        let taken: Vec<Taken> = claimed.into_iter().map(take).collect();
        self.hands.take(taken.len());
        self.leases.add(
            taken.iter().map(|taken| (taken.claimed.fence(), Arc::clone(&taken.token))),
            holder,
            asked + self.lease,
        );
        if self.hard_stop.is_cancelled() {
            self.leases.cancel_unless_held_by(None);
        }
        taken
    }

    /// Works on a claimed message. A failure and a completion that sends nothing are left to be recorded with others, every
    /// other end is recorded here.
    pub(crate) async fn run(self: Arc<Self>, taken: Taken) {
        let claimed = &taken.claimed;
        // written once, and not by every layer for itself
        let (mut id, mut task) = ([0; Hyphenated::LENGTH], [0; Hyphenated::LENGTH]);
        let span = info_span!(
            "process",
            otel.name = self.span_name,
            otel.kind = "consumer",
            message.id = &*claimed.id.hyphenated().encode_lower(&mut id),
            task.id = &*claimed.root_id.hyphenated().encode_lower(&mut task),
            tenant = claimed.tenant,
            attempt = claimed.attempt,
        );
        cogo_telemetry::link_or_parent(&span, &claimed.headers);
        self.metrics.waited(Duration::from_millis(claimed.waited_ms.max(0).unsigned_abs()));
        let attempt = async {
            let _hand = self.hands.hold();
            let started = Instant::now();
            let mut unended = Unended::new(&self, &taken);
            let (claim, end) = self.attempt(taken).await;
            let order = match end {
                End::Done(completion, effects) if effects.is_empty() && completion.is_plain() => {
                    Order::Complete(completion)
                }
                End::Failed(failure) => Order::Fail(failure),
                end => {
                    unended.end_portion();
                    Box::pin(self.record(&claim, end, started)).await;
                    return unended.has_ended();
                }
            };
            let portion = Arc::clone(&unended.portion);
            unended.has_ended();
            self.settler.add(Ended::new(claim, order, portion, started));
        };
        within(&span, attempt).await;
    }

    async fn attempt(&self, taken: Taken) -> (Claim, End) {
        let Taken { mut claimed, holder, token, deadline, .. } = taken;
        let rejected = |reason| Failure { reason, retriable: false, retry_after: None };
        let fits = Box::pin(schema_check::request(&self.schemas, &self.route, &claimed)).await;
        let payload = std::mem::take(&mut claimed.payload);
        // the request reads itself by code of the handler's author
        let read = || std::panic::catch_unwind(|| parse::<H::Request>(payload));
        let read =
            || read().unwrap_or_else(|panic| Err(format!("payload makes its reader panic: {}", panic_text(&*panic))));
        let parsed = fits.and_then(|()| read().map_err(rejected));
        let (assignment, request) = match parsed {
            Ok((assignment, request)) => (assignment, Ok(request)),
            Err(failure) => (Assignment::default(), Err(failure)),
        };
        let claim = Claim::new(claimed, assignment, holder, token, deadline, Arc::clone(&self.streaming));
        let end = match request {
            Err(failure) => End::Failed(failure),
            Ok(request) => self.work(request, &claim).await,
        };
        (claim, end)
    }

    async fn work(&self, request: H::Request, claim: &Claim) -> End {
        if claim.token().is_cancelled() {
            return self.cut_off();
        }
        // it may have waited long for its turn
        if claim.is_late() {
            return failed_for_good(deadline::BEFORE);
        }
        let handled = async {
            // the call itself may panic as well
            let handle = async { self.handler.handle(request, claim).await };
            let handled = AssertUnwindSafe(handle).catch_unwind().await;
            Box::pin(self.end_of(handled, claim)).await
        };
        tokio::pin!(handled);
        // most handlers that wait for nothing have ended by now, and nothing needs to be watched
        if let Poll::Ready(end) = futures_util::poll!(handled.as_mut()) {
            return end;
        }
        tokio::select! {
            biased;
            () = claim.token().cancelled() => self.cut_off(),
            () = deadline::passes(claim.deadline()) => {
                claim.token().cancel();
                failed_for_good(deadline::MEANWHILE)
            }
            end = handled => end,
        }
    }

    /// The end of an attempt whose token has fired, which it does at the hard stop as well.
    fn cut_off(&self) -> End {
        if self.hard_stop.is_cancelled() { End::Released } else { End::Lost }
    }

    async fn end_of(&self, handled: Handled<H::Reply>, claim: &Claim) -> End {
        // readers get every part before the end, and are told of no reply without them
        let closed = claim.close_partials().await;
        let answered = handled.map(|answer| {
            let reply = answer?;
            closed?;
            Ok::<_, HandlerError>(reply)
        });
        let fault = match answered {
            Ok(Ok(reply)) => return self.with_schemas(done(claim, &reply)).await,
            Ok(Err(HandlerError::Deferred { after, source })) => {
                self.brake.refused(Instant::now(), after);
                return End::Deferred(Deferral::new(after, &source));
            }
            Ok(Err(error)) => Fault::from(error),
            Err(panic) => Fault::panic(panic_text(&*panic)),
        };
        End::Failed(self.retry.judge(&self.bus, self.patience, claim, fault).await)
    }

    /// A result or a follow-up that breaks its schema is the handler's failure, and is not written.
    async fn with_schemas(&self, end: End) -> End {
        let End::Done(mut completion, effects) = end else { return end };
        match schema_check::completion(&self.schemas, &self.route, &mut completion).await {
            Ok(()) => End::Done(completion, effects),
            Err(failure) => End::Failed(failure),
        }
    }
}

/// A message whose attempt has not ended. Should that panic where nothing else catches it, as when what a handler holds is
/// dropped, the message is in hand no more: its lease is not kept, and ends.
struct Unended<'a, H: Handler> {
    attempts: &'a Attempts<H>,
    fence: Fence,
    portion: Arc<Portion>,
    /// Whether its portion waits for it.
    is_awaited: bool,
    has_ended: bool,
}

impl<'a, H: Handler> Unended<'a, H> {
    fn new(attempts: &'a Attempts<H>, taken: &Taken) -> Self {
        let portion = Arc::clone(&taken.portion);
        Self { attempts, fence: taken.claimed.fence(), portion, is_awaited: true, has_ended: false }
    }

    fn end_portion(&mut self) {
        self.is_awaited = false;
        self.portion.end_one();
    }

    fn has_ended(mut self) {
        self.has_ended = true;
    }
}

impl<H: Handler> Drop for Unended<'_, H> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let id = self.fence.id;
        warn!(message.id = %id, "the attempt was broken off, the lease of message {id} is left to its end");
        if self.is_awaited {
            self.portion.end_one();
        }
        self.attempts.forget([&self.fence]);
    }
}

/// As `instrument`, but what the future leaves at its end is dropped outside of the span: to enter that once more costs as
/// much as the first time.
async fn within<F: Future>(span: &Span, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let _entered = span.enter();
        future.as_mut().poll(context)
    })
    .await
}

fn parse<R: DeserializeOwned>(payload: Value) -> Result<(Assignment, R), String> {
    let assignment = Assignment::of(&payload).map_err(|error| format!("__assignment does not parse: {error}"))?;
    if let Some(fault) = assignment.budget.and_then(|budget| budget.fault()) {
        return Err(format!("__assignment does not parse: {fault}"));
    }
    let request = R::deserialize(payload).map_err(|error| format!("payload does not parse: {error}"))?;
    Ok((assignment, request))
}

fn failed_for_good(reason: &str) -> End {
    End::Failed(Failure { reason: reason.to_owned(), retriable: false, retry_after: None })
}

fn done<R: serde::Serialize>(claim: &Claim, reply: &R) -> End {
    // by code of the handler's author as well
    let written = std::panic::catch_unwind(AssertUnwindSafe(|| serde_json::to_value(reply)));
    let written = written.map_err(|panic| panic_text(&*panic).to_owned());
    let result = match written.and_then(|written| written.map_err(|error| error.to_string())) {
        Ok(result) => result,
        Err(error) => {
            let reason = format!("reply does not serialize: {error}");
            return End::Failed(Failure { reason, retriable: false, retry_after: None });
        }
    };
    let (mut completion, effects) = claim.take_outbox();
    let mut snippet = completion.snippet.take().unwrap_or_else(|| result.to_string());
    snippet.retain(|character| character != '\0');
    if let Some((end, _)) = snippet.char_indices().nth(SNIPPET) {
        snippet.truncate(end);
    }
    completion.snippet = Some(snippet);
    completion.result = Some(result);
    End::Done(completion, effects)
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
