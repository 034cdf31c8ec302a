//! Looks at the fleet from outside, several times a second: what runs, what the registry says of it, what is stuck.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cogo_contracts::AgentState;
use cogo_registry_core::{Agent, Registry};
use cogo_supervision::{Event, Handle, Happened};
use serde::Serialize;
use sqlx::PgPool;
use tokio::{
    sync::{
        broadcast::{self, error::TryRecvError},
        watch,
    },
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    fleet::seat_of,
    schedule::Seat,
    truth::{ProcessState, SlotTruth},
    verdict::{Judgement, Said, Truth, Verdict, Verdicts, judge},
};
use crate::proc_files::child_state;

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A database that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(2);
/// Wrong verdicts that are described.
const MOST_DESCRIBED: usize = 20;

/// What one look showed.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) at: Instant,
    /// Why the fleet is not as it should be; empty when it is.
    pub(crate) ailing: Vec<String>,
    /// Whether work is stuck.
    pub(crate) is_stuck: bool,
    /// The living owner of each slot by its process number, and whether it may claim.
    pub(crate) owners: BTreeMap<Seat, (u32, bool)>,
}

/// A verdict that was wrong.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Wrong {
    pub(crate) after_s: f64,
    pub(crate) slot: Seat,
    pub(crate) said: Verdict,
    pub(crate) judgement: Judgement,
    pub(crate) silent_for_s: f64,
}

/// What all looks came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) verdicts: Verdicts,
    pub(crate) wrong: Vec<Wrong>,
    /// Looks at which a slot had two living owners.
    pub(crate) two_owners: u64,
}

