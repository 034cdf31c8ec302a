//! A pool of real members: makes them, warms them up, lends them and ends them.

use std::{
    collections::HashMap,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{clock::Clock, seeded::drawn_seed, waiting_room::Ticket};

use super::{Answer, Core, Invalid, MemberId, Output, Pressure, Refused, Settings};

/// Makes a member and warms it up.
type Factory<T> = Arc<dyn Fn(MemberId) -> Pin<Box<dyn Future<Output = Result<T, String>> + Send>> + Send + Sync>;

/// A pool of members. Cheap to clone; clones are the same pool.
pub struct Pool<T>(Arc<Inner<T>>);

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> std::fmt::Debug for Pool<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pool").field("pressure", &self.pressure()).finish_non_exhaustive()
    }
}

struct Inner<T> {
    clock: Clock,
    patience: Duration,
    factory: Factory<T>,
    state: Mutex<State<T>>,
    tasks: TaskTracker,
    closed: CancellationToken,
    /// The deadline of the rules may have changed.
    changed: Notify,
}

struct State<T> {
    core: Core,
    members: HashMap<MemberId, Arc<T>>,
    doors: HashMap<Ticket, oneshot::Sender<Call<T>>>,
}

/// What somebody who waits is told.
enum Call<T> {
    /// The member goes along, so that it cannot be gone meanwhile.
    Granted(MemberId, Arc<T>),
    Displaced,
}

impl<T: Send + Sync + 'static> Pool<T> {
    /// A pool that makes its members by `factory`; what that future yields is warm. Lives until it is closed, and needs a
    /// tokio runtime around it.
    ///
    /// # Errors
    /// The first rule that the settings break.
    pub fn new<F, M>(settings: Settings, factory: F) -> Result<Self, Invalid>
    where
        F: Fn(MemberId) -> M + Send + Sync + 'static,
        M: Future<Output = Result<T, String>> + Send + 'static,
    {
        let patience = settings.patience;
        let core = Core::new(settings, drawn_seed())?;
        let pool = Self(Arc::new(Inner {
            clock: Clock::system(),
            patience,
            factory: Arc::new(move |id| Box::pin(factory(id))),
            state: Mutex::new(State { core, members: HashMap::new(), doors: HashMap::new() }),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            changed: Notify::new(),
        }));
        pool.0.with(|_state, _now| ());
        pool.0.tasks.spawn(Arc::clone(&pool.0).keep_time());
        Ok(pool)
    }

    /// A member for one piece of work of a tenant; waits for one within the patience of the pool.
    ///
    /// # Errors
    /// Why there was none.
    pub async fn lease(&self, tenant: &str) -> Result<Lease<T>, Refused> {
        if self.0.closed.is_cancelled() {
            return Err(Refused::Closed);
        }
        let (door, called) = oneshot::channel();
        let (answer, at_once) = self.0.with(|state, now| {
            let answer = state.core.ask(now, tenant);
            if let Answer::Waits(ticket) = answer {
                state.doors.insert(ticket, door);
            }
            let Answer::Granted(id) = answer else { return (answer, None) };
            (answer, state.members.get(&id).map(|member| (id, Arc::clone(member))))
        });
        if let Some((id, member)) = at_once {
            return Ok(self.0.lease_of(id, member, tenant));
        }
        let Answer::Waits(ticket) = answer else { return Err(Refused::Full) };
        let mut waiter = Waiter { inner: Arc::clone(&self.0), tenant: tenant.to_owned(), ticket, called: Some(called) };
        let since = Instant::now();
        let call = tokio::select! {
            call = waiter.wait(self.0.patience) => call,
            () = self.0.closed.cancelled() => return Err(Refused::Closed),
        };
        match call {
            Some(Call::Granted(id, member)) => Ok(self.0.lease_of(id, member, tenant)),
            Some(Call::Displaced) => Err(Refused::Displaced),
            None => Err(Refused::TimedOut { waited: since.elapsed() }),
        }
    }

    /// How many members it shall have; answers what it will have within its bounds.
    pub fn set_target(&self, target: usize) -> usize {
        self.0.with(|state, now| state.core.set_target(now, target))
    }

    /// How hard it is pressed.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.0.lock().core.pressure()
    }

    /// Lends nothing any more, ends the members that nobody uses and waits for those that are being made.
    pub async fn close(&self) {
        self.0.closed.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.lock().members.clear();
    }
}

