//! A parent's side: who may connect as a child, and what the parent knows of its children.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    response::Response,
    routing::get,
};
use cogo_contracts::{AgentState, Problem};
use cogo_registry_core::{
    AgentKey, Error, Level, Member, Membership, Refused, Registration, Registry, Seat, Target, detect_location,
};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    attend,
    protocol::{Again, Credential, Hello, MAX_FRAME_BYTES},
    roster::{Attendance, Roster},
};
use crate::ApiError;

/// Connections that have not been welcomed yet; each may take some seconds to say who it is.
const STRANGERS: usize = 64;

/// How a parent treats its children.
#[derive(Debug, Clone)]
pub struct ChildrenSettings {
    /// The domain that the children belong to.
    pub domain: String,
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
    registry: Registry,
    tracker: TaskTracker,
    strangers: Arc<Semaphore>,
}

/// Why a child is turned away.
#[derive(Debug)]
pub(super) struct TurnedAway {
    pub(super) reason: String,
    pub(super) again: Again,
}

impl Children {
    /// Children of the process that this member is; what they send arrives at the receiver.
    ///
    /// Connections end at `stop`, and run on `tracker`.
    pub fn new(
        registry: Registry,
        member: Member,
        settings: ChildrenSettings,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> (Self, mpsc::Receiver<FromChild>) {
        let (inbox, received) = mpsc::channel(settings.most.max(1));
        let (roster, strangers) = (Roster::default(), Arc::new(Semaphore::new(STRANGERS)));
        (Self(Arc::new(Shared { settings, member, stop, roster, inbox, registry, tracker, strangers })), received)
    }

    /// The route `GET /children`, a WebSocket.
    pub fn router(&self) -> Router {
        Router::new().route("/children", get(connect)).with_state(self.clone())
    }

    /// The children that are connected now, as `name/slot`.
    #[must_use]
    pub fn connected(&self) -> Vec<String> {
        self.0.roster.connected()
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
        let attendance = self.0.roster.attend(seat);
        self.unpause(&attendance).await;
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

    /// Takes back what the loss of an earlier connection did.
    async fn unpause(&self, attendance: &Attendance) {
        let run = attendance.seat.membership().instance_id;
        if attendance.paused.swap(false, Ordering::SeqCst)
            && let Err(error) = self.0.registry.resume(Target::run(run).because("connected again")).await
        {
            warn!(child = attendance.seat.instance(), error = %error, "child is not resumed");
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
        // where the child itself runs is not known: it stands where its parent does
        let location = detect_location(|_| None);
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

async fn connect(
    State(children): State<Children>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let Ok(stranger) = Arc::clone(&children.0.strangers).try_acquire_owned() else {
        let detail = "As many connections as this process takes at once have not introduced themselves yet";
        return Err(Problem::new(503, "busy", "Too many new connections", detail).into());
    };
    let tracker = children.0.tracker.clone();
    let upgrade = upgrade.max_message_size(MAX_FRAME_BYTES).max_frame_size(MAX_FRAME_BYTES);
    Ok(upgrade.on_upgrade(move |socket| tracker.track_future(attend::attend(socket, children, stranger))))
}
