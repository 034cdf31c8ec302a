//! A parent's side: who may connect as a child, and what the parent knows of its children.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cogo_contracts::AgentState;
use cogo_registry_core::{
    AgentKey, Error, Level, Member, Membership, OrderedState, Refused, Registration, Registry, Seat, StandingOrders,
    Subject, Target, View, detect_location,
};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    mount::ChildAccess,
    orders,
    protocol::{Again, Credential, Hello, Order},
    roster::{Attendance, Roster},
};

/// Connections that have not been welcomed yet; each may take some seconds to say who it is.
const STRANGERS: usize = 64;

/// How a parent treats its children.
#[derive(Debug, Clone)]
pub struct ChildrenSettings {
    /// The domain that the children belong to.
    pub domain: String,
    /// From where they may connect.
    pub access: ChildAccess,
    /// How long a new connection may take to introduce itself.
    pub introduction: Duration,
    /// After so long without a sign of life a connection counts as gone.
    pub silence: Duration,
    /// After so long without a connection a child leaves the registry.
    pub allowed_absence: Duration,
    /// Children at once.
    pub most: usize,
}

impl ChildrenSettings {
    /// Silence after three heartbeats of 10 s; gone after as long as a process without beats takes to be dead.
    #[must_use]
    pub fn of_domain(domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            access: ChildAccess::Local,
            introduction: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            allowed_absence: Duration::from_secs(30),
            most: 256,
        }
    }
}

/// Something that a child sent.
#[derive(Debug, Clone, PartialEq)]
pub struct FromChild {
    /// The child as `name/slot`.
    pub child: String,
    /// Its run in the registry.
    pub membership: Membership,
    /// What it sent.
    pub body: Value,
}

/// There is no connection to this child now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Child {child} is not connected")]
pub struct NotConnected {
    child: String,
}

/// The children of this process; clones are handles on the same ones.
#[derive(Debug, Clone)]
pub struct Children(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: ChildrenSettings,
    pub(super) member: Member,
    pub(super) stop: CancellationToken,
    pub(super) roster: Roster,
    pub(super) inbox: mpsc::Sender<FromChild>,
    pub(super) tracker: TaskTracker,
    pub(super) strangers: Arc<Semaphore>,
    pub(super) view: View,
    /// Version of the copy of the registry, for those who look there.
    pub(super) changes: Arc<watch::Sender<i64>>,
    registry: Registry,
    standing_orders: StandingOrders,
}

/// Why a child is turned away.
#[derive(Debug)]
pub(super) struct TurnedAway {
    pub(super) reason: String,
    pub(super) again: Again,
}

