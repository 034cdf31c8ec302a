//! A child's connection on tokio.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::http::Uri;
use cogo_registry_core::AgentKey;
use futures_util::{SinkExt, StreamExt, future::BoxFuture};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    connection::{ChildConnection, ChildEvent, ConnectionSettings, Ended, Input, Output},
    protocol::{Again, Credential, Hello, MAX_FRAME_BYTES, ToChild, ToParent},
};

/// Messages that wait on either side before their sender does.
const WAITING: usize = 64;
/// How long the other side may take to take a frame.
const SENDING: Duration = Duration::from_secs(10);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

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
    /// Messages that the child works on, told with each heartbeat.
    pub in_flight: Arc<AtomicU32>,
}

/// Keeps a child connected.
#[derive(Debug)]
pub struct ChildClient {
    address: String,
    introduction: ChildIntroduction,
    key: AgentKey,
    token: Option<String>,
    connection: ChildConnection,
    in_flight: Arc<AtomicU32>,
    events: mpsc::UnboundedSender<ChildEvent>,
    messages: mpsc::Sender<Value>,
    outgoing: mpsc::Receiver<Value>,
    seated: watch::Sender<Option<Seated>>,
}

/// The connection, or the way to it.
enum Line {
    None,
    Opening(BoxFuture<'static, Result<Box<Socket>, Box<tungstenite::Error>>>),
    Open(Box<Socket>),
}

/// What the loop woke up for.
enum Woken {
    Opened(Result<Box<Socket>, Box<tungstenite::Error>>),
    Frame(Option<Result<Message, tungstenite::Error>>),
    ToSend(Value),
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
        let in_flight = Arc::new(AtomicU32::new(0));
        let handle =
            ChildHandle { events: told, messages: received, parent, seated: place, in_flight: Arc::clone(&in_flight) };
        let client = Self {
            address: address.to_owned(),
            introduction,
            key,
            token: None,
            connection: ChildConnection::new(settings),
            in_flight,
            events,
            messages,
            outgoing,
            seated,
        };
        Ok((client, handle))
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
                    if let Line::Open(socket) = &mut line {
                        let _ = timeout(SENDING, socket.send(Message::Close(None))).await;
                    }
                    return Ended::Stopped;
                }
                woken = next(&mut line), if has_room => woken,
                () = until(tick) => Woken::Tick,
                Some(body) = self.outgoing.recv(), if connected => Woken::ToSend(body),
            };
            match woken {
                // what is not read is no silence
                Woken::Tick if !has_room => inputs.extend([Input::Heard, Input::Tick]),
                Woken::Tick => inputs.push(Input::Tick),
                Woken::Opened(Ok(socket)) => {
                    line = Line::Open(socket);
                    inputs.push(Input::Opened);
                }
                Woken::Opened(Err(error)) => {
                    info!(%error, "the parent cannot be reached");
                    line = Line::None;
                    inputs.push(Input::Closed);
                }
                Woken::ToSend(body) => inputs.extend(send(&mut line, &ToParent::Message { body }).await.err()),
                Woken::Frame(frame) => inputs.extend(self.heard(frame)),
            }
        }
    }

    /// Does what the state machine says; an error is what it has to hear of next.
    async fn obey(&mut self, output: Output, line: &mut Line) -> Result<Option<Ended>, Input> {
        match output {
            Output::Open => {
                let address = self.address.clone();
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MAX_FRAME_BYTES))
                    .max_frame_size(Some(MAX_FRAME_BYTES));
                *line = Line::Opening(Box::pin(async move {
                    let opened = connect_async_with_config(&address, Some(config), true).await;
                    opened.map(|(socket, _)| Box::new(socket)).map_err(Box::new)
                }));
            }
            Output::SendHello => {
                let hello = ToParent::Hello(self.hello());
                send(line, &hello).await?;
            }
            Output::SendHeartbeat(sequence) => {
                let in_flight = self.in_flight.load(Ordering::Relaxed);
                send(line, &ToParent::Heartbeat { sequence, in_flight }).await?;
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
        let ChildIntroduction { name, slot, version, capabilities, tags } = self.introduction.clone();
        let credential = match &self.token {
            Some(token) => Credential::Token(token.clone()),
            None => Credential::Key(self.key.reveal().to_owned()),
        };
        Hello { name, slot, version, capabilities, tags, credential }
    }

    fn heard(&mut self, frame: Option<Result<Message, tungstenite::Error>>) -> Option<Input> {
        let text = match frame {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Some(Input::Closed),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(_)) => return Some(Input::Heard),
        };
        match serde_json::from_str(&text) {
            Ok(ToChild::Welcome { instance_id, holder, epoch, token }) => {
                self.token = Some(token);
                self.seated.send_replace(Some(Seated { instance_id, holder, epoch }));
                Some(Input::Welcomed)
            }
            Ok(ToChild::Heartbeat { token, .. }) => {
                self.token = token.or(self.token.take());
                Some(Input::Heard)
            }
            Ok(ToChild::Message { body }) => {
                // nothing is read without room for it; an owner that is gone wants nothing
                let _ = self.messages.try_send(body);
                Some(Input::Heard)
            }
            Ok(ToChild::Refused { reason, again }) => {
                warn!(reason, ?again, "the parent refuses the connection");
                if again != Again::Later {
                    self.token = None;
                }
                Some(Input::Refused(again))
            }
            Err(error) => {
                warn!(%error, "a frame of the parent is not understood");
                Some(Input::Heard)
            }
        }
    }
}

async fn next(line: &mut Line) -> Woken {
    match line {
        Line::None => std::future::pending().await,
        Line::Opening(opening) => Woken::Opened(opening.await),
        Line::Open(socket) => Woken::Frame(socket.next().await),
    }
}

async fn until(tick: Option<Instant>) {
    match tick {
        Some(tick) => tokio::time::sleep_until(tick).await,
        None => std::future::pending().await,
    }
}

async fn send(line: &mut Line, frame: &ToParent) -> Result<(), Input> {
    let Line::Open(socket) = line else { return Err(Input::Closed) };
    let text = serde_json::to_string(frame).map_err(|_| Input::Closed)?;
    match timeout(SENDING, socket.send(Message::text(text))).await {
        Ok(Ok(())) => Ok(()),
        outcome => {
            debug!(in_time = outcome.is_ok(), "the parent does not take a frame");
            Err(Input::Closed)
        }
    }
}

/// Whether a key may be sent there.
fn is_safe(address: &str) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match uri.scheme_str() {
        Some("wss") => !host.is_empty(),
        Some("ws") => {
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_leave_the_machine_in_clear() {
        for good in
            ["wss://parent.example/children", "ws://127.0.0.1:3013/children", "ws://[::1]:1/", "ws://localhost/"]
        {
            assert!(is_safe(good), "{good}");
        }
        for bad in [
            "ws://parent.example/children",
            "http://127.0.0.1/",
            "127.0.0.1:80",
            "",
            "wss://",
            "ws://localhost.example/",
        ] {
            assert!(!is_safe(bad), "{bad}");
        }
    }
}
