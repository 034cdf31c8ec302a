//! The work of a child: its connection carries none, so it claims the messages of its route from the bus by itself, under
//! the name that its parent got for it. While the registry has it suspended or draining, the database refuses its claims.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Error as BusError, Wake, WakeUps};
use cogo_contracts::Route;
use serde_json::Value;
use tokio::{
    sync::{broadcast, watch},
    task::{self, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    attempt::{Attempt, Pace},
    client::ChildHandle,
    client::Seated,
    protocol::Order,
};
use crate::{
    HandlerError, deadline,
    patience::{in_time, silent},
};

/// Unless a test says otherwise.
const PACE: Pace = Pace { lease: Duration::from_secs(30), patience: Duration::from_secs(10) };
/// Longest wait between two looks at the queue: the price of a hint that was lost.
const POLL: Duration = Duration::from_secs(15);
/// First wait after it had something to do or was let work; it grows up to the poll. Hints of a busy route are thinned
/// out, and this finds what came with one that was left out.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOKS_GROW: u32 = 4;
/// Pause after the database did not answer.
const DATABASE_AWAY: Duration = Duration::from_secs(1);
/// How long an answer of the database is waited for once it is to stop: what a claim hands out can then still be worked on,
/// but a database that says nothing holds up no end.
const LAST_ANSWER: Duration = Duration::from_secs(1);

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
    pub(crate) pace: Pace,
    /// Whether the last claim has an unknown outcome: what it took would wait for the end of its lease.
    unsure: bool,
}

/// What a look at the queue brought.
struct Found {
    claimed: Vec<Claimed>,
    /// Since when lease and time to live are counted: when it was asked for.
    asked: Instant,
    /// With nothing claimed, when something is due.
    due: Option<Duration>,
}

