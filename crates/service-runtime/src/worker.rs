//! The loop of a worker: claim what fits, hand it to attempts, sleep until a hint, the next due message or the poll.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::{Bus, ClaimRequest, Wake, WakeUps};
use cogo_contracts::Route;
use cogo_registry_core::{Member, SchemaRegistry, Standing};
use cogo_telemetry::BusMetrics;
use tokio::sync::{broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    Handler, Stop,
    attempt::Attempts,
    dependency::Brake,
    handler::Streaming,
    hands::Hands,
    leases::Leases,
    live::Throttle,
    patience::in_time,
    pulse::{Pulse, Pulses},
    retry::RetryRule,
    settle::Settler,
};

/// First pause after the database did not answer; it doubles up to the poll.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// First wait of a worker that found nothing after it had something to do; it grows up to the poll. Wake-ups of a busy
/// route are thinned out, and this finds what came with one that was left out.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LOOKS_GROW: u32 = 4;
/// Below this it does not ask when the next delayed message is due.
const SOON: Duration = Duration::from_millis(50);
/// It looks again after this time where something is due that it cannot claim, since somebody has it locked.
const LOCKED: Duration = Duration::from_millis(100);
/// A worker that is full looks at its hands again after this time even if nobody tells it of a free one.
const FULL_RECHECK: Duration = Duration::from_secs(1);
/// How long attempts may take to end once the hard stop has fired; they bound their own last writes below it.
const LAST_ATTEMPTS: Duration = Duration::from_secs(3);
/// How long an answer of the database to a claim is waited for once the hard stop has fired: what it hands out can then
/// still be handed back, but a database that says nothing holds up no end.
const LAST_CLAIM: Duration = Duration::from_secs(1);

/// How a worker claims.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    pub(crate) shard: u16,
    pub(crate) concurrency: u16,
    pub(crate) lease: Duration,
    pub(crate) poll: Duration,
    /// Longest wait for one answer of the database.
    pub(crate) patience: Duration,
    /// What operators say of errors.
    pub(crate) retry_rules: Vec<RetryRule>,
}

/// What a worker shares with its process.
pub(crate) struct Surroundings {
    pub(crate) bus: Bus,
    pub(crate) schemas: SchemaRegistry,
    pub(crate) metrics: BusMetrics,
    pub(crate) wakeups: WakeUps,
    pub(crate) member: Member,
    pub(crate) stop: Stop,
    pub(crate) pulses: Pulses,
    /// Changes how many messages are taken at once.
    pub(crate) throttle: Throttle,
    /// Whether the probes of the process let it take work.
    pub(crate) able: watch::Receiver<bool>,
}

/// A worker of one route.
pub(crate) struct Worker<H> {
    pub(crate) attempts: Arc<Attempts<H>>,
    route: Route,
    pub(crate) pace: Pace,
    wakeups: WakeUps,
    member: Member,
    standing: watch::Receiver<Standing>,
    stop: Stop,
    tracker: TaskTracker,
    /// Also of claims that fail.
    pub(crate) pulse: Arc<Pulse>,
    keepers_pulse: Arc<Pulse>,
    pub(crate) throttle: Throttle,
    able: watch::Receiver<bool>,
    /// Whether the last claim has an unknown outcome: what it took would wait for the end of its lease.
    unsure: AtomicBool,
}

/// Why a turn of the loop found nothing to start.
pub(crate) enum Turn {
    Started,
    Full,
    /// What it claims could not be tried for this long.
    Resting(Duration),
    Empty,
    Unreachable,
}

impl<H: Handler> Worker<H> {
    pub(crate) fn new(handler: H, pace: Pace, surroundings: Surroundings) -> Self {
        let Surroundings { bus, schemas, metrics, wakeups, member, stop, pulses, throttle, able } = surroundings;
        let route = H::ROUTE.on_shard(pace.shard);
        let tracker = TaskTracker::new();
        let declared = handler.retry_policy();
        let strange = declared.strange_kinds(&pace.retry_rules, &route);
        if !strange.is_empty() {
            warn!(%route, kinds = strange.join(", "), "retry_rules name kinds of errors that the policy of the route does not");
        }
        let attempts = Attempts {
            retry: declared.changed_by(&pace.retry_rules, &route),
            settler: Settler::default(),
            hands: Hands::default(),
            streaming: Arc::new(Streaming { bus: bus.clone(), lease: pace.lease, tracker: tracker.clone() }),
            span_name: format!("process {}.{}", route.service(), route.role()),
            handler,
            route: route.clone(),
            bus,
            schemas,
            metrics: metrics.of(&route),
            leases: Leases::default(),
            brake: Brake::default(),
            lease: pace.lease,
            patience: pace.patience,
            hard_stop: stop.hard().clone(),
            tracker: tracker.clone(),
        };
        Self {
            attempts: Arc::new(attempts),
            pulse: pulses.add(format!("worker {route}"), pace.poll + pace.patience),
            keepers_pulse: pulses.add(format!("leases of worker {route}"), pace.lease),
            route,
            pace,
            wakeups,
            standing: member.standing(),
            member,
            stop,
            tracker,
            throttle,
            able,
            unsure: AtomicBool::new(false),
        }
    }

