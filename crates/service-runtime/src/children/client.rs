//! A child's connection on tokio.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use cogo_contracts::Location;
use cogo_registry_core::AgentKey;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    connection::{ChildConnection, ChildEvent, ConnectionSettings, Ended, Input, Output},
    line::{Line, News, Trouble, TroubleKind, is_safe},
    protocol::{Again, Credential, Hello, Order, ToChild, ToParent},
    trust::Trust,
};

/// Messages that wait on either side before their sender does.
const WAITING: usize = 64;

/// Who a child says that it is.
#[derive(Debug, Clone)]
pub struct ChildIntroduction {
    /// Name of the agent, that of its key.
    pub name: String,
    /// Which replica, from 0.
    pub slot: u16,
    /// Version of its program.
    pub version: semver::Version,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Where it runs, as [`detect_location`](cogo_registry_core::detect_location) finds it; none: where its parent does.
    pub location: Option<Location>,
}

/// An address to which no key is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A parent is reached by wss://, or by ws:// on this machine, not by {address:?}")]
pub struct Unusable {
    address: String,
}

/// The child's place in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seated {
    /// Its run.
    pub instance_id: Uuid,
    /// Name of the run in the registry.
    pub holder: String,
    /// How many owners its slot has had.
    pub epoch: i64,
}

/// What the owner of a child holds of its connection.
#[derive(Debug)]
pub struct ChildHandle {
    /// What becomes of the connection, in order.
    pub events: mpsc::UnboundedReceiver<ChildEvent>,
    /// What the parent sends.
    pub messages: mpsc::Receiver<Value>,
    /// What the parent gets. One that was under way when the connection broke may be lost: whoever needs an answer asks
    /// again.
    pub parent: mpsc::Sender<Value>,
    /// The place in the registry that it was given last.
    pub seated: watch::Receiver<Option<Seated>>,
    /// What is wanted of the child. The connection has told the parent already that it obeys.
    pub orders: watch::Receiver<Order>,
    /// Why it is not connected; none while it is.
    pub trouble: watch::Receiver<Option<Trouble>>,
    /// Messages that the child works on, told with each heartbeat.
    pub in_flight: Arc<AtomicU32>,
    /// For the child to say, after [`Order::Leave`] or when it goes of its own accord, that it has nothing in its hands
    /// any more: it leaves the registry then, and the connection ends.
    pub finished: CancellationToken,
}

/// Keeps a child connected.
#[derive(Debug)]
pub struct ChildClient {
    address: String,
    introduction: ChildIntroduction,
    key: AgentKey,
    trust: Trust,
    token: Option<String>,
    connection: ChildConnection,
    in_flight: Arc<AtomicU32>,
    finished: CancellationToken,
    /// Whether this connection has heard that the child is finished.
    has_left: bool,
    events: mpsc::UnboundedSender<ChildEvent>,
    messages: mpsc::Sender<Value>,
    outgoing: mpsc::Receiver<Value>,
    seated: watch::Sender<Option<Seated>>,
    orders: watch::Sender<Order>,
    trouble: watch::Sender<Option<Trouble>>,
}

/// What the loop woke up for.
enum Woken {
    News(News),
    ToSend(Value),
    Finished,
    Tick,
}

