//! What a process calls outside of itself: a circuit breaker that stops calling what fails, a bulkhead that keeps one
//! slow thing from taking the room of all others, and the time that a caller has left.

mod brake;
mod exchange;
mod outcome;
mod set;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cogo_supervision::{
    breaker::{Breaker, Change, Invalid, Permit, Phase, Settings as BreakerSettings},
    budget::Budget,
    bulkhead::{Bulkhead, Entry, Settings as BulkheadSettings},
    clock::Clock,
};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};

pub(crate) use brake::Brake;
pub use outcome::Unanswered;
pub use set::Dependencies;

use set::Shared;

/// Who else calls the same thing, and so wants to know how it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Every process of the fleet that names it alike.
    Fleet,
    /// This replica of this process only; what is known of it outlives a restart, and others see it.
    Replica,
    /// This run only. For the database itself, by which the others would have to be told.
    Run,
}

/// How calls to a dependency are guarded.
#[derive(Debug, Clone, PartialEq)]
pub struct DependencySettings {
    /// When it counts as failing, and how it is tried again.
    pub breaker: BreakerSettings,
    /// How many calls at once, in all and for one tenant, and how many may wait.
    pub bulkhead: BulkheadSettings,
    /// No call takes longer, however much time its caller has.
    pub longest: Duration,
}

impl Default for DependencySettings {
    /// The defaults of breaker and bulkhead, and two minutes.
    fn default() -> Self {
        Self {
            breaker: BreakerSettings::default(),
            bulkhead: BulkheadSettings::default(),
            longest: Duration::from_secs(120),
        }
    }
}

/// Something outside of this process that may fail or be slow. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct Dependency {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// How it is called in the fleet.
    name: String,
    reach: Reach,
    breaker: Breaker,
    bulkhead: Bulkhead,
    slow_call: Duration,
    longest: Duration,
    shared: Arc<Shared>,
    /// Calls so far; tells whether anybody cares.
    calls: AtomicU64,
    /// Changes that were not told to the others yet.
    changes: Mutex<broadcast::Receiver<Change>>,
}

impl Dependency {
    /// One that no other process knows of, and that nobody counts; for tests and tools.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn alone(name: &str, settings: &DependencySettings) -> Result<Self, Invalid> {
        Dependencies::alone().dependency(name, Reach::Run, settings)
    }

    fn new(name: String, reach: Reach, settings: &DependencySettings, shared: Arc<Shared>) -> Result<Self, Invalid> {
        let breaker = Breaker::new(name.as_str(), settings.breaker.clone(), Clock::system())?;
        let inner = Inner {
            name,
            reach,
            changes: Mutex::new(breaker.changes()),
            breaker,
            bulkhead: Bulkhead::new(settings.bulkhead),
            slow_call: settings.breaker.slow_call,
            longest: settings.longest,
            shared,
            calls: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How it is called in the fleet.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where its breaker stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.inner.breaker.phase()
    }

    /// Its breaker, to trip or reset it by hand.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.inner.breaker
    }

    /// Makes a call for a tenant, unless the circuit is open or the bulkhead stays full, and gives it up when `budget`
    /// or the longest time of the dependency is over. Only errors for which `tells_against` holds count as failures: a
    /// request that was refused as malformed shows that the other side is well. Dropped before its end it counts as
    /// nothing.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn call<T, E>(
        &self,
        tenant: &str,
        budget: Option<&Budget>,
        call: impl Future<Output = Result<T, E>>,
        tells_against: impl FnOnce(&E) -> bool,
    ) -> Result<T, Unanswered<E>> {
        let answered = self.guarded(tenant, budget, call, tells_against).await;
        let outcome = answered.as_ref().map_or_else(Unanswered::word, |_| "success");
        self.inner.shared.called(&self.inner.name, outcome);
        self.told();
        answered
    }

    async fn guarded<T, E>(
        &self,
        tenant: &str,
        budget: Option<&Budget>,
        call: impl Future<Output = Result<T, E>>,
        tells_against: impl FnOnce(&E) -> bool,
    ) -> Result<T, Unanswered<E>> {
        self.inner.calls.fetch_add(1, Ordering::Relaxed);
        let (_entry, permit) = self.go_in(tenant, budget).await?;
        let allowed = match budget {
            Some(budget) => budget.expect_time()?.min(self.inner.longest),
            None => self.inner.longest,
        };
        let since = Instant::now();
        match timeout(allowed, call).await {
            Ok(Ok(value)) => {
                permit.success();
                Ok(value)
            }
            Ok(Err(error)) => {
                if tells_against(&error) {
                    permit.failure()
                } else {
                    permit.success()
                }
                Err(Unanswered::Failed(error))
            }
            Err(_elapsed) => {
                // a caller with little time says nothing about the other side
                if since.elapsed() >= self.inner.slow_call.min(self.inner.longest) {
                    permit.failure();
                }
                Err(Unanswered::TookTooLong { allowed })
            }
        }
    }

    /// The right to make one call whose end is told later, by the permit.
    ///
    /// # Errors
    /// [`Unanswered::Open`] when the circuit is open or being tried out by others.
    pub fn acquire<E>(&self) -> Result<Permit, Unanswered<E>> {
        self.inner.calls.fetch_add(1, Ordering::Relaxed);
        let permit = self.inner.breaker.acquire();
        self.told();
        permit.map_err(Unanswered::from)
    }

    /// A place and a permit. Nobody waits for a place behind an open circuit, nor with a permit in its hands: that of a
    /// trial would keep others from trying.
    async fn go_in<E>(&self, tenant: &str, budget: Option<&Budget>) -> Result<(Entry, Permit), Unanswered<E>> {
        let permit = self.inner.breaker.acquire()?;
        if let Ok(entry) = self.inner.bulkhead.try_enter(tenant) {
            return Ok((entry, permit));
        }
        drop(permit);
        let entry = match budget {
            Some(budget) => self.inner.bulkhead.enter_within(tenant, budget).await,
            None => self.inner.bulkhead.enter(tenant).await,
        };
        let entry = entry.map_err(Unanswered::Full)?;
        Ok((entry, self.inner.breaker.acquire()?))
    }

    /// Wakes the exchange with the others if there is news for them.
    fn told(&self) {
        // of one that nobody else calls nobody is told
        if self.inner.reach != Reach::Run && self.inner.has_news() {
            self.inner.shared.wake();
        }
    }
}

impl Inner {
    fn has_news(&self) -> bool {
        !self.lock_changes().is_empty()
    }

    /// Why it changed last, since this was asked last.
    fn take_cause(&self) -> Option<String> {
        let mut changes = self.lock_changes();
        let mut cause = None;
        loop {
            match changes.try_recv() {
                Ok(change) => cause = Some(change.cause.to_string()),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return cause,
            }
        }
    }

    fn lock_changes(&self) -> std::sync::MutexGuard<'_, broadcast::Receiver<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
