//! The handle of a breaker that callers in one process share.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::broadcast;
use tracing::{info, warn};

use crate::{clock::Clock, seeded::drawn_seed};

use super::{Change, Core, Invalid, Outcome, Phase, Refused, Settings, Shared, Ticket};

/// How many changes a listener may lag behind before it misses some.
const CHANGES: usize = 64;

/// A breaker around one thing that may fail. Cheap to clone; clones are the same breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    clock: Clock,
    core: Mutex<Core>,
    changes: broadcast::Sender<Change>,
}

/// Why a guarded call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E> {
    /// It was not made.
    #[error(transparent)]
    Refused(Refused),
    /// It was made and failed.
    #[error("Guarded call failed")]
    Failed(#[source] E),
}

impl Breaker {
    /// A closed breaker with jitter of its own.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn new(name: impl Into<String>, settings: Settings, clock: Clock) -> Result<Self, Invalid> {
        Self::with_seed(name, settings, clock, drawn_seed())
    }

    /// As [`new`](Self::new), with jitter that repeats.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_seed(name: impl Into<String>, settings: Settings, clock: Clock, seed: u64) -> Result<Self, Invalid> {
        let core = Mutex::new(Core::new(settings, seed)?);
        let (changes, _) = broadcast::channel(CHANGES);
        Ok(Self { inner: Arc::new(Inner { name: name.into(), clock, core, changes }) })
    }

    /// What it is around.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.inner.lock().phase()
    }

    /// Every change from now on, in order.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Asks for one call.
    ///
    /// # Errors
    /// When the call may not go through now.
    pub fn acquire(&self) -> Result<Permit, Refused> {
        let since = self.inner.clock.now();
        let ticket = self.inner.with(|core| core.admit(since))?;
        Ok(Permit { inner: Arc::clone(&self.inner), ticket: Some(ticket), since })
    }

    /// Makes a call under guard; every error counts as a failure. Dropped before its end, or panicking, the call
    /// counts as nothing.
    ///
    /// # Errors
    /// When it was refused or failed.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, CallError<E>> {
        self.call_if(call, |_error| true).await
    }

    /// As [`call`](Self::call), but only errors that tell against the other side count as failures: a request that
    /// it refused as malformed shows that it is well.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_if<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
        is_failure: impl FnOnce(&E) -> bool,
    ) -> Result<T, CallError<E>> {
        let permit = self.acquire().map_err(CallError::Refused)?;
        let result = call.await;
        match &result {
            Err(error) if is_failure(error) => permit.end(Outcome::Failure),
            _ => permit.end(Outcome::Success),
        }
        result.map_err(CallError::Failed)
    }

    /// Makes a call under guard, and another way when it was refused or failed.
    pub async fn call_or<T, E, F>(
        &self,
        call: impl Future<Output = Result<T, E>>,
        fallback: impl FnOnce(CallError<E>) -> F,
    ) -> T
    where
        F: Future<Output = T>,
    {
        match self.call(call).await {
            Ok(value) => value,
            Err(error) => fallback(error).await,
        }
    }

    /// Opens it now, for as long as its next opening would last.
    pub fn trip(&self, reason: &str) {
        let now = self.inner.clock.now();
        self.inner.with(|core| core.trip(now, reason));
    }

    /// Closes it now.
    pub fn reset(&self, reason: &str) {
        let now = self.inner.clock.now();
        self.inner.with(|core| core.reset(now, reason));
    }

    /// What other processes should know; `shared_now_ms` is what the shared clock shows now, in milliseconds.
    #[must_use]
    pub fn export(&self, shared_now_ms: u64) -> Shared {
        let now = self.inner.clock.now();
        self.inner.lock().export(now, shared_now_ms)
    }

    /// Takes in what other processes know; whether it taught anything.
    pub fn merge(&self, shared_now_ms: u64, record: Shared) -> bool {
        let now = self.inner.clock.now();
        self.inner.with(|core| core.merge(now, shared_now_ms, record))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells of it while the lock is held, so that listeners see changes in their order.
    fn with<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.lock();
        let result = act(&mut core);
        while let Some(change) = core.poll_change() {
            self.tell(change);
        }
        result
    }

    fn tell(&self, change: Change) {
        let (breaker, cause) = (&self.name, &change.cause);
        if change.to == Phase::Open {
            warn!(breaker, round = change.round, %cause, "circuit opened");
        } else {
            info!(breaker, round = change.round, to = ?change.to, %cause, "circuit changed");
        }
        // nobody has to listen
        let _ = self.changes.send(change);
    }
}

/// The right to make one call. Dropped without an outcome it counts as nothing and is given back.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts as nothing"]
pub struct Permit {
    inner: Arc<Inner>,
    ticket: Option<Ticket>,
    since: Duration,
}

impl Permit {
    /// The call worked; the time since the permit was given is how long it took.
    pub fn success(self) {
        self.end(Outcome::Success);
    }

    /// The call failed.
    pub fn failure(self) {
        self.end(Outcome::Failure);
    }

    /// The call ended like this.
    pub fn end(mut self, outcome: Outcome) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = self.inner.clock.now();
        let took = now.saturating_sub(self.since);
        self.inner.with(|core| core.record(now, ticket, outcome, took));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.inner.lock().give_back(ticket);
        }
    }
}
