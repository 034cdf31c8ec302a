//! The work of a child: its connection carries none, so it claims the messages of its route from the bus by itself, under
//! the name that its parent got for it. While the registry has it suspended or draining, the database refuses its claims.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, Error as BusError, Failure, Fence, Wake, WakeUps};
use cogo_contracts::Route;
use futures_util::FutureExt;
use serde_json::Value;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{client::ChildHandle, client::Seated, protocol::Order};
use crate::HandlerError;

/// Lease of a claim; renewed three times in its length.
const LEASE: Duration = Duration::from_secs(30);
/// Longest wait between two looks at the queue: the price of a hint that was lost.
const POLL: Duration = Duration::from_secs(15);
/// First wait after it had something to do or was let work; it grows up to the poll. Hints of a busy route are thinned
/// out, and this finds what came with one that was left out.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOKS_GROW: u32 = 4;
/// Pause after the database did not answer.
const DATABASE_AWAY: Duration = Duration::from_secs(1);

/// Claims the messages of a child's route and hands them to its work.
#[derive(Debug)]
pub struct ChildWorker {
    bus: Bus,
    route: Route,
    /// `name/slot`, under which messages for this child alone are found.
    instance: String,
    at_once: u16,
    seated: watch::Receiver<Option<Seated>>,
    orders: watch::Receiver<Order>,
    in_flight: Arc<AtomicU32>,
    finished: CancellationToken,
}

/// Whether the worker may claim now.
enum Turn {
    Claim { holder: String },
    Wait,
    End,
}

impl ChildWorker {
    /// A worker of this route (`route:<route>` must be among the capabilities of the child, so that others find it) for
    /// the child of this handle.
    #[must_use]
    pub fn new(bus: Bus, route: Route, instance: &str, handle: &ChildHandle) -> Self {
        Self {
            bus,
            route,
            instance: instance.to_owned(),
            at_once: 1,
            seated: handle.seated.clone(),
            orders: handle.orders.clone(),
            in_flight: Arc::clone(&handle.in_flight),
            finished: handle.finished.clone(),
        }
    }

    /// How many messages are worked on at once, 1 to 1000; 1 unless said otherwise.
    #[must_use]
    pub fn at_once(mut self, messages: u16) -> Self {
        self.at_once = messages.clamp(1, 1000);
        self
    }

    /// Works until the token is cancelled, the child is told to leave or its connection has ended. What is in hand is
    /// finished first, unless the place in the registry is lost and with it every claim. Says by itself that the child
    /// is finished.
    pub async fn run<W, A>(self, work: W, stop: CancellationToken)
    where
        W: Fn(Claimed) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Value, HandlerError>> + Send + 'static,
    {
        let (wakeups, over) = (WakeUps::default(), CancellationToken::new());
        let hints = wakeups.subscribe();
        let listening = wakeups.run(self.bus.pool().clone(), over.clone());
        let working = async {
            self.work(Arc::new(work), hints, stop).await;
            over.cancel();
        };
        tokio::join!(listening, working);
    }

