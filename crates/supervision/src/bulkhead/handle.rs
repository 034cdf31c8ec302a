//! The handle of a bulkhead that callers in one process share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};

use crate::{budget::Budget, waiting_room::Ticket};

use super::{Arrival, Core, Refused, Settings};

/// A bulkhead around one domain. Cheap to clone; clones are the same bulkhead.
#[derive(Debug, Clone)]
pub struct Bulkhead(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    core: Core,
    /// How those who wait are told.
    doors: HashMap<Ticket, oneshot::Sender<Call>>,
}

/// What somebody who waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    In,
    Displaced,
}

impl Bulkhead {
    /// Nobody is in.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let state = Mutex::new(State { core: Core::new(settings), doors: HashMap::new() });
        Self(Arc::new(Inner { settings, state }))
    }

    /// Waits for a place for one call of a tenant, within the patience of the domain.
    ///
    /// # Errors
    /// Why there was none.
    pub async fn enter(&self, tenant: &str) -> Result<Entry, Refused> {
        self.enter_for(tenant, self.0.settings.patience).await
    }

    /// As [`enter`](Self::enter), but no longer than a budget allows.
    ///
    /// # Errors
    /// Why there was none.
    pub async fn enter_within(&self, tenant: &str, budget: &Budget) -> Result<Entry, Refused> {
        self.enter_for(tenant, self.0.settings.patience.min(budget.remaining())).await
    }

    /// A place if there is one at this moment.
    ///
    /// # Errors
    /// [`Refused::Full`].
    pub fn try_enter(&self, tenant: &str) -> Result<Entry, Refused> {
        let is_in = self.0.lock().core.go_in(tenant);
        if is_in { Ok(self.entry(tenant)) } else { Err(Refused::Full) }
    }

    /// Calls at this moment.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.lock().core.running()
    }

    /// How many wait at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().core.waiting()
    }

    async fn enter_for(&self, tenant: &str, patience: Duration) -> Result<Entry, Refused> {
        let mut waiter = {
            let mut state = self.0.lock();
            match state.core.arrive(tenant) {
                Arrival::In => return Ok(self.entry(tenant)),
                Arrival::Full => return Err(Refused::Full),
                Arrival::Waits { ticket, displaced } => {
                    state.displace(displaced);
                    let (door, called) = oneshot::channel();
                    state.doors.insert(ticket, door);
                    Waiter { inner: Arc::clone(&self.0), tenant: tenant.to_owned(), ticket, called: Some(called) }
                }
            }
        };
        let since = Instant::now();
        let call = match waiter.called.as_mut() {
            Some(called) => timeout(patience, called).await.ok().and_then(Result::ok),
            None => None,
        };
        let call = match call {
            Some(call) => {
                waiter.called = None;
                Some(call)
            }
            None => waiter.give_up(),
        };
        match call {
            Some(Call::In) => Ok(self.entry(tenant)),
            Some(Call::Displaced) => Err(Refused::Displaced),
            None => Err(Refused::TimedOut { waited: since.elapsed() }),
        }
    }

    fn entry(&self, tenant: &str) -> Entry {
        Entry { inner: Arc::clone(&self.0), tenant: tenant.to_owned() }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, tenant: &str) {
        let mut state = self.lock();
        if let Some(next) = state.core.leave(tenant) {
            state.tell(next, Call::In);
        }
    }
}

impl State {
    fn displace(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.tell(ticket, Call::Displaced);
        }
    }

    /// A waiter drops its end only under the lock and after it gave up its ticket, so it hears what is sent here.
    fn tell(&mut self, ticket: Ticket, call: Call) {
        if let Some(door) = self.doors.remove(&ticket) {
            let _ = door.send(call);
        }
    }
}

/// Somebody who waits; gives up its ticket, or the place it was given meanwhile, when its future is dropped.
struct Waiter {
    inner: Arc<Inner>,
    tenant: String,
    ticket: Ticket,
    /// None once it was heard.
    called: Option<oneshot::Receiver<Call>>,
}

impl Waiter {
    /// Waits no longer; answers a call that came first.
    fn give_up(&mut self) -> Option<Call> {
        let mut called = self.called.take()?;
        let mut state = self.inner.lock();
        if state.core.give_up(&self.tenant, self.ticket) {
            state.doors.remove(&self.ticket);
            return None;
        }
        called.try_recv().ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.give_up() == Some(Call::In) {
            self.inner.leave(&self.tenant);
        }
    }
}

/// A place in a domain, given back when dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is given to the next"]
pub struct Entry {
    inner: Arc<Inner>,
    tenant: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.leave(&self.tenant);
    }
}

/// The bulkheads of a process, one per domain, so that no domain can take the room of another.
#[derive(Debug, Clone)]
pub struct Bulkheads {
    domains: Arc<HashMap<String, Bulkhead>>,
}

impl Bulkheads {
    /// These domains and no others.
    #[must_use]
    pub fn new(domains: impl IntoIterator<Item = (String, Settings)>) -> Self {
        let domains = domains.into_iter().map(|(domain, settings)| (domain, Bulkhead::new(settings))).collect();
        Self { domains: Arc::new(domains) }
    }

    /// The bulkhead of a domain, if there is one.
    #[must_use]
    pub fn of(&self, domain: &str) -> Option<&Bulkhead> {
        self.domains.get(domain)
    }
}