impl<T: Send + Sync + 'static> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and does at once what the rules ask for.
    fn with<R>(self: &Arc<Self>, act: impl FnOnce(&mut State<T>, Duration) -> R) -> R {
        let mut gone = Vec::new();
        let mut state = self.lock();
        let result = act(&mut state, self.clock.now());
        while let Some(output) = state.core.poll() {
            match output {
                Output::Start(id) => {
                    if !self.closed.is_cancelled() {
                        self.tasks.spawn(Arc::clone(self).make(id));
                    }
                }
                Output::Stop(id) => gone.extend(state.members.remove(&id)),
                Output::Grant(ticket, id) => {
                    let member = state.members.get(&id).expect("only members that are there get work");
                    let call = Call::Granted(id, Arc::clone(member));
                    state.tell(ticket, call);
                }
                Output::Displace(ticket) => state.tell(ticket, Call::Displaced),
            }
        }
        drop(state);
        // a member may take its time to end, which must not be under the lock
        drop(gone);
        self.changed.notify_one();
        result
    }

    async fn make(self: Arc<Self>, id: MemberId) {
        let Some(made) = self.closed.run_until_cancelled((self.factory)(id)).await else { return };
        match made {
            Ok(member) => {
                debug!(member = %id, "pool member is warm");
                self.with(|state, now| {
                    state.members.insert(id, Arc::new(member));
                    if !state.core.warmed(now, id) {
                        // the pool shrank while it was being made
                        state.members.remove(&id);
                    }
                });
            }
            Err(reason) => {
                warn!(member = %id, reason, "pool member could not be made");
                self.with(|state, now| state.core.failed(now, id));
            }
        }
    }

    async fn keep_time(self: Arc<Self>) {
        loop {
            let deadline = self.lock().core.deadline();
            let pause = deadline.map(|deadline| deadline.saturating_sub(self.clock.now()));
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = self.changed.notified() => {}
                () = due => self.with(|state, now| state.core.tick(now)),
            }
        }
    }

    fn lease_of(self: &Arc<Self>, id: MemberId, member: Arc<T>, tenant: &str) -> Lease<T> {
        Lease { inner: Arc::clone(self), id, tenant: tenant.to_owned(), member, broken: false }
    }
}

impl<T> State<T> {
    fn tell(&mut self, ticket: Ticket, call: Call<T>) {
        if let Some(door) = self.doors.remove(&ticket) {
            let _ = door.send(call);
        }
    }
}

/// Somebody who waits; gives up its ticket, or the member it was given meanwhile, when its future is dropped.
struct Waiter<T: Send + Sync + 'static> {
    inner: Arc<Inner<T>>,
    tenant: String,
    ticket: Ticket,
    /// None once it was heard.
    called: Option<oneshot::Receiver<Call<T>>>,
}

impl<T: Send + Sync + 'static> Waiter<T> {
    async fn wait(&mut self, patience: Duration) -> Option<Call<T>> {
        let called = self.called.as_mut()?;
        if let Ok(Ok(call)) = timeout(patience, called).await {
            self.called = None;
            return Some(call);
        }
        self.give_up()
    }

    fn give_up(&mut self) -> Option<Call<T>> {
        let mut called = self.called.take()?;
        let mut state = self.inner.lock();
        if state.core.give_up(&self.tenant, self.ticket) {
            state.doors.remove(&self.ticket);
            return None;
        }
        called.try_recv().ok()
    }
}

impl<T: Send + Sync + 'static> Drop for Waiter<T> {
    fn drop(&mut self) {
        if let Some(Call::Granted(id, _member)) = self.give_up() {
            self.inner.with(|state, now| state.core.give_back(now, id, &self.tenant));
        }
    }
}

/// A member in somebody's hands, given back when dropped.
pub struct Lease<T: Send + Sync + 'static> {
    inner: Arc<Inner<T>>,
    id: MemberId,
    tenant: String,
    member: Arc<T>,
    broken: bool,
}

impl<T: Send + Sync + 'static> Lease<T> {
    /// Which member it is.
    #[must_use]
    pub const fn id(&self) -> MemberId {
        self.id
    }

    /// Gives it back as broken: nobody gets it any more, and another is made in its place.
    pub fn broken(mut self) {
        self.broken = true;
    }
}

impl<T: Send + Sync + 'static> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.member
    }
}

impl<T: Send + Sync + 'static> std::fmt::Debug for Lease<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Lease").field("id", &self.id).field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Drop for Lease<T> {
    fn drop(&mut self) {
        let (id, broken) = (self.id, self.broken);
        self.inner.with(|state, now| {
            if broken {
                state.members.remove(&id);
                state.core.failed(now, id);
            }
            state.core.give_back(now, id, &self.tenant);
        });
    }
}
