//! The stream of a task over a WebSocket; the same path answers server-sent events.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, header::UPGRADE},
    response::Response,
};
use cogo_service_runtime::ApiError;
use tokio::{
    sync::mpsc,
    time::{Instant, interval_at, timeout},
};
use tracing::debug;
use uuid::Uuid;

use crate::{
    Gateway,
    access::{Access, Caller},
    partials::Cursor,
    sse,
    steps::{self, Frame},
    tasks::TaskId,
};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A reader that takes nothing for this long is gone.
const TAKES_WITHIN: Duration = Duration::from_secs(15);
/// Readers have nothing to say but the frames of the protocol.
const MAX_INCOMING_BYTES: usize = 4096;

/// `GET /tasks/stream/{id}`.
pub(crate) async fn stream(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    TaskId(id): TaskId,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if !headers.contains_key(UPGRADE) {
        return sse::events(gateway, access, id, &headers).await;
    }
    let upgrade = upgrade.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    gateway.task(id, &access).await?;
    let tracker = gateway.parts().tracker.clone();
    let upgrade = upgrade.max_message_size(MAX_INCOMING_BYTES).max_frame_size(MAX_INCOMING_BYTES);
    Ok(upgrade.on_upgrade(move |socket| tracker.track_future(serve(socket, gateway, id, access))))
}

async fn serve(mut socket: WebSocket, gateway: Arc<Gateway>, id: Uuid, access: Access) {
    let (out, mut frames) = mpsc::channel(steps::BACKLOG);
    let parts = gateway.parts().clone();
    parts.tracker.spawn(steps::produce(gateway, id, access, Cursor::default(), out));
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    let mut ended = false;
    loop {
        let message = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => {
                    ended = matches!(frame, Frame::End(_));
                    Message::text(frame.json())
                }
                None => break,
            },
            _ = keep_alive.tick() => Message::Ping("".into()),
            incoming = socket.recv() => match incoming {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        if !matches!(timeout(TAKES_WITHIN, socket.send(message)).await, Ok(Ok(()))) {
            debug!(task.id = %id, "reader of task {id} is gone");
            return;
        }
    }
    let (code, reason) = match (ended, parts.stop.is_cancelled()) {
        (true, _) => (close_code::NORMAL, "the task has ended"),
        (false, true) => (close_code::AWAY, "the server stops, connect again"),
        (false, false) => (close_code::ERROR, "the stream broke off, connect again"),
    };
    let farewell = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    if !matches!(timeout(TAKES_WITHIN, socket.send(farewell)).await, Ok(Ok(()))) {
        debug!(task.id = %id, "reader of task {id} left before the farewell");
    }
}