    /// Works until the soft stop, then until nothing is in hand.
    pub(crate) async fn run(mut self) {
        // subscribed before the first look, so that nothing falls between the two
        let mut hints = self.wakeups.subscribe();
        let keeper_stop = CancellationToken::new();
        let settler = self.tracker.spawn(Arc::clone(&self.attempts).settle(keeper_stop.clone()));
        let attempts = Arc::clone(&self.attempts);
        let (lease, stop_keeping) = (self.pace.lease, keeper_stop.clone());
        let pulse = Arc::clone(&self.keepers_pulse);
        let keeper = self.tracker.spawn(async move {
            attempts.leases.keep(&attempts.bus, lease, &pulse, &stop_keeping).await;
        });
        let attempts = Arc::clone(&self.attempts);
        let stop_dropping = keeper_stop.clone();
        self.tracker.spawn(async move {
            let dropped = async {
                attempts.hard_stop.cancelled().await;
                attempts.leases.cancel_unless_held_by(None);
            };
            stop_dropping.run_until_cancelled(dropped).await;
        });
        info!(route = %self.route, concurrency = self.pace.concurrency, "worker started");
        let mut pause = FIRST_PAUSE;
        let mut look = FIRST_LOOK;
        while let Some(holder) = self.active_holder().await {
            self.gather().await;
            let Some(turn) = self.unless_given_up(self.turn(&holder, &mut hints)).await else { break };
            let wait = match &turn {
                Turn::Started => {
                    pause = FIRST_PAUSE;
                    look = FIRST_LOOK;
                    self.gather_a_crowd().await;
                    continue;
                }
                Turn::Full => FULL_RECHECK,
                Turn::Resting(rest) => (*rest).min(self.pace.poll),
                // what is due before the next look is found by it
                Turn::Empty if look < SOON => look,
                Turn::Empty => look.min(self.until_next_due(&holder).await),
                Turn::Unreachable => {
                    pause = (pause * 2).min(self.pace.poll);
                    pause
                }
            };
            let woken = self.sleep(wait, &turn, &mut hints).await;
            look = if woken { FIRST_LOOK } else { (look * LOOKS_GROW).min(self.pace.poll) };
        }
        self.pulse.retire();
        info!(route = %self.route, in_hand = self.attempts.leases.len(), "worker claims nothing new");
        self.finish(&mut hints).await;
        keeper_stop.cancel();
        for ended in [keeper.await, settler.await] {
            if let Err(error) = ended {
                warn!(%error, "lease keeper or settler ended badly");
            }
        }
        info!(route = %self.route, "worker ended");
    }

    /// The name to claim under once the registry counts this process as active; none when it is time to stop.
    async fn active_holder(&mut self) -> Option<String> {
        loop {
            self.pulse.beat();
            if self.stop.soft().is_cancelled() {
                return None;
            }
            let now = self.standing.borrow_and_update().clone();
            // what was claimed before the process lost its place belongs to others now
            self.attempts.leases.cancel_unless_held_by(now.membership().map(|membership| membership.holder.as_str()));
            let able = *self.able.borrow_and_update();
            if let (Some(membership), true) = (now.claiming(), able) {
                return Some(membership.holder.clone());
            }
            self.pulse.works();
            tokio::select! {
                () = self.stop.soft().cancelled() => return None,
                changed = self.standing.changed() => changed.ok()?,
                Ok(()) = self.able.changed() => {}
                () = tokio::time::sleep(FULL_RECHECK) => {}
            }
        }
    }

    pub(crate) async fn turn(&self, holder: &str, hints: &mut broadcast::Receiver<Wake>) -> Turn {
        // a worker with more to do than hands never sleeps, and must hear of what was taken back all the same
        self.heed_waiting(hints);
        let in_hand = u16::try_from(self.attempts.leases.len()).unwrap_or(u16::MAX);
        self.member.vitals().set_in_flight(u32::from(in_hand));
        let brake = &self.attempts.brake;
        if let Some(rest) = brake.rest(tokio::time::Instant::now()) {
            return Turn::Resting(rest);
        }
        let free = self.free();
        if free == 0 {
            return Turn::Full;
        }
        let instance = holder.split_once('#').map(|(instance, _)| instance);
        let request = ClaimRequest { route: &self.route, holder, instance, max_messages: free, lease: self.pace.lease };
        let begun = tokio::time::Instant::now();
        if let Err(error) = self.make_sure(holder).await {
            return self.unreachable(begun, "look for claims whose answer was lost", error);
        }
        let asked = tokio::time::Instant::now();
        // also when this future is dropped on the way
        self.unsure.store(true, Ordering::Relaxed);
        let claimed = in_time(self.pace.patience, self.attempts.bus.claim(&request)).await;
        let is_known = matches!(claimed, Ok(_) | Err(cogo_bus_core::Error::Conflict { .. }));
        self.unsure.store(!is_known, Ordering::Relaxed);
        let count = claimed.as_ref().map_or(0, Vec::len);
        self.attempts.metrics.received(count as u64, asked.elapsed());
        if is_known {
            self.pulse.works();
        }
        let claimed = match claimed {
            Ok(claimed) if claimed.is_empty() => return Turn::Empty,
            Ok(claimed) => claimed,
            Err(cogo_bus_core::Error::Conflict { reason }) => {
                // suspended, draining or gone, and the beat that tells of it is yet to come
                debug!(reason, "the registry does not let this process claim");
                self.member.ask_now();
                return Turn::Unreachable;
            }
            Err(error) => return self.unreachable(begun, "claim next messages", error),
        };
        debug!(route = %self.route, count = claimed.len(), "claimed");
        let asked = claimed.first().map_or(asked, |first| first.asked_at);
        // counted here and not in the tasks, so that the next turn sees them
        self.attempts.start(self.attempts.take_in_hand(claimed, &holder.into(), asked));
        Turn::Started
    }

