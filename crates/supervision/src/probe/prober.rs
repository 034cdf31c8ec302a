//! Asks probes on an operating system thread of its own.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{AbortHandle, Abortable},
    stream::FuturesUnordered,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;

use super::{Core, Health, Invalid, RunId, Spec};

type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A probe and how it is answered.
pub struct Probe {
    spec: Spec,
    ask: Box<dyn Fn() -> Answer + Send>,
}

impl Probe {
    /// A probe that is answered by this future. It runs on the thread of the probes and must not block it; one that
    /// does is found out, since its own time runs out for whoever looks.
    pub fn new<F, A>(spec: Spec, ask: F) -> Self
    where
        F: Fn() -> A + Send + 'static,
        A: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { spec, ask: Box::new(move || Box::pin(ask())) }
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Probe").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// Asks probes until it is dropped. Its thread is left behind when it does not end by itself.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    stop: CancellationToken,
    changes: watch::Receiver<Health>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    core: Mutex<Core>,
}

/// Why probes cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They break a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The system gave no thread or no runtime.
    #[error("Thread of the probes could not be started")]
    Thread(#[source] io::Error),
}

impl Prober {
    /// Begins to ask.
    ///
    /// # Errors
    /// When the probes break a rule, or the system gives no thread.
    pub fn start(probes: Vec<Probe>, clock: Clock) -> Result<Self, Error> {
        let (specs, asks): (Vec<Spec>, Vec<_>) = probes.into_iter().map(|probe| (probe.spec, probe.ask)).unzip();
        let core = Core::new(specs, clock.now())?;
        let (tell, changes) = watch::channel(core.health(clock.now()));
        let shared = Arc::new(Shared { clock, core: Mutex::new(core) });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Thread)?;
        let asking = Asking { shared: Arc::clone(&shared), asks, tell, under_way: HashMap::new() };
        let stopped = stop.clone();
        thread::Builder::new()
            .name("probes".to_owned())
            .spawn(move || runtime.block_on(stopped.run_until_cancelled(asking.run())))
            .map_err(Error::Thread)?;
        Ok(Self { shared, stop, changes })
    }

    /// The health at this moment; answers without waiting for any probe.
    #[must_use]
    pub fn health(&self) -> Health {
        let now = self.shared.clock.now();
        let mut core = self.shared.lock();
        core.expire(now);
        core.health(now)
    }

    /// The health whenever it changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Health> {
        self.changes.clone()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Asking {
    shared: Arc<Shared>,
    asks: Vec<Box<dyn Fn() -> Answer + Send>>,
    tell: watch::Sender<Health>,
    under_way: HashMap<RunId, AbortHandle>,
}

impl Asking {
    async fn run(mut self) {
        let mut answers = FuturesUnordered::new();
        loop {
            let now = self.shared.clock.now();
            let (expired, due, pause) = {
                let mut core = self.shared.lock();
                let expired = core.expire(now);
                let due = core.due(now);
                (expired, due, core.deadline().map(|deadline| deadline.saturating_sub(now)))
            };
            for run in expired {
                self.forget(run);
            }
            for (place, run) in due {
                let (abort, registration) = AbortHandle::new_pair();
                self.under_way.insert(run, abort);
                let answer = Abortable::new((self.asks[place])(), registration);
                answers.push(async move { (run, answer.await) });
            }
            self.tell_changes();
            tokio::select! {
                Some((run, answer)) = answers.next() => {
                    self.under_way.remove(&run);
                    if let Ok(answer) = answer {
                        let now = self.shared.clock.now();
                        self.shared.lock().answered(now, run, answer);
                    }
                }
                () = sleep(pause) => {}
            }
        }
    }

    fn forget(&mut self, run: RunId) {
        if let Some(abort) = self.under_way.remove(&run) {
            abort.abort();
        }
    }

    fn tell_changes(&self) {
        let now = self.shared.clock.now();
        let health = self.shared.lock().health(now);
        let before = self.tell.borrow().status;
        if health.status != before {
            let reasons: Vec<String> =
                health.reasons.iter().map(|reason| format!("{} {}", reason.probe, reason.text)).collect();
            let reasons = reasons.join("; ");
            if health.ready {
                info!(status = ?health.status, reasons, "health changed");
            } else {
                warn!(status = ?health.status, reasons, "health changed");
            }
        }
        self.tell.send_if_modified(|told| {
            let is_new = *told != health;
            *told = health;
            is_new
        });
    }
}

/// Waits for ever without a pause: then only an answer can change anything.
async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
