//! One attempt at one message, from the parsed request to the recorded end.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use cogo_bus_core::{Bus, Claimed, Completion, Error as BusError, Failure, Settled};
use cogo_contracts::{Assignment, Route};
use cogo_registry_core::SchemaRegistry;
use cogo_telemetry::{BusMetrics, Outcome};
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info, info_span, warn};

use crate::{
    Claim, Handler, RetryPolicy,
    handler::{Effect, Streaming},
    leases::Leases,
    passing::{in_time, is_passing, silent},
    retry::Fault,
    schema_check,
    settle::Settler,
};

/// First and longest pause before the end of an attempt is written again.
const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How often an end that the database refuses for a reason of its own is written before the attempt counts as failed.
const REFUSALS: u8 = 3;
/// How long the end of an attempt may still be written after the hard stop.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// A completion waits for the batch before its own, and effects are statements of their own.
const WRITES_IN_A_ROW: u32 = 3;
const WRITES_WITH_EFFECTS: u32 = 10;
/// Characters of a result that lists show.
const SNIPPET: usize = 400;

/// What every attempt of a worker shares.
pub(crate) struct Attempts<H> {
    pub(crate) handler: H,
    pub(crate) route: Route,
    pub(crate) bus: Bus,
    /// What requests and replies are held against, where their routes have a schema.
    pub(crate) schemas: SchemaRegistry,
    pub(crate) settler: Settler,
    pub(crate) metrics: BusMetrics,
    pub(crate) leases: Leases,
    /// What errors lead to.
    pub(crate) retry: RetryPolicy,
    pub(crate) lease: Duration,
    /// Longest wait for one answer of the database.
    pub(crate) patience: Duration,
    pub(crate) hard_stop: CancellationToken,
    /// Where the streams of partial results run.
    pub(crate) tracker: TaskTracker,
}

/// How an attempt ended.
enum End {
    Done(Completion, Vec<Effect>),
    Failed(Failure),
    /// Shutdown: hand it back unworked.
    Released,
    /// Not ours any more: write nothing.
    Lost,
}

impl<H: Handler> Attempts<H> {
    /// Counts a claimed message as in hand; its token fires when it no longer is.
    pub(crate) fn take_in_hand(&self, claimed: &Claimed, holder: &str) -> CancellationToken {
        let token = self.hard_stop.child_token();
        self.leases.add(claimed.fence(), holder, token.clone(), self.lease);
        token
    }