impl ChildClient {
    /// Prepares the task and the handle on it; nothing is opened before [`run`](Self::run).
    ///
    /// # Errors
    /// When the address is not one of WebSocket, or is that of another machine without encryption.
    pub fn new(
        address: &str,
        introduction: ChildIntroduction,
        key: AgentKey,
        settings: ConnectionSettings,
    ) -> Result<(Self, ChildHandle), Unusable> {
        if !is_safe(address) {
            return Err(Unusable { address: address.chars().take(200).collect() });
        }
        let (events, told) = mpsc::unbounded_channel();
        let (messages, received) = mpsc::channel(WAITING);
        let (parent, outgoing) = mpsc::channel(WAITING);
        let (seated, place) = watch::channel(None);
        let (orders, ordered) = watch::channel(Order::Work);
        let (trouble, troubled) = watch::channel(None);
        let (in_flight, finished) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let handle = ChildHandle {
            events: told,
            messages: received,
            parent,
            seated: place,
            orders: ordered,
            trouble: troubled,
            in_flight: Arc::clone(&in_flight),
            finished: finished.clone(),
        };
        let client = Self {
            address: address.to_owned(),
            introduction,
            key,
            trust: Trust::default(),
            token: None,
            connection: ChildConnection::new(settings),
            in_flight,
            finished,
            has_left: false,
            events,
            messages,
            outgoing,
            seated,
            orders,
            trouble,
        };
        Ok((client, handle))
    }

