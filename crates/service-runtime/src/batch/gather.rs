//! Gathers the messages of a route into batches and runs them.

use std::{
    any::Any,
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cogo_contracts::Route;
use futures_util::{FutureExt, future::join_all};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{Instrument, Span, debug, info_span};

use super::{BatchAttempt, BatchHandler, BatchItem, Batching};
use crate::{Claim, Handler, HandlerError, RetryPolicy, UNANSWERED, attempt::panic_text, retry::Fault};

/// A batch handler as a handler of single messages: each waits until its batch has given it an outcome.
pub(crate) struct Batched<B: BatchHandler> {
    handler: Arc<B>,
    /// As the handler said at the start.
    pub(crate) batching: Batching,
    hard_stop: CancellationToken,
    entrance: mpsc::UnboundedSender<Entrant<B>>,
}

/// A message on its way into a batch.
struct Entrant<B: BatchHandler> {
    item: BatchItem<B::Request, B::Reply>,
    place: Place,
    tenant: String,
    span: Span,
}

/// What the batch knows of a message that is in the handler's hands.
struct Place {
    /// Fires when nobody waits for its outcome any more.
    left: CancellationToken,
    /// Whether it had one by then.
    answered: Arc<AtomicBool>,
    /// What becomes of it if the handler says nothing.
    verdict: oneshot::Sender<HandlerError>,
}

/// Messages that wait for more.
struct Forming<B: BatchHandler> {
    entrants: Vec<Entrant<B>>,
    until: Instant,
}

impl<B: BatchHandler> Batched<B> {
    /// Starts gathering; it ends by itself once this handle is gone and every batch has ended.
    pub(crate) fn start(handler: B, hard_stop: CancellationToken, tracker: &TaskTracker) -> Self {
        let (entrance, incoming) = mpsc::unbounded_channel();
        // once and here, where a panic is the caller's: whoever gathers must not end by it
        let batching = handler.batching();
        let handler = Arc::new(handler);
        let gathering =
            Batches { handler: Arc::clone(&handler), batching, hard_stop: hard_stop.clone(), tracker: tracker.clone() };
        tracker.spawn(gathering.gather(incoming));
        Self { handler, batching, hard_stop, entrance }
    }
}

impl<B: BatchHandler> Handler for Batched<B> {
    const ROUTE: Route = B::ROUTE;
    type Request = B::Request;
    type Reply = B::Reply;

    fn retry_policy(&self) -> RetryPolicy {
        self.handler.retry_policy()
    }

    async fn handle(&self, request: B::Request, claim: &Claim) -> Result<B::Reply, HandlerError> {
        let (ended, outcome) = oneshot::channel();
        let (verdict, default) = oneshot::channel();
        let left = CancellationToken::new();
        let answered = Arc::new(AtomicBool::new(false));
        let leaving: DropGuard = left.clone().drop_guard();
        let attempt = BatchAttempt { claim: claim.share(), ended };
        let place = Place { left, answered: Arc::clone(&answered), verdict };
        let tenant = claim.tenant().to_owned();
        let entrant = Entrant { item: BatchItem { request, attempt }, place, tenant, span: Span::current() };
        // there is always somebody who gathers; should he be gone, both answers are as well
        let _ = self.entrance.send(entrant);
        let outcome = match outcome.await {
            Ok(outcome) => outcome,
            Err(_dropped) => match default.await {
                Ok(verdict) => Err(verdict),
                // by the hard stop or for its lateness: it has no outcome, and what ends the attempt is about to drop this
                Err(_gone) if self.hard_stop.is_cancelled() || claim.is_late() => std::future::pending().await,
                Err(_gone) => Err(HandlerError::retry(anyhow::anyhow!("the batch was dropped"))),
            },
        };
        answered.store(true, Ordering::Release);
        drop(leaving);
        outcome
    }
}

struct Batches<B> {
    handler: Arc<B>,
    batching: Batching,
    hard_stop: CancellationToken,
    tracker: TaskTracker,
}

impl<B: BatchHandler> Batches<B> {
    async fn gather(self, mut incoming: mpsc::UnboundedReceiver<Entrant<B>>) {
        let mut forming: HashMap<String, Forming<B>> = HashMap::new();
        loop {
            let next = forming.values().map(|batch| batch.until).min();
            let due = async {
                match next {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                entrant = incoming.recv() => match entrant {
                    Some(entrant) => self.take_in(&mut forming, entrant),
                    None => break,
                },
                () = due => {}
            }
            let now = Instant::now();
            for (_, batch) in forming.extract_if(|_, batch| batch.until <= now) {
                self.start(batch);
            }
        }
        for batch in forming.into_values() {
            self.start(batch);
        }
    }

    fn take_in(&self, forming: &mut HashMap<String, Forming<B>>, entrant: Entrant<B>) {
        let batching = self.batching;
        let key = if batching.by_tenant { entrant.tenant.clone() } else { String::new() };
        let until = Instant::now() + batching.linger;
        let batch = forming.entry(key.clone()).or_insert_with(|| Forming { entrants: Vec::new(), until });
        batch.entrants.push(entrant);
        if batch.entrants.len() >= usize::from(batching.most)
            && let Some(batch) = forming.remove(&key)
        {
            self.start(batch);
        }
    }

    fn start(&self, batch: Forming<B>) {
        self.tracker.spawn(run(Arc::clone(&self.handler), self.hard_stop.clone(), batch.entrants));
    }
}

async fn run<B: BatchHandler>(handler: Arc<B>, hard_stop: CancellationToken, mut batch: Vec<Entrant<B>>) {
    // here and not before: its turn may come late
    batch.retain(|entrant| entrant.item.attempt.is_wanted() && !entrant.item.attempt.claim().is_late());
    if batch.is_empty() {
        return;
    }
    let route = B::ROUTE;
    let name = format!("process batch {}.{}", route.service(), route.role());
    let span = info_span!("process batch", otel.name = name, otel.kind = "consumer", messages = batch.len());
    let mut items = Vec::with_capacity(batch.len());
    let mut places = Vec::with_capacity(batch.len());
    for Entrant { item, place, span: of_message, .. } in batch {
        span.follows_from(of_message.id());
        items.push(item);
        places.push(place);
    }
    let abandoned = async {
        join_all(places.iter().map(|place| place.left.cancelled())).await;
        if places.iter().all(|place| place.answered.load(Ordering::Acquire)) {
            // every message has its outcome; what the handler still does is its own affair
            std::future::pending::<()>().await;
        }
    };
    // the call itself may panic as well
    let handle = async { handler.handle(items).await };
    let handled = async {
        tokio::select! {
            biased;
            () = hard_stop.cancelled() => None,
            () = abandoned => None,
            handled = AssertUnwindSafe(handle).catch_unwind() => Some(handled),
        }
    };
    match handled.instrument(span).await {
        Some(handled) => deliver(places, &fault_of(handled)),
        None => debug!(%route, "batch dropped"),
    }
}

/// What those get that have no outcome of their own.
fn fault_of(handled: Result<Result<(), HandlerError>, Box<dyn Any + Send>>) -> Fault {
    match handled {
        Ok(Ok(())) => {
            let text = anyhow::anyhow!("the batch handler gave this message no outcome");
            Fault::from(HandlerError::of_kind(UNANSWERED, text))
        }
        Ok(Err(error)) => Fault::from(error),
        Err(panic) => Fault::panic(panic_text(&*panic)),
    }
}

fn deliver(places: Vec<Place>, fault: &Fault) {
    for place in places {
        // who has an outcome does not listen
        let _ = place.verdict.send(HandlerError::from(fault.clone()));
    }
}
