//! The connection of one external worker.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        Query, State, WebSocketUpgrade,
        rejection::QueryRejection,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use cogo_service_runtime::ApiError;
use serde::Deserialize;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tracing::warn;

use crate::{
    Manager,
    guard::Admitted,
    protocol::{ToManager, ToWorker},
    workers::{Kind, Membership},
};

/// A frame holds a piece of output; workers send far less at once.
const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// How long a new worker may take to introduce itself, and any worker to take a frame.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pings without any sign of life after which a worker is dropped.
const MISSED_PINGS: u8 = 2;
const MAX_NAME: usize = 64;

/// How a worker calls itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Introduction {
    name: String,
}

/// `GET /sandbox/worker?name=`.
pub(crate) async fn connect(
    State(manager): State<Arc<Manager>>,
    Admitted: Admitted,
    introduction: Result<Query<Introduction>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let Query(Introduction { name }) = introduction.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(legal) {
        return Err(ApiError::bad_request(format!("A worker's name is 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -")));
    }
    let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let tracker = manager.tracker().clone();
    let upgrade = upgrade.max_message_size(MAX_FRAME_BYTES).max_frame_size(MAX_FRAME_BYTES);
    Ok(upgrade.on_upgrade(move |socket| tracker.track_future(attend(socket, manager, name))))
}

/// Why a connection ends.
enum Farewell {
    Gone,
    Silent,
    Stopping,
    Broke(String),
}

async fn attend(mut socket: WebSocket, manager: Arc<Manager>, name: String) {
    let farewell = match timeout(PATIENCE, hello(&mut socket)).await {
        Ok(Ok(slots)) => {
            let (frames, outgoing) = mpsc::unbounded_channel();
            let membership = manager.workers().join(&name, Kind::External, slots, frames);
            exchange(&mut socket, &manager, &membership, outgoing).await
        }
        Ok(Err(farewell)) => farewell,
        Err(_) => Farewell::Broke("no hello within 10 s".to_owned()),
    };
    let (code, reason) = match farewell {
        Farewell::Gone => return,
        Farewell::Silent => {
            warn!(worker = name, "sandbox worker {name} is silent and dropped");
            (close_code::POLICY, "no sign of life for two pings".to_owned())
        }
        Farewell::Stopping => (close_code::AWAY, "the manager stops, connect again".to_owned()),
        Farewell::Broke(reason) => {
            warn!(worker = name, error = reason, "sandbox worker {name} broke the protocol");
            (close_code::PROTOCOL, reason.chars().take(100).collect())
        }
    };
    let message = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    if !sent(&mut socket, message).await {
        warn!(worker = name, "sandbox worker {name} left before the farewell");
    }
}

async fn hello(socket: &mut WebSocket) -> Result<u16, Farewell> {
    loop {
        match socket.recv().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Err(Farewell::Gone),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message)) => match read(&message)? {
                ToManager::Hello { slots } => return Ok(slots),
                ToManager::Event { .. } => return Err(Farewell::Broke("the first frame must be hello".to_owned())),
            },
        }
    }
}

async fn exchange(
    socket: &mut WebSocket,
    manager: &Manager,
    membership: &Membership,
    mut outgoing: UnboundedReceiver<ToWorker>,
) -> Farewell {
    let beat = Duration::from_millis(manager.settings().heartbeat_ms.max(1));
    let mut beats = interval_at(Instant::now() + beat, beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    loop {
        let message = tokio::select! {
            () = manager.stop().cancelled() => return Farewell::Stopping,
            frame = outgoing.recv() => match frame {
                Some(frame) => Message::text(text(&frame)),
                None => return Farewell::Stopping,
            },
            _ = beats.tick() => {
                if unanswered >= MISSED_PINGS {
                    return Farewell::Silent;
                }
                unanswered += 1;
                Message::Ping("".into())
            }
            incoming = socket.recv() => {
                match incoming {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return Farewell::Gone,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => match read(&message) {
                        Ok(ToManager::Event { job, event }) => membership.deliver(job, event).await,
                        Ok(ToManager::Hello { .. }) => return Farewell::Broke("hello came twice".to_owned()),
                        Err(farewell) => return farewell,
                    },
                }
                unanswered = 0;
                continue;
            }
        };
        if !sent(socket, message).await {
            return Farewell::Gone;
        }
    }
}

fn read(message: &Message) -> Result<ToManager, Farewell> {
    let Message::Text(text) = message else {
        return Err(Farewell::Broke("frames must be text".to_owned()));
    };
    serde_json::from_str(text).map_err(|error| Farewell::Broke(format!("frame not understood: {error}")))
}

fn text(frame: &ToWorker) -> String {
    serde_json::to_string(frame).expect("frames hold strings and numbers only")
}

async fn sent(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(PATIENCE, socket.send(message)).await, Ok(Ok(())))
}