    async fn work<W, A>(mut self, work: Arc<W>, mut hints: broadcast::Receiver<Wake>, stop: CancellationToken)
    where
        W: Fn(Claimed) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Value, HandlerError>> + Send + 'static,
    {
        let mut jobs = JoinSet::new();
        let mut held_by = None;
        let mut look = FIRST_LOOK;
        loop {
            self.in_flight.store(u32::try_from(jobs.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
            let mut pause = POLL;
            match self.turn(&jobs, &stop) {
                Turn::End => {
                    self.finished.cancel();
                    return;
                }
                Turn::Wait => look = FIRST_LOOK,
                Turn::Claim { holder } => {
                    if held_by.replace(holder.clone()).is_some_and(|before| before != holder) {
                        // the claims of the run before are lost
                        jobs.shutdown().await;
                    }
                    match self.claim(&holder, jobs.len()).await {
                        Ok((claimed, due)) => {
                            let found_some = !claimed.is_empty();
                            pause = due.map_or(look, |due| due.max(FIRST_LOOK).min(look));
                            look = if found_some { FIRST_LOOK } else { (look * LOOKS_GROW).min(POLL) };
                            for message in claimed {
                                jobs.spawn(attempt(self.bus.clone(), message, holder.clone(), Arc::clone(&work)));
                            }
                            if found_some {
                                continue;
                            }
                        }
                        Err(error) => {
                            warn!(%error, route = %self.route, "could not claim");
                            pause = DATABASE_AWAY;
                        }
                    }
                }
            }
            tokio::select! {
                Some(ended) = jobs.join_next() => if let Err(error) = ended {
                    debug!(%error, "an attempt was dropped");
                },
                () = hinted(&mut hints, &self.route) => {}
                changed = self.seated.changed() => if changed.is_err() {
                    // the connection has ended for good, and the registry queues again what is held
                    return;
                },
                Ok(()) = self.orders.changed() => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn turn(&mut self, jobs: &JoinSet<()>, stop: &CancellationToken) -> Turn {
        let order = *self.orders.borrow_and_update();
        let holder = self.seated.borrow_and_update().as_ref().map(|seated| seated.holder.clone());
        match (order, holder) {
            _ if stop.is_cancelled() || order == Order::Leave => {
                if jobs.is_empty() {
                    Turn::End
                } else {
                    Turn::Wait
                }
            }
            (Order::Work, Some(holder)) if jobs.len() < usize::from(self.at_once) => Turn::Claim { holder },
            _ => Turn::Wait,
        }
    }

    /// Takes what fits into the free hands; with nothing to take, answers when something is due.
    async fn claim(&self, holder: &str, busy: usize) -> Result<(Vec<Claimed>, Option<Duration>), BusError> {
        let free = usize::from(self.at_once).saturating_sub(busy);
        let request = ClaimRequest {
            route: &self.route,
            holder,
            instance: Some(&self.instance),
            max_messages: u16::try_from(free).unwrap_or(u16::MAX),
            lease: LEASE,
        };
        let claimed = self.bus.claim(&request).await?;
        let due =
            if claimed.is_empty() { self.bus.next_due_for(&self.route, Some(&self.instance)).await? } else { None };
        Ok((claimed, due))
    }
}

/// Waits for a hint that there may be something to claim.
async fn hinted(hints: &mut broadcast::Receiver<Wake>, route: &Route) {
    loop {
        match hints.recv().await {
            Ok(Wake::Ready(ready)) if ready != route.to_string() => {}
            Ok(Wake::Ready(_) | Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // the subscription ends with the worker
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// One attempt at one message, to its recorded end.
async fn attempt<W, A>(bus: Bus, message: Claimed, holder: String, work: Arc<W>)
where
    W: Fn(Claimed) -> A,
    A: Future<Output = Result<Value, HandlerError>>,
{
    let (fence, id) = (message.fence(), message.id);
    let time_left = message.remaining_ms.map(|left| Duration::from_millis(left.max(0).unsigned_abs()));
    let kept = async {
        loop {
            tokio::time::sleep(LEASE / 3).await;
            match bus.extend(std::slice::from_ref(&fence), &holder, LEASE).await {
                Ok(kept) if kept.is_empty() => return,
                Ok(_) => {}
                Err(error) => warn!(%error, message.id = %id, "could not renew a lease"),
            }
        }
    };
    let expired = async {
        match time_left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(work(message)).catch_unwind() => outcome,
        () = kept => return info!(message.id = %id, "message {id} was lost: it is cancelled, or somebody else's now"),
        () = expired => return info!(message.id = %id, "message {id} was given up: its time to live has passed"),
    };
    let outcome = outcome.unwrap_or_else(|_| Err(HandlerError::retry(anyhow::anyhow!("The work panicked"))));
    let recorded = record(&bus, &fence, &holder, outcome).await;
    match recorded {
        Ok(true) => debug!(message.id = %id, "attempt ended"),
        Ok(false) => info!(message.id = %id, "message {id} was lost before its end was recorded"),
        Err(error) => warn!(%error, message.id = %id, "the end of message {id} was not recorded"),
    }
}

/// Writes how an attempt ended; false if the message was not the child's any more.
async fn record(
    bus: &Bus,
    fence: &Fence,
    holder: &str,
    outcome: Result<Value, HandlerError>,
) -> Result<bool, BusError> {
    let failure = match outcome {
        Ok(result) => {
            let completion = Completion { result: Some(result), ..Completion::default() };
            return bus.complete(fence, holder, &completion).await;
        }
        Err(HandlerError::Deferred { after, source }) => {
            let deferred = bus.defer(std::slice::from_ref(fence), holder, after, &format!("{source:#}")).await?;
            return Ok(deferred > 0);
        }
        Err(HandlerError::Reject { source }) => {
            Failure { reason: format!("{source:#}"), retriable: false, retry_after: None }
        }
        Err(HandlerError::Retry { after, source }) => {
            Failure { reason: format!("{source:#}"), retriable: true, retry_after: after }
        }
        Err(HandlerError::OfKind { kind, after, source }) => {
            Failure { reason: format!("{kind}: {source:#}"), retriable: true, retry_after: after }
        }
    };
    Ok(bus.fail(fence, holder, &failure).await?.is_some())
}
