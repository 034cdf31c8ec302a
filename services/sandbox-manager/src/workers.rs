//! The workers that are connected, and which job runs on which of them.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cogo_contracts::{SandboxEvent, SandboxRequest};
use cogo_service_runtime::{Dependencies, Dependency, DependencySettings, Reach};
use cogo_supervision::breaker::{Permit, Phase, Settings as BreakerSettings};
use serde::Serialize;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info};
use uuid::Uuid;

use crate::protocol::ToWorker;

/// Events of one job on their way to whoever collects them.
const BACKLOG: usize = 64;

/// Where a worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// In this process; only used while no other is connected.
    Local,
    /// Behind a connection.
    External,
}

/// A worker as shown to people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkerReport {
    name: String,
    kind: Kind,
    slots: u16,
    busy: u16,
    connected_s: u64,
    /// Not open: it is given jobs.
    circuit: Phase,
}

/// A worker that failed so often in a row rests, first for this long.
const FAILURES: u32 = 3;
const REST: Duration = Duration::from_secs(10);
/// Names of workers that are remembered; beyond that those that left and were well are forgotten.
const MOST_GUARDS: usize = 1_024;

/// All connected workers.
pub(crate) struct Workers {
    state: Mutex<State>,
    changed: Notify,
    dependencies: Dependencies,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<Uuid, Worker>,
    jobs: HashMap<Uuid, Job>,
    /// Guards of all workers that were here, by name: going and coming back is no cure.
    guards: HashMap<String, Dependency>,
}

struct Worker {
    name: String,
    kind: Kind,
    slots: u16,
    busy: u16,
    since: Instant,
    frames: mpsc::UnboundedSender<ToWorker>,
    guard: Dependency,
}

struct Job {
    worker: Uuid,
    events: mpsc::Sender<SandboxEvent>,
}

/// A worker's connection; dropping it ends the worker and the events of all its jobs.
pub(crate) struct Membership {
    workers: Arc<Workers>,
    id: Uuid,
}

/// A slot of a worker and the job in it; dropping it frees the slot and kills the job unless it has ended.
pub(crate) struct Lease {
    workers: Arc<Workers>,
    job: Uuid,
    frames: mpsc::UnboundedSender<ToWorker>,
    pub(crate) worker_name: String,
    pub(crate) events: mpsc::Receiver<SandboxEvent>,
    ended: bool,
    /// Without a verdict on the worker it counts as nothing.
    permit: Option<Permit>,
}

/// What a job showed of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It ran the command, however that ended.
    Well,
    /// It was gone, silent, or could not start anything.
    Failing,
}

/// Why there is no slot to wait for.
#[derive(Debug)]
pub(crate) enum NoSlot {
    /// Every suitable worker is gone: nobody is connected.
    NobodyConnected,
    /// Whoever has a slot failed too often and rests.
    Resting {
        /// Until the first of them may be tried.
        retry_after: Duration,
    },
}

