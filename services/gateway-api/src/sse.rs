//! The stream of a task as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, header::ACCEPT},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use cogo_service_runtime::ApiError;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    Gateway,
    access::{Access, Caller},
    partials::Cursor,
    problems,
    steps::{self, Frame},
    tasks::TaskId,
};

/// Proxies cut connections on which nothing moves for 30 s or more.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: &str = "last-event-id";
/// What a browser waits before it connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// `GET /tasks/{id}/stream`.
pub(crate) async fn stream(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    TaskId(id): TaskId,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    events(gateway, access, id, &headers).await
}

/// The events of a task, for a caller that takes them.
pub(crate) async fn events(
    gateway: Arc<Gateway>,
    access: Access,
    id: Uuid,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    if !takes_events(headers) {
        return Err(problems::not_a_stream("The header Accept leaves out text/event-stream"));
    }
    // a task that cannot be seen is a plain 404 and not a stream that breaks off
    gateway.task(id, &access).await?;
    let (out, frames) = mpsc::channel(steps::BACKLOG);
    gateway.parts().tracker.spawn(steps::produce(Arc::clone(&gateway), id, access, cursor(headers), out));
    let hello = stream::once(async { Event::default().retry(RECONNECT) });
    let frames = stream::unfold(frames, async |mut frames| frames.recv().await.map(|frame| (event(&frame), frames)));
    let events = hello.chain(frames).map(Ok::<Event, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn event(frame: &Frame) -> Event {
    let event = Event::default().event(frame.name()).data(frame.json());
    match frame.cursor() {
        Some(cursor) => event.id(cursor),
        None => event,
    }
}

/// Where a browser that was cut off goes on.
fn cursor(headers: &HeaderMap) -> Cursor {
    headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()).map(Cursor::parse).unwrap_or_default()
}

fn takes_events(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(ACCEPT) else { return true };
    let accept = accept.to_str().unwrap_or_default().to_ascii_lowercase();
    let mut types = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
    types.any(|range| ["text/event-stream", "text/*", "*/*"].contains(&range))
}