/// What is worked on.
#[derive(Default)]
struct Jobs {
    tasks: JoinSet<()>,
    /// The message of each task. It may be lost and claimed again before its first task has ended.
    messages: HashMap<task::Id, Uuid>,
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
            pace: PACE,
            unsure: false,
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
        let mut jobs = Jobs::default();
        let mut held_by: Option<String> = None;
        let mut look = FIRST_LOOK;
        loop {
            self.in_flight.store(u32::try_from(jobs.tasks.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
            let mut pause = POLL;
            match self.turn(jobs.tasks.len(), &stop) {
                Turn::End => {
                    if let Some(holder) = held_by {
                        self.leave_nothing(&holder).await;
                    }
                    self.finished.cancel();
                    return;
                }
                Turn::Wait => look = FIRST_LOOK,
                Turn::Claim { holder } => {
                    if held_by.replace(holder.clone()).is_some_and(|before| before != holder) {
                        // the claims of the run before are lost
                        jobs.drop_all().await;
                    }
                    match self.look(&holder, &jobs, &stop).await {
                        Ok(Found { claimed, asked, due }) => {
                            let found_some = !claimed.is_empty();
                            pause = due.map_or(look, |due| due.max(FIRST_LOOK).min(look));
                            look = if found_some { FIRST_LOOK } else { (look * LOOKS_GROW).min(POLL) };
                            for message in claimed {
                                let (bus, fence, holder) = (self.bus.clone(), message.fence(), holder.clone());
                                let (until, deadline) = (asked + self.pace.lease, deadline::of(&message, asked));
                                let attempt = Attempt { bus, fence, holder, pace: self.pace, until, deadline };
                                jobs.start(message.id, attempt.run(message, Arc::clone(&work)));
                            }
                            if found_some {
                                continue;
                            }
                        }
                        Err(error) => {
                            let error = format!("{:#}", anyhow::Error::from(error));
                            warn!(error, route = %self.route, "could not claim");
                            pause = DATABASE_AWAY;
                        }
                    }
                }
            }
            tokio::select! {
                Some(()) = jobs.ended() => {}
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

    fn turn(&mut self, busy: usize, stop: &CancellationToken) -> Turn {
        let order = *self.orders.borrow_and_update();
        let holder = self.seated.borrow_and_update().as_ref().map(|seated| seated.holder.clone());
        match (order, holder) {
            _ if stop.is_cancelled() || order == Order::Leave => {
                if busy == 0 {
                    Turn::End
                } else {
                    Turn::Wait
                }
            }
            (Order::Work, Some(holder)) if busy < usize::from(self.at_once) => Turn::Claim { holder },
            _ => Turn::Wait,
        }
    }

    /// Claims, but waits only so long for a database that says nothing, and less once it is to stop.
    async fn look(&mut self, holder: &str, jobs: &Jobs, stop: &CancellationToken) -> Result<Found, BusError> {
        let given_up = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        tokio::select! {
            biased;
            found = self.claim(holder, jobs) => found,
            () = given_up => Err(silent()),
        }
    }

    /// Takes what fits into the free hands; with nothing to take, answers when something is due.
    async fn claim(&mut self, holder: &str, jobs: &Jobs) -> Result<Found, BusError> {
        let patience = self.pace.patience;
        self.hand_back_unseen(holder, jobs).await?;
        let free = usize::from(self.at_once).saturating_sub(jobs.tasks.len());
        let request = ClaimRequest {
            route: &self.route,
            holder,
            instance: Some(&self.instance),
            max_messages: u16::try_from(free).unwrap_or(u16::MAX),
            lease: self.pace.lease,
        };
        let asked = Instant::now();
        // also when this future is dropped on the way
        self.unsure = true;
        let claimed = in_time(patience, self.bus.claim(&request)).await;
        self.unsure = !matches!(claimed, Ok(_) | Err(BusError::Conflict { .. }));
        let claimed = claimed?;
        let asked = claimed.first().map_or(asked, |first| first.asked_at);
        let due = if claimed.is_empty() {
            in_time(patience, self.bus.next_due_for(&self.route, Some(&self.instance))).await?
        } else {
            None
        };
        Ok(Found { claimed, asked, due })
    }

    /// Hands back what an earlier claim took without our hearing of it.
    async fn hand_back_unseen(&mut self, holder: &str, jobs: &Jobs) -> Result<(), BusError> {
        if !self.unsure {
            return Ok(());
        }
        // what is in hand is known exactly here: only this loop claims for the route
        let held: Vec<Uuid> = jobs.messages.values().copied().collect();
        let handed_back = self.bus.hand_back_unheld(&self.route, holder, &held);
        let count = in_time(self.pace.patience, handed_back).await?;
        self.unsure = false;
        if count > 0 {
            info!(route = %self.route, count, "handed back what a claim took whose answer was lost");
        }
        Ok(())
    }

    /// With nothing in hand any more, leaves nothing claimed either.
    async fn leave_nothing(&mut self, holder: &str) {
        let jobs = Jobs::default();
        let handed_back = in_time(LAST_ANSWER, self.hand_back_unseen(holder, &jobs)).await;
        if let Err(error) = handed_back {
            let error = format!("{:#}", anyhow::Error::from(error));
            warn!(error, route = %self.route, "what a claim took whose answer was lost waits for the end of its lease");
        }
    }
}

impl Jobs {
    fn start(&mut self, message: Uuid, job: impl Future<Output = ()> + Send + 'static) {
        let started = self.tasks.spawn(job);
        self.messages.insert(started.id(), message);
    }

    /// Waits for the end of one; none if there is none.
    async fn ended(&mut self) -> Option<()> {
        let ended = match self.tasks.join_next_with_id().await? {
            Ok((ended, ())) => ended,
            Err(error) => {
                debug!(%error, "an attempt was dropped");
                error.id()
            }
        };
        self.messages.remove(&ended);
        Some(())
    }

    async fn drop_all(&mut self) {
        self.tasks.shutdown().await;
        self.messages.clear();
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
