//! The workers that are connected, and which job runs on which of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use cogo_contracts::{SandboxEvent, SandboxRequest};
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
}

/// All connected workers.
#[derive(Default)]
pub(crate) struct Workers {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    workers: BTreeMap<Uuid, Worker>,
    jobs: HashMap<Uuid, Job>,
}

struct Worker {
    name: String,
    kind: Kind,
    slots: u16,
    busy: u16,
    since: Instant,
    frames: mpsc::UnboundedSender<ToWorker>,
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
}

/// Every suitable worker is gone: nobody is connected.
#[derive(Debug)]
pub(crate) struct NobodyConnected;

impl Workers {
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
        let worker = Worker { name: name.to_owned(), kind, slots, busy: 0, since: Instant::now(), frames };
        self.lock().workers.insert(id, worker);
        info!(worker = name, slots, "sandbox worker {name} joined");
        self.changed.notify_waiters();
        Membership { workers: Arc::clone(self), id }
    }

    /// A slot for a job; waits while all workers are busy.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Lease, NobodyConnected> {
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

    fn try_lease(self: &Arc<Self>) -> Result<Option<Lease>, NobodyConnected> {
        let mut state = self.lock();
        let externals = state.workers.values().any(|worker| worker.kind == Kind::External);
        let kind = if externals { Kind::External } else { Kind::Local };
        let suitable = || state.workers.iter().filter(|(_, worker)| worker.kind == kind);
        if suitable().next().is_none() {
            return Err(NobodyConnected);
        }
        let free = suitable().filter(|(_, worker)| worker.busy < worker.slots);
        let Some(id) = free.min_by_key(|(_, worker)| worker.busy).map(|(id, _)| *id) else { return Ok(None) };
        let Some(worker) = state.workers.get_mut(&id) else { return Ok(None) };
        worker.busy += 1;
        let (frames, worker_name) = (worker.frames.clone(), worker.name.clone());
        let (sender, events) = mpsc::channel(BACKLOG);
        let job = Uuid::now_v7();
        state.jobs.insert(job, Job { worker: id, events: sender });
        Ok(Some(Lease { workers: Arc::clone(self), job, frames, worker_name, events, ended: false }))
    }

    /// Every worker, the longest connected first.
    pub(crate) fn reports(&self) -> Vec<WorkerReport> {
        let report = |worker: &Worker| WorkerReport {
            name: worker.name.clone(),
            kind: worker.kind,
            slots: worker.slots,
            busy: worker.busy,
            connected_s: worker.since.elapsed().as_secs(),
        };
        self.lock().workers.values().map(report).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