/// What the looking task and the others share.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seen: Seen,
    up_since: Option<Instant>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { seen: Seen::default(), up_since: None })))
    }

    /// The database is about to be taken away; an outage that is over before the next look would not be seen.
    pub(crate) fn outage(&self) {
        self.state().up_since = None;
    }

    pub(crate) fn seen(&self) -> Seen {
        self.state().seen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that looks.
pub(crate) struct Watcher {
    pool: PgPool,
    registry: Registry,
    handle: Handle,
    events: broadcast::Receiver<Event>,
    slots: BTreeMap<Seat, SlotTruth>,
    /// The last process of each path in the tree.
    pids: HashMap<String, u32>,
    shared: Shared,
    begun: Instant,
    looks: watch::Sender<Option<Look>>,
}

impl Watcher {
    /// Looks at these slots; `events` began before the first process was started.
    pub(crate) fn new(
        pool: PgPool,
        handle: Handle,
        events: broadcast::Receiver<Event>,
        seats: impl Iterator<Item = Seat>,
        shared: Shared,
    ) -> (Self, watch::Receiver<Option<Look>>) {
        let (looks, receiver) = watch::channel(None);
        let begun = Instant::now();
        let slots = seats.map(|seat| (seat, SlotTruth::new(begun))).collect();
        let registry = Registry::new(pool.clone());
        (Self { pool, registry, handle, events, slots, pids: HashMap::new(), shared, begun, looks }, receiver)
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut turn = interval(LOOK_EVERY);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(turn.tick()).await.is_some() {
            self.hear().await;
            // what is true is read first: a change of it takes the registry longer to notice than the question to come back
            let answers = timeout(PATIENCE, self.ask());
            let now = Instant::now();
            let up_since = self.shared.state().up_since;
            let truths: BTreeMap<Seat, Truth> =
                self.slots.iter_mut().map(|(seat, slot)| (*seat, slot.look(now, up_since, state_of))).collect();
            let Some(answered) = stop.run_until_cancelled(answers).await else { return };
            let look = match answered {
                Ok(Ok((agents, is_stuck))) => self.compare(now, &truths, &agents, is_stuck),
                Ok(Err(_)) | Err(_) => {
                    self.shared.outage();
                    let ailing = vec!["the database does not answer".to_owned()];
                    Look { at: now, ailing, is_stuck: false, owners: BTreeMap::new() }
                }
            };
            // nobody needs to watch
            let _ = self.looks.send(Some(look));
        }
    }

    /// Takes in which processes were started.
    async fn hear(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(Event { path, happened: Happened::Spawned { pid }, .. }) => self.spawned(&path, pid),
                Ok(Event { path, happened: Happened::Stopping, .. }) => {
                    let slot = seat_of(&path).and_then(|seat| self.slots.get_mut(&seat));
                    if let (Some(slot), Some(pid)) = (slot, self.pids.get(&path)) {
                        slot.told_to_end(*pid);
                    }
                }
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => {
                    let tree = self.handle.tree().await;
                    for (path, pid) in tree.flatten().iter().filter_map(|node| Some((&node.path, node.pid?))) {
                        self.spawned(path, pid);
                    }
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn spawned(&mut self, path: &str, pid: u32) {
        if let Some(slot) = seat_of(path).and_then(|seat| self.slots.get_mut(&seat)) {
            slot.spawned(pid);
            self.pids.insert(path.to_owned(), pid);
        }
    }

    /// The living agents, and whether work is stuck.
    fn ask(&self) -> impl Future<Output = Result<(Vec<Agent>, bool), String>> + use<> {
        let (registry, pool) = (self.registry.clone(), self.pool.clone());
        async move {
            let agents = registry.list().await.map_err(|error| error.to_string())?;
            Ok((agents, is_stuck(&pool).await.map_err(|error| error.to_string())?))
        }
    }

    fn compare(&mut self, now: Instant, truths: &BTreeMap<Seat, Truth>, agents: &[Agent], is_stuck: bool) -> Look {
        let mut ailing = Vec::new();
        if is_stuck {
            ailing.push("work is stuck".to_owned());
        }
        let mut owners = BTreeMap::new();
        let mut state = self.shared.state();
        if state.up_since.is_none() {
            state.up_since = Some(now);
        }
        for (seat, slot) in &self.slots {
            let Some(truth) = truths.get(seat) else { continue };
            let is_here =
                |agent: &&Agent| agent.id.name == seat.process && i64::from(agent.id.slot) == i64::from(seat.slot);
            let living: Vec<&Agent> = agents.iter().filter(is_here).collect();
            state.seen.two_owners += u64::from(living.len() > 1);
            let owner = living.first();
            let runner = slot.runner();
            let said = Said {
                verdict: owner.map_or(Verdict::Dead, |agent| match agent.state {
                    AgentState::Suspect => Verdict::Suspect,
                    AgentState::Terminated => Verdict::Dead,
                    AgentState::Registered | AgentState::Active | AgentState::Suspended | AgentState::Draining => {
                        Verdict::Healthy
                    }
                }),
                is_of_the_runner: owner.map(|agent| agent.location.pid) == runner,
            };
            let judgement = judge(said, *truth);
            state.seen.verdicts.add(judgement);
            if judgement != Judgement::Right && state.seen.wrong.len() < MOST_DESCRIBED {
                let after_s = now.saturating_duration_since(self.begun).as_secs_f64();
                let silent_for_s = truth.silent_for.as_secs_f64();
                state.seen.wrong.push(Wrong { after_s, slot: *seat, said: said.verdict, judgement, silent_for_s });
            }
            let is_active = owner.is_some_and(|agent| agent.state == AgentState::Active);
            if let Some(agent) = owner {
                owners.insert(*seat, (agent.location.pid, is_active));
            }
            match runner {
                None => ailing.push(format!("{seat} does not run")),
                Some(_) if !is_active => ailing.push(format!("{seat} is not active")),
                Some(_) if !said.is_of_the_runner => ailing.push(format!("{seat} is owned by another process")),
                Some(_) => {}
            }
        }
        drop(state);
        Look { at: now, ailing, is_stuck, owners }
    }
}

fn state_of(pid: u32) -> ProcessState {
    match child_state(pid) {
        None | Some('Z' | 'X') => ProcessState::Gone,
        Some('T' | 't') => ProcessState::Stopped,
        Some(_) => ProcessState::Running,
    }
}

/// Whether a message is held for longer than any work here takes, or could be claimed for as long and is not.
async fn is_stuck(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (
           select from public.agent_messages m
            where m.done_at is null
              and case when m.status = 'claimed' then m.claimed_at else coalesce(m.retry_at, m.created_at) end
                  < clock_timestamp() - interval '5 s')",
    )
    .fetch_one(pool)
    .await
}