impl Workers {
    /// Nobody is connected.
    pub(crate) fn new(dependencies: Dependencies) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), dependencies }
    }

    /// Takes a worker in.
    pub(crate) fn join(
        self: &Arc<Self>,
        name: &str,
        kind: Kind,
        slots: u16,
        frames: mpsc::UnboundedSender<ToWorker>,
    ) -> Membership {
        let id = Uuid::now_v7();
        let slots = slots.max(1);
        let mut state = self.lock();
        let guard = state.guard_of(name, &self.dependencies);
        let worker = Worker { name: name.to_owned(), kind, slots, busy: 0, since: Instant::now(), frames, guard };
        state.workers.insert(id, worker);
        drop(state);
        info!(worker = name, slots, "sandbox worker {name} joined");
        self.changed.notify_waiters();
        Membership { workers: Arc::clone(self), id }
    }

    /// A slot for a job; waits while all workers are busy.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Lease, NoSlot> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // from here on, so that no slot becomes free unseen between the look and the wait
            changed.as_mut().enable();
            if let Some(lease) = self.try_lease()? {
                return Ok(lease);
            }
            changed.await;
        }
    }

    fn try_lease(self: &Arc<Self>) -> Result<Option<Lease>, NoSlot> {
        let mut state = self.lock();
        let externals = state.workers.values().any(|worker| worker.kind == Kind::External);
        let kind = if externals { Kind::External } else { Kind::Local };
        let suitable = || state.workers.iter().filter(|(_, worker)| worker.kind == kind);
        if suitable().next().is_none() {
            return Err(NoSlot::NobodyConnected);
        }
        let mut free: Vec<(u16, Uuid)> = suitable()
            .filter(|(_, worker)| worker.busy < worker.slots)
            .map(|(id, worker)| (worker.busy, *id))
            .collect();
        free.sort_unstable();
        let mut rest: Option<Duration> = None;
        let mut admitted = None;
        for (_, id) in &free {
            let Some(worker) = state.workers.get(id) else { continue };
            match worker.guard.acquire::<Infallible>() {
                Ok(permit) => {
                    admitted = Some((*id, permit));
                    break;
                }
                Err(refused) => rest = rest.into_iter().chain(refused.retry_after()).min(),
            }
        }
        let Some((id, permit)) = admitted else {
            let is_well = |worker: &Worker| worker.busy >= worker.slots && worker.guard.phase() == Phase::Closed;
            // one that is well and busy is worth waiting for
            let rest = rest.filter(|_| !suitable().any(|(_, worker)| is_well(worker)));
            return rest.map_or(Ok(None), |retry_after| Err(NoSlot::Resting { retry_after }));
        };
        let Some(worker) = state.workers.get_mut(&id) else { return Ok(None) };
        worker.busy += 1;
        let (frames, worker_name) = (worker.frames.clone(), worker.name.clone());
        let (sender, events) = mpsc::channel(BACKLOG);
        let job = Uuid::now_v7();
        state.jobs.insert(job, Job { worker: id, events: sender });
        Ok(Some(Lease {
            workers: Arc::clone(self),
            job,
            frames,
            worker_name,
            events,
            ended: false,
            permit: Some(permit),
        }))
    }

    /// Every worker, the longest connected first.
    pub(crate) fn reports(&self) -> Vec<WorkerReport> {
        let report = |worker: &Worker| WorkerReport {
            name: worker.name.clone(),
            kind: worker.kind,
            slots: worker.slots,
            busy: worker.busy,
            connected_s: worker.since.elapsed().as_secs(),
            circuit: worker.guard.phase(),
        };
        self.lock().workers.values().map(report).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The guard around the jobs of a worker of this name.
    fn guard_of(&mut self, name: &str, dependencies: &Dependencies) -> Dependency {
        if let Some(guard) = self.guards.get(name) {
            return guard.clone();
        }
        if self.guards.len() >= MOST_GUARDS {
            let connected = |name: &String| self.workers.values().any(|worker| worker.name == *name);
            self.guards.retain(|name, guard| connected(name) || guard.phase() != Phase::Closed);
        }
        let breaker = BreakerSettings {
            consecutive_failures: FAILURES,
            open_for: REST,
            // a job takes as long as its command
            slow_call: Duration::MAX,
            half_open_for: Duration::from_secs(900),
            ..BreakerSettings::default()
        };
        let settings = DependencySettings { breaker, ..DependencySettings::default() };
        let guard = dependencies.dependency(&format!("sandbox worker {name}"), Reach::Replica, &settings);
        let guard = guard.expect("the settings are within their ranges");
        self.guards.insert(name.to_owned(), guard.clone());
        guard
    }
}

impl Membership {
    /// Hands an event to whoever collects the job; one of a job that is not this worker's is dropped.
    pub(crate) async fn deliver(&self, job: Uuid, event: SandboxEvent) {
        let events = {
            let state = self.workers.lock();
            state.jobs.get(&job).filter(|found| found.worker == self.id).map(|found| found.events.clone())
        };
        let delivered = match events {
            Some(events) => events.send(event).await.is_ok(),
            None => false,
        };
        if !delivered {
            debug!(%job, "dropped an event of a job that is over or not this worker's");
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.workers.lock();
        let name = state.workers.remove(&self.id).map_or_else(String::new, |worker| worker.name);
        let before = state.jobs.len();
        state.jobs.retain(|_, job| job.worker != self.id);
        let orphaned = before - state.jobs.len();
        drop(state);
        info!(worker = name, jobs = orphaned, "sandbox worker {name} left");
        self.workers.changed.notify_waiters();
    }
}

impl Lease {
    /// Tells the worker to start; a worker that is gone shows as the end of the events.
    pub(crate) fn start(&self, request: SandboxRequest) {
        self.send(ToWorker::Run { job: self.job, request });
    }

    /// Says whether the worker did its part: not whether the command was a good one.
    pub(crate) fn judge(&mut self, verdict: Verdict) {
        let Some(permit) = self.permit.take() else { return };
        match verdict {
            Verdict::Well => permit.success(),
            Verdict::Failing => permit.failure(),
        }
    }

    /// Says that the job has ended by itself.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }

    fn send(&self, frame: ToWorker) {
        if self.frames.send(frame).is_err() {
            debug!(worker = self.worker_name, "frame for a worker that is gone");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.ended {
            self.send(ToWorker::Stop { job: self.job });
        }
        let mut state = self.workers.lock();
        if let Some(job) = state.jobs.remove(&self.job)
            && let Some(worker) = state.workers.get_mut(&job.worker)
        {
            worker.busy = worker.busy.saturating_sub(1);
        }
        drop(state);
        self.workers.changed.notify_waiters();
    }
}