impl Children {
    /// Children of the process that this member is; what they send arrives at the receiver. What the registry wants of
    /// them is read in this copy of it and told to them.
    ///
    /// Connections end at `stop`, and run on `tracker`.
    pub fn new(
        pool: PgPool,
        member: Member,
        view: View,
        settings: ChildrenSettings,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> (Self, mpsc::Receiver<FromChild>) {
        let (inbox, received) = mpsc::channel(settings.most.max(1));
        let (roster, strangers) = (Roster::default(), Arc::new(Semaphore::new(STRANGERS)));
        let changes = Arc::new(watch::Sender::new(0));
        tracker.spawn(orders::follow(view.clone(), Arc::clone(&changes), stop.clone()));
        let (registry, standing_orders) = (Registry::new(pool.clone()), StandingOrders::new(pool));
        let shared = Shared {
            settings,
            member,
            stop,
            roster,
            inbox,
            tracker,
            strangers,
            view,
            changes,
            registry,
            standing_orders,
        };
        (Self(Arc::new(shared)), received)
    }

    /// The children that are connected now, as `name/slot`.
    #[must_use]
    pub fn connected(&self) -> Vec<String> {
        self.0.roster.connected()
    }

    /// What a connected child (`name/slot`) said last that it does; none before it said so.
    #[must_use]
    pub fn obeys(&self, child: &str) -> Option<Order> {
        self.0.roster.obeys(child)
    }

    /// Sends something to a child. It may be lost if the connection breaks while it is under way.
    ///
    /// # Errors
    /// When the child is not connected now.
    pub async fn send(&self, child: &str, body: Value) -> Result<(), NotConnected> {
        let absent = || NotConnected { child: child.to_owned() };
        let line = self.0.roster.line(child).ok_or_else(absent)?;
        line.send(body).await.map_err(|_| absent())
    }

    /// Lets a child in that may come in, and gives it the place.
    pub(super) async fn admit(&self, hello: Hello) -> Result<Attendance, TurnedAway> {
        let Some(carrier) = self.0.member.standing().borrow().membership().cloned() else {
            return Err(later("The parent has no place in the registry now"));
        };
        let seat = match &hello.credential {
            Credential::Token(token) => self.seat_of_token(&hello, token, &carrier)?,
            Credential::Key(key) => Arc::new(self.seat_by_key(&hello, key, &carrier).await?),
        };
        let mut attendance = self.0.roster.attend(seat);
        attendance.since = self.unpause(&attendance).await;
        info!(child = attendance.seat.instance(), holder = attendance.seat.membership().holder, "child connected");
        Ok(attendance)
    }

    /// What the answers to heartbeats renew.
    pub(super) fn token(&self, seat: &Seat) -> Option<String> {
        self.0.member.token_for(seat, &audience(&self.0.member)?)
    }

    /// Notes that a connection is gone, and sees to it that its child leaves the registry if it does not come back.
    pub(super) async fn left(&self, attendance: Attendance) {
        let instance = attendance.seat.instance();
        if !self.0.roster.leave(&attendance) || self.0.stop.is_cancelled() {
            // it is connected anew, or leaves the registry with its parent
            return;
        }
        self.0.member.vitals().set_carried_in_flight(&instance, 0);
        let run = attendance.seat.membership().instance_id;
        // nobody shall be sent to a child that cannot be reached; one that an operator has paused stays as it is
        match self.0.registry.suspend(Target::run(run).because("connection lost")).await {
            Ok(ordered) => attendance.paused.store(ordered.before != AgentState::Suspended, Ordering::SeqCst),
            Err(error) => info!(child = instance, error = %error, "child is not suspended"),
        }
        if !self.0.roster.is_newest(&attendance) {
            // it came back while it was being suspended
            self.unpause(&attendance).await;
            return;
        }
        let children = self.clone();
        self.0.tracker.spawn(async move {
            tokio::select! {
                () = children.0.stop.cancelled() => return,
                () = tokio::time::sleep(children.0.settings.allowed_absence) => {}
            }
            if children.0.roster.forget(&attendance) {
                match children.0.registry.deregister(run, "connection gone").await {
                    Ok(_) => warn!(child = instance, "child {instance} did not come back"),
                    Err(error) => warn!(child = instance, %error, "could not end a child that is gone"),
                }
            }
        });
    }

    /// Takes a child out of the registry that says that it goes.
    ///
    /// # Errors
    /// When the registry does not answer: it may say so again later.
    pub(super) async fn release(&self, attendance: &Attendance, reason: &str) -> Result<(), TurnedAway> {
        let run = attendance.seat.membership().instance_id;
        self.0.registry.deregister(run, reason).await.map_err(|error| unanswered(&error))?;
        self.0.roster.forget(attendance);
        let child = attendance.seat.instance();
        self.0.member.vitals().set_carried_in_flight(&child, 0);
        info!(child, reason, "child left");
        Ok(())
    }

    /// Takes back what the loss of an earlier connection did; answers in which version of the registry that stands, 0 if
    /// there was nothing to take back.
    async fn unpause(&self, attendance: &Attendance) -> i64 {
        let run = attendance.seat.membership().instance_id;
        if !attendance.paused.swap(false, Ordering::SeqCst) {
            return 0;
        }
        if self.is_ordered_to_pause(&attendance.seat.instance()).await {
            info!(child = attendance.seat.instance(), "child stays suspended, as an operator ordered meanwhile");
            return 0;
        }
        match self.0.registry.resume(Target::run(run).because("connected again")).await {
            Ok(ordered) => ordered.registry_version,
            Err(error) => {
                warn!(child = attendance.seat.instance(), error = %error, "child is not resumed");
                0
            }
        }
    }

    /// Whether an operator has ordered that this child (`name/slot`) be suspended, whoever suspended it.
    async fn is_ordered_to_pause(&self, instance: &str) -> bool {
        let (process, slot) = instance.split_once('/').unwrap_or((instance, "0"));
        let (domain, process) = (self.0.settings.domain.clone(), process.to_owned());
        let child = Subject::Instance { domain, process, slot: slot.parse().unwrap_or(0) };
        match self.0.standing_orders.list().await {
            Ok(orders) => {
                orders.iter().any(|order| order.wish == OrderedState::Suspended && order.subject.holds(&child))
            }
            Err(error) => {
                warn!(child = instance, error = %error, "the orders of operators are not known");
                false
            }
        }
    }

    fn seat_of_token(&self, hello: &Hello, token: &str, carrier: &Membership) -> Result<Arc<Seat>, TurnedAway> {
        let with_key = |reason: String| TurnedAway { reason, again: Again::WithKey };
        let seat = self.0.roster.seat(&format!("{}/{}", hello.name, hello.slot));
        // a run ends with the one that carried it, however well its connection is
        let Some(seat) = seat.filter(|seat| seat.carrier() == carrier.instance_id) else {
            return Err(with_key("The run of the token has ended".to_owned()));
        };
        let now = self.0.member.database_now().ok_or_else(|| later("The parent does not know the time"))?;
        let audience = audience(&self.0.member).ok_or_else(|| later("The parent has no place in the registry now"))?;
        seat.verify(token, &audience, now).map_err(|refused: Refused| with_key(refused.to_string()))?;
        Ok(seat)
    }

    async fn seat_by_key(&self, hello: &Hello, key: &str, carrier: &Membership) -> Result<Seat, TurnedAway> {
        let never = |reason: String| TurnedAway { reason, again: Again::Never };
        let key = AgentKey::parse(key).map_err(|error| never(error.to_string()))?;
        let opens = self.0.registry.key_opens(&hello.name, &key).await.map_err(|error| unanswered(&error))?;
        if !opens {
            return Err(never("The key does not open this name".to_owned()));
        }
        let instance = format!("{}/{}", hello.name, hello.slot);
        if self.0.roster.seat(&instance).is_none() && self.0.roster.len() >= self.0.settings.most {
            return Err(later("The parent has as many children as it takes"));
        }
        let registration = self.registration(hello, &key, carrier).map_err(|invalid| never(invalid.to_string()))?;
        match self.0.registry.seat(registration, carrier.instance_id).await {
            Ok(seat) => Ok(seat),
            Err(Error::KeyRefused) => Err(never("The key does not open this name".to_owned())),
            Err(error) => Err(unanswered(&error)),
        }
    }

    fn registration(
        &self,
        hello: &Hello,
        key: &AgentKey,
        carrier: &Membership,
    ) -> Result<Registration, cogo_registry_core::Invalid> {
        // one that does not say where it runs stands where its parent does
        let location = hello.location.clone().unwrap_or_else(|| detect_location(|_| None));
        let parent = carrier.holder.split('#').next().unwrap_or_default();
        let (slot, version) = (u32::from(hello.slot), hello.version.clone());
        let mut registration = Registration::new(&self.0.settings.domain, &hello.name, slot, version, location)?
            .level(Level::External)
            .parent(parent)
            .key(key);
        for capability in &hello.capabilities {
            registration = registration.capability(capability)?;
        }
        for tag in &hello.tags {
            registration = registration.tag(tag)?;
        }
        Ok(registration)
    }
}

/// For whom the tokens of children are made: their parent, as `name/slot`.
fn audience(member: &Member) -> Option<String> {
    let standing = member.standing();
    let standing = standing.borrow();
    standing.membership().and_then(|membership| membership.holder.split('#').next()).map(str::to_owned)
}

fn later(reason: &str) -> TurnedAway {
    TurnedAway { reason: reason.to_owned(), again: Again::Later }
}

/// The cause is for our log, not for a stranger.
fn unanswered(error: &Error) -> TurnedAway {
    warn!(error = %error, "a child could not be let in");
    later("The registry does not answer")
}