    /// Works on a claimed message and records how it ended.
    pub(crate) async fn run(self: Arc<Self>, claimed: Claimed, holder: String, token: CancellationToken) {
        let span = info_span!(
            "process",
            otel.name = format!("process {}.{}", H::ROUTE.service(), H::ROUTE.role()),
            otel.kind = "consumer",
            message.id = %claimed.id,
            task.id = %claimed.root_id,
            tenant = claimed.tenant,
            attempt = claimed.attempt,
        );
        cogo_telemetry::link_or_parent(&span, &claimed.headers);
        self.metrics.waited(&self.route, Duration::from_millis(claimed.waited_ms.max(0).unsigned_abs()));
        let started = Instant::now();
        async {
            let (claim, end) = self.attempt(claimed, holder, token).await;
            let outcome = self.record(&claim, end).await;
            self.metrics.processed(&self.route, outcome, started.elapsed());
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, claimed: Claimed, holder: String, token: CancellationToken) -> (Claim, End) {
        let rejected = |reason| Failure { reason, retriable: false, retry_after: None };
        let fits = schema_check::request(&self.schemas, &self.route, &claimed).await;
        let parsed = fits.and_then(|()| parse::<H::Request>(&claimed).map_err(rejected));
        let (assignment, request) = match parsed {
            Ok((assignment, request)) => (assignment, Ok(request)),
            Err(failure) => (Assignment::default(), Err(failure)),
        };
        let streaming = Streaming { bus: self.bus.clone(), lease: self.lease, tracker: self.tracker.clone() };
        let claim = Claim::new(claimed, assignment, holder, token, streaming);
        let end = match request {
            Err(failure) => End::Failed(failure),
            Ok(request) => self.work(request, &claim).await,
        };
        (claim, end)
    }

    async fn work(&self, request: H::Request, claim: &Claim) -> End {
        let handled = async {
            let handled = AssertUnwindSafe(self.handler.handle(request, claim)).catch_unwind().await;
            // readers get every part before the end
            claim.close_partials().await;
            let fault = match handled {
                Ok(Ok(reply)) => return self.with_schemas(done(claim, &reply)).await,
                Ok(Err(error)) => Fault::from(error),
                Err(panic) => Fault::panic(panic_text(&*panic)),
            };
            End::Failed(self.retry.judge(&self.bus, self.patience, claim, fault).await)
        };
        let ttl = async {
            match claim.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.hard_stop.cancelled() => End::Released,
            () = claim.token().cancelled() => End::Lost,
            () = ttl => {
                claim.token().cancel();
                let reason = "time to live passed while it was worked on".to_owned();
                End::Failed(Failure { reason, retriable: false, retry_after: None })
            }
            end = handled => end,
        }
    }

    /// A result or a follow-up that breaks its schema is the handler's failure, and is not written.
    async fn with_schemas(&self, end: End) -> End {
        let End::Done(mut completion, effects) = end else { return end };
        match schema_check::completion(&self.schemas, &self.route, &mut completion).await {
            Ok(()) => End::Done(completion, effects),
            Err(failure) => End::Failed(failure),
        }
    }

    /// Writes the end, again and again while the database is away and the message may still be ours.
    async fn record(&self, claim: &Claim, end: End) -> Outcome {
        let id = claim.id();
        let mut pause = WRITE_AGAIN.0;
        let mut refusals = 0;
        let mut end = end;
        let outcome = loop {
            let (reason, retriable) = match self.write_in_time(claim, &end).await {
                Ok(outcome) => break outcome,
                Err(BusError::Database(error)) => {
                    refusals += u8::from(!is_passing(&error));
                    warn!(%error, "end of the attempt not written yet");
                    if refusals < REFUSALS {
                        if !self.still_ours_after(pause, claim).await {
                            warn!("end of the attempt not written, and not ours to write any more");
                            break Outcome::LeaseLost;
                        }
                        pause = (pause * 2).min(WRITE_AGAIN.1);
                        continue;
                    }
                    (format!("the database refuses the completion: {error}"), true)
                }
                // the result itself is against the contract: that is the handler's failure, and final
                Err(refused) => (format!("{refused:#}"), false),
            };
            warn!(error = reason, "completion refused");
            if matches!(end, End::Failed(_)) {
                break Outcome::LeaseLost;
            }
            refusals = 0;
            end = End::Failed(Failure { reason, retriable, retry_after: None });
        };
        self.leases.remove(id);
        match &end {
            End::Failed(failure) => warn!(outcome = outcome.as_str(), error = failure.reason, "message {id} failed"),
            // the row tells it too: a line for each would cost as much as a small handler
            End::Done(..) => debug!(outcome = outcome.as_str(), "message {id} handled"),
            End::Released | End::Lost => info!(outcome = outcome.as_str(), "message {id} dropped"),
        }
        outcome
    }

    /// Waits; false when the lease, the time to live, the claim or the process ended meanwhile.
    async fn still_ours_after(&self, pause: Duration, claim: &Claim) -> bool {
        let until = Instant::now() + pause;
        let Some(owned) = self.leases.owned_until(claim.id()) else { return false };
        let last = claim.deadline().map_or(owned, |deadline| deadline.min(owned));
        tokio::select! {
            biased;
            () = self.hard_stop.cancelled() => false,
            () = claim.token().cancelled() => false,
            () = tokio::time::sleep_until(until.min(last)) => until < last,
        }
    }

    /// A write that neither a silent database nor the end of the process can hold up.
    async fn write_in_time(&self, claim: &Claim, end: &End) -> Result<Outcome, BusError> {
        let writes = match end {
            End::Done(_, effects) if !effects.is_empty() => WRITES_WITH_EFFECTS,
            _ => WRITES_IN_A_ROW,
        };
        let last_chance = async {
            self.hard_stop.cancelled().await;
            tokio::time::sleep(LAST_WRITE).await;
        };
        tokio::select! {
            written = in_time(self.patience * writes, self.write(claim, end)) => written,
            () = last_chance => Err(silent()),
        }
    }

    async fn write(&self, claim: &Claim, end: &End) -> Result<Outcome, BusError> {
        let fence = claim.claimed().fence();
        let holder = claim.holder();
        let started = Instant::now();
        let outcome = match end {
            End::Done(completion, effects) if effects.is_empty() => {
                self.settler.complete(&fence, holder, completion).await?.then_some(Outcome::Done)
            }
            End::Done(completion, effects) => {
                let mut transaction = self.bus.pool().begin().await?;
                let ours = Bus::complete_in(&mut transaction, &fence, holder, completion).await?;
                if ours {
                    for effect in effects {
                        effect(&mut transaction).await?;
                    }
                    transaction.commit().await?;
                }
                ours.then_some(Outcome::Done)
            }
            End::Failed(failure) => self.bus.fail(&fence, holder, failure).await?.map(|settled| match settled {
                Settled::Again => Outcome::Retry,
                Settled::DeadLetter => Outcome::DeadLetter,
            }),
            End::Released => (self.bus.release(&[fence], holder).await? == 1).then_some(Outcome::Released),
            End::Lost => None,
        };
        self.metrics.settled(&self.route, started.elapsed());
        Ok(outcome.unwrap_or(Outcome::LeaseLost))
    }
}

fn parse<R: DeserializeOwned>(claimed: &Claimed) -> Result<(Assignment, R), String> {
    let assignment =
        Assignment::of(&claimed.payload).map_err(|error| format!("__assignment does not parse: {error}"))?;
    if let Some(fault) = assignment.budget.and_then(|budget| budget.fault()) {
        return Err(format!("__assignment does not parse: {fault}"));
    }
    let request = R::deserialize(&claimed.payload).map_err(|error| format!("payload does not parse: {error}"))?;
    Ok((assignment, request))
}

fn done<R: serde::Serialize>(claim: &Claim, reply: &R) -> End {
    let result = match serde_json::to_value(reply) {
        Ok(result) => result,
        Err(error) => {
            let reason = format!("reply does not serialize: {error}");
            return End::Failed(Failure { reason, retriable: false, retry_after: None });
        }
    };
    let (mut completion, effects) = claim.take_outbox();
    let snippet = completion.snippet.take().unwrap_or_else(|| result.to_string());
    completion.snippet = Some(snippet.chars().filter(|&character| character != '\0').take(SNIPPET).collect());
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