    /// Recognises a parent on `wss://` by these authorities instead of those of the system.
    #[must_use]
    pub fn trusting(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Keeps the child connected until the token is cancelled, the tries are used up or the parent does not want it.
    pub async fn run(mut self, stop: CancellationToken) -> Ended {
        let origin = Instant::now();
        let mut line = Line::None;
        let mut inputs = vec![Input::Start];
        loop {
            for input in std::mem::take(&mut inputs) {
                for output in self.connection.handle(input, origin.elapsed()) {
                    match self.obey(output, &mut line).await {
                        Ok(Some(ended)) => return ended,
                        Ok(None) => {}
                        Err(lost) => inputs.push(lost),
                    }
                }
            }
            if !inputs.is_empty() {
                continue;
            }
            let tick = self.connection.wakes_at().map(|due| origin + due);
            let connected = self.connection.is_connected();
            // an owner that is behind holds up the parent, not the heartbeats
            let has_room = self.messages.is_closed() || self.messages.capacity() > 0;
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // it leaves the registry at once, rather than when it is missed
                    if connected && line.send(&ToParent::Left).await.is_ok() {
                        line.released().await;
                    }
                    return Ended::Stopped;
                }
                news = line.next(), if has_room => Woken::News(news),
                () = until(tick) => Woken::Tick,
                () = self.finished.cancelled(), if connected && !self.has_left => Woken::Finished,
                Some(body) = self.outgoing.recv(), if connected => Woken::ToSend(body),
            };
            self.take(woken, has_room, &mut line, &mut inputs).await;
        }
    }

    /// Does what the loop woke up for; what the state machine has to hear of it is added to the inputs.
    async fn take(&mut self, woken: Woken, has_room: bool, line: &mut Line, inputs: &mut Vec<Input>) {
        match woken {
            // what is not read is no silence
            Woken::Tick if !has_room => inputs.extend([Input::Heard, Input::Tick]),
            Woken::Tick => inputs.push(Input::Tick),
            Woken::News(News::Opened(Ok(socket))) => {
                *line = Line::Open(socket);
                inputs.push(Input::Opened);
            }
            Woken::News(News::Opened(Err(error))) => {
                self.tell_trouble(Trouble::opening(&error));
                *line = Line::None;
                inputs.push(Input::Closed);
            }
            Woken::News(News::Frame(frame)) => {
                let (input, answer) = self.heard(frame);
                inputs.extend(input);
                if let Some(answer) = answer {
                    inputs.extend(line.send(&answer).await.err());
                }
            }
            Woken::Finished => {
                self.has_left = true;
                inputs.extend(line.send(&ToParent::Left).await.err());
            }
            Woken::ToSend(body) => inputs.extend(line.send(&ToParent::Message { body }).await.err()),
        }
    }

    /// Does what the state machine says; an error is what it has to hear of next.
    async fn obey(&mut self, output: Output, line: &mut Line) -> Result<Option<Ended>, Input> {
        match output {
            Output::Open => *line = Line::open(&self.address, &self.trust),
            Output::SendHello => {
                let hello = ToParent::Hello(self.hello());
                line.send(&hello).await?;
            }
            Output::SendHeartbeat(sequence) => {
                let in_flight = self.in_flight.load(Ordering::Relaxed);
                line.send(&ToParent::Heartbeat { sequence, in_flight }).await?;
            }
            Output::Close => *line = Line::None,
            Output::Tell(event) => {
                info!(event = event.as_str(), child = self.introduction.name, "connection to the parent: {event}");
                // an owner that does not listen does not want to know
                let _ = self.events.send(event);
            }
            Output::End(ended) => return Ok(Some(ended)),
        }
        Ok(None)
    }

    fn hello(&self) -> Hello {
        let ChildIntroduction { name, slot, version, capabilities, tags, location } = self.introduction.clone();
        let credential = match &self.token {
            Some(token) => Credential::Token(token.clone()),
            None => Credential::Key(self.key.reveal().to_owned()),
        };
        Hello { name, slot, version, capabilities, tags, location, credential }
    }

    /// Takes a frame in; answers what the state machine has to hear of it and what the parent does.
    fn heard(&mut self, frame: Option<Result<Message, tungstenite::Error>>) -> (Option<Input>, Option<ToParent>) {
        let text = match frame {
            None | Some(Err(_) | Ok(Message::Close(_))) => return (Some(Input::Closed), None),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(_)) => return (Some(Input::Heard), None),
        };
        match serde_json::from_str(&text) {
            Ok(ToChild::Order { order }) => (Some(Input::Heard), Some(self.obey_order(order))),
            Ok(frame) => (Some(self.taken_in(frame)), None),
            Err(error) => {
                warn!(%error, "a frame of the parent is not understood");
                (Some(Input::Heard), None)
            }
        }
    }

    fn taken_in(&mut self, frame: ToChild) -> Input {
        match frame {
            ToChild::Welcome { instance_id, holder, epoch, token } => {
                self.token = Some(token);
                self.has_left = false;
                self.trouble.send_replace(None);
                let place = Some(Seated { instance_id, holder, epoch });
                let is_other = |now: &mut Option<Seated>| std::mem::replace(now, place.clone()) != place;
                if self.seated.send_if_modified(is_other) {
                    // what was wanted of the run before is nothing to this one
                    self.orders.send_if_modified(|now| std::mem::replace(now, Order::Work) != Order::Work);
                }
                Input::Welcomed
            }
            ToChild::Heartbeat { token, .. } => {
                self.token = token.or(self.token.take());
                Input::Heard
            }
            ToChild::Message { body } => {
                // nothing is read without room for it; an owner that is gone wants nothing
                let _ = self.messages.try_send(body);
                Input::Heard
            }
            ToChild::Refused { reason, again } => {
                if again != Again::Later {
                    self.token = None;
                }
                self.tell_trouble(Trouble { kind: TroubleKind::TurnedAway, reason });
                Input::Refused(again)
            }
            ToChild::Released => Input::Released,
            // answered before
            ToChild::Order { .. } => Input::Heard,
        }
    }

    fn obey_order(&self, order: Order) -> ToParent {
        if self.orders.send_if_modified(|now| std::mem::replace(now, order) != order) {
            info!(child = self.introduction.name, %order, "the parent wants: {order}");
        }
        ToParent::Obeys { order, in_flight: self.in_flight.load(Ordering::Relaxed) }
    }

    fn tell_trouble(&self, trouble: Trouble) {
        let Trouble { kind, reason } = &trouble;
        match kind {
            TroubleKind::Unreachable => info!(error = reason, "the parent cannot be reached"),
            TroubleKind::Untrusted => warn!(error = reason, "the certificate of the parent is not trusted"),
            TroubleKind::TurnedAway => warn!(reason, "the parent turns the child away"),
        }
        self.trouble.send_replace(Some(trouble));
    }
}

async fn until(tick: Option<Instant>) {
    match tick {
        Some(tick) => tokio::time::sleep_until(tick).await,
        None => std::future::pending().await,
    }
}