    /// Hands back what an earlier claim took without our hearing of it.
    async fn make_sure(&self, holder: &str) -> Result<(), cogo_bus_core::Error> {
        if !self.unsure.load(Ordering::Relaxed) {
            return Ok(());
        }
        // what is in hand is known exactly here: only this loop claims for the route
        let held = self.attempts.leases.ids();
        let handed_back = self.attempts.bus.hand_back_unheld(&self.route, holder, &held);
        let count = in_time(self.pace.patience, handed_back).await?;
        if count > 0 {
            info!(route = %self.route, count, "handed back what a claim took whose answer was lost");
        }
        Ok(())
    }

    /// Whether the database is about to be asked if a message is still in hand.
    #[cfg(test)]
    pub(crate) fn is_in_doubt(&self, id: uuid::Uuid) -> bool {
        self.attempts.leases.is_doubted(id)
    }

    async fn until_next_due(&self, holder: &str) -> Duration {
        let instance = holder.split_once('#').map(|(instance, _)| instance);
        let asked = in_time(self.pace.patience, self.attempts.bus.next_due_for(&self.route, instance));
        match self.unless_given_up(asked).await {
            // due, and not to be had: somebody has it locked
            Some(Ok(Some(Duration::ZERO))) => LOCKED.min(self.pace.poll),
            Some(Ok(Some(due))) => due.max(Duration::from_millis(5)).min(self.pace.poll),
            Some(Ok(None) | Err(_)) | None => self.pace.poll,
        }
    }

    /// What the database answers; none if it says nothing and the process has to end.
    async fn unless_given_up<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let given_up = async {
            self.stop.hard().cancelled().await;
            tokio::time::sleep(LAST_CLAIM).await;
        };
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            () = given_up => None,
        }
    }

    /// Sleeps until there is a reason to look again; answers whether it was another one than the time.
    async fn sleep(&self, wait: Duration, turn: &Turn, hints: &mut broadcast::Receiver<Wake>) -> bool {
        let until = tokio::time::Instant::now() + wait;
        let mut standing = self.standing.clone();
        loop {
            tokio::select! {
                () = self.stop.soft().cancelled() => return true,
                () = tokio::time::sleep_until(until) => return false,
                () = self.hands_change(turn) => return true,
                _ = standing.changed() => return true,
                hint = hints.recv() => if self.heed(hint) { return true },
            }
        }
    }

    /// Heeds the hints that have come in; that there is something to claim is no news to a worker about to claim.
    fn heed_waiting(&self, hints: &mut broadcast::Receiver<Wake>) {
        use broadcast::error::TryRecvError;
        loop {
            match hints.try_recv() {
                Ok(hint) => {
                    self.heed(Ok(hint));
                }
                // what was missed shows when the leases are extended
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Whether a hint is a reason to claim.
    fn heed(&self, hint: Result<Wake, broadcast::error::RecvError>) -> bool {
        match hint {
            Ok(Wake::Ready(route)) => route == self.route.to_string(),
            Ok(Wake::Cancelled(id)) => {
                self.attempts.leases.doubt(id);
                false
            }
            Ok(Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => true,
            Ok(Wake::Task(_) | Wake::Broadcast(_) | Wake::Registry(_)) | Err(broadcast::error::RecvError::Closed) => {
                false
            }
        }
    }

    /// Waits for what is in hand; attempts end by themselves or at the hard stop.
    async fn finish(&self, hints: &mut broadcast::Receiver<Wake>) {
        let given_up = async {
            self.stop.hard().cancelled().await;
            tokio::time::sleep(LAST_ATTEMPTS).await;
        };
        tokio::pin!(given_up);
        while self.attempts.leases.len() > 0 {
            tokio::select! {
                () = &mut given_up => {
                    let left = self.attempts.leases.len();
                    warn!(route = %self.route, left, "ends of attempts are not written, their leases will lapse");
                    return;
                }
                () = self.attempts.hands.told() => {}
                hint = hints.recv() => { self.heed(hint); }
                () = tokio::time::sleep(FULL_RECHECK) => {}
            }
        }
    }
}
