//! Answers while they are written: `GET /chat/stream/{id}` with the id of the message or of its task.
//!
//! Events: `delta` with `{"text": …}` for each new piece, as the model writes it and before its citations are checked;
//! then one `end` with `{"mode": …}`. Only after `end` with the mode `llm` do the pieces stand for the answer; with any
//! other mode they are to be dropped, and `null` means that the attempt ended without an answer. The checked answer is
//! the result of the task in every case. Who comes late is sent all that was written so far.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::anyhow;
use axum::{
    Router,
    extract::{Path, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use cogo_bus_core::Bus;
use cogo_contracts::{ChatMode, MessageStatus};
use cogo_service_runtime::ApiError;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Proxies cut connections on which nothing moves for 30 s or more.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest wait for the work on a message to begin.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most messages that are followed or written at once.
const MOST_DRAFTS: usize = 2_000;

/// The answers that are being written or waited for.
pub struct Live {
    bus: Bus,
    stop: CancellationToken,
    drafts: Mutex<HashMap<Uuid, watch::Sender<Draft>>>,
}

/// What is written so far.
#[derive(Debug, Default)]
struct Draft {
    text: String,
    is_begun: bool,
    /// How the answer came about, once nothing follows.
    end: Option<Option<ChatMode>>,
}

impl Live {
    /// Nothing is written yet; followers are let go when `stop` fires.
    #[must_use]
    pub fn new(bus: Bus, stop: CancellationToken) -> Self {
        Self { bus, stop, drafts: Mutex::default() }
    }

    /// Begins an answer that can be followed under each of the ids. Dropping the writer ends it without one.
    pub(crate) fn begin(self: &Arc<Self>, ids: &[Uuid]) -> Writer {
        let mut drafts = self.drafts();
        let mut open: Vec<(Uuid, watch::Sender<Draft>)> = Vec::with_capacity(ids.len());
        for id in ids {
            if open.iter().any(|(other, _)| other == id) {
                continue;
            }
            let sender = drafts.entry(*id).or_default();
            if sender.borrow().is_begun {
                // an attempt that lost its lease still writes under the id; it ends by itself
                *sender = watch::Sender::default();
            }
            sender.send_modify(|draft| draft.is_begun = true);
            open.push((*id, sender.clone()));
        }
        drop(drafts);
        Writer { live: Arc::clone(self), open }
    }

    fn follow(self: &Arc<Self>, id: Uuid) -> Result<Follower, ApiError> {
        let mut drafts = self.drafts();
        if drafts.len() >= MOST_DRAFTS && !drafts.contains_key(&id) {
            return Err(ApiError::unavailable(&anyhow!("too many answers are followed at once")));
        }
        let draft = drafts.entry(id).or_default().subscribe();
        drop(drafts);
        let patience = Instant::now() + PATIENCE;
        Ok(Follower { live: Arc::clone(self), id, draft, sent: 0, patience, has_ended: false })
    }

    /// Whether nothing will be written under the id any more.
    async fn is_over(&self, id: Uuid) -> Result<bool, ApiError> {
        if let Some(task) = self.bus.task(id).await? {
            return Ok(task.status.is_terminal());
        }
        let Some(message) = self.bus.message(id).await? else {
            return Err(ApiError::not_found("There is no message or task with this id"));
        };
        let status = message.get("status").and_then(|status| MessageStatus::deserialize(status).ok());
        Ok(!matches!(status, None | Some(MessageStatus::Queued | MessageStatus::Claimed)))
    }

    fn drafts(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<Draft>>> {
        // every change of the map is a single call
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an answer that may be followed.
pub(crate) struct Writer {
    live: Arc<Live>,
    open: Vec<(Uuid, watch::Sender<Draft>)>,
}

impl Writer {
    /// Adds a piece.
    pub(crate) fn push(&self, piece: &str) {
        for (_, sender) in &self.open {
            sender.send_modify(|draft| draft.text.push_str(piece));
        }
    }

    /// Ends with an answer.
    pub(crate) fn end(self, mode: ChatMode) {
        self.close(Some(mode));
    }

    fn close(&self, mode: Option<ChatMode>) {
        let mut drafts = self.live.drafts();
        for (id, sender) in &self.open {
            sender.send_if_modified(|draft| {
                draft.end.is_none() && {
                    draft.end = Some(mode);
                    true
                }
            });
            // a later attempt may have begun anew under the same id
            if drafts.get(id).is_some_and(|current| current.same_channel(sender)) {
                drafts.remove(id);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close(None);
    }
}

/// Reads an answer while it is written.
struct Follower {
    live: Arc<Live>,
    id: Uuid,
    draft: watch::Receiver<Draft>,
    sent: usize,
    patience: Instant,
    has_ended: bool,
}

impl Follower {
    /// The next event; none after the end and when the process stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.has_ended {
                return None;
            }
            let is_begun = {
                let draft = self.draft.borrow_and_update();
                if let Some(text) = draft.text.get(self.sent..).filter(|text| !text.is_empty()) {
                    self.sent = draft.text.len();
                    return Some(Event::default().event("delta").data(json!({"text": text}).to_string()));
                }
                if let Some(mode) = draft.end {
                    self.has_ended = true;
                    return Some(end(mode));
                }
                draft.is_begun
            };
            let changed = async {
                if is_begun {
                    Ok(self.draft.changed().await)
                } else {
                    timeout_at(self.patience, self.draft.changed()).await
                }
            };
            let changed = tokio::select! {
                () = self.live.stop.cancelled() => return None,
                changed = changed => changed,
            };
            if !matches!(changed, Ok(Ok(()))) {
                self.has_ended = true;
                return Some(end(None));
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut drafts = self.live.drafts();
        let is_last =
            drafts.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1 && !sender.borrow().is_begun);
        if is_last {
            drafts.remove(&self.id);
        }
    }
}

fn end(mode: Option<ChatMode>) -> Event {
    Event::default().event("end").data(json!({"mode": mode}).to_string())
}

/// The routes of gateway-chat, beside the probes.
pub fn router(live: Arc<Live>) -> Router {
    Router::new().route("/chat/stream/{id}", get(stream_answer)).with_state(live)
}

async fn stream_answer(State(live): State<Arc<Live>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let id: Uuid = id.parse().map_err(|_| ApiError::bad_request("The id is not a UUID"))?;
    // first follow, then look: an answer that ends in between is not missed
    let mut follower = live.follow(id)?;
    let is_begun = follower.draft.borrow().is_begun;
    if !is_begun && live.is_over(id).await? && !follower.draft.borrow().is_begun {
        follower.draft = watch::Sender::new(Draft { end: Some(None), ..Draft::default() }).subscribe();
    }
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok::<Event, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}
