//! The live stream: one reader of the database for all who watch, and none while nobody does.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header::{CACHE_CONTROL, HeaderName},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use cogo_service_runtime::ApiError;
use futures_util::stream;
use serde::Serialize;
use sqlx::PgPool;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{Console, snapshot::Snapshot};

/// Shortest pause between two looks at the database.
const PERIOD: Duration = Duration::from_secs(1);
/// A look that took long is followed by a pause this many times as long, so that a page costs at most 1/20 of one core.
const PAUSE_PER_WORK: u32 = 20;
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A frame older than this is not shown to someone who has just come.
const FRESH: Duration = Duration::from_secs(2);

/// What was read last, for all who watch.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pool: PgPool,
    frames: watch::Sender<Option<Arc<Frame>>>,
    wanted: Arc<Notify>,
    stop: CancellationToken,
}

/// One event of the stream, written once for all.
#[derive(Debug)]
struct Frame {
    sequence: u64,
    event: &'static str,
    data: String,
    read_at: Instant,
}

impl Live {
    pub(crate) fn new(pool: PgPool, stop: CancellationToken) -> Self {
        Self { pool, frames: watch::Sender::new(None), wanted: Arc::new(Notify::new()), stop }
    }

    /// Reads as long as someone watches, else sleeps; ends when the process stops.
    pub(crate) async fn sample(self) {
        let mut sequence = 0;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.wanted.notified() => {}
            }
            while self.frames.receiver_count() > 0 {
                sequence += 1;
                let (frame, pause) = tokio::select! {
                    () = self.stop.cancelled() => return,
                    read = self.read(sequence) => read,
                };
                self.frames.send_replace(Some(Arc::new(frame)));
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
            debug!("nobody watches any more");
        }
    }

    /// One look, and the pause that it calls for.
    async fn read(&self, sequence: u64) -> (Frame, Duration) {
        let started = Instant::now();
        let read = Snapshot::read(&self.pool).await;
        let pause = (started.elapsed() * PAUSE_PER_WORK).clamp(PERIOD, LONGEST_PAUSE);
        let (event, data) = match read {
            Ok(mut snapshot) => {
                snapshot.next_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                ("snapshot", to_json(&snapshot))
            }
            Err(ApiError(problem)) => ("problem", to_json(&problem)),
        };
        (Frame { sequence, event, data, read_at: Instant::now() }, pause)
    }

    fn watch(&self) -> watch::Receiver<Option<Arc<Frame>>> {
        let mut receiver = self.frames.subscribe();
        let fresh = receiver.borrow().as_ref().is_some_and(|frame| frame.read_at.elapsed() < FRESH);
        if fresh {
            receiver.mark_changed();
        }
        self.wanted.notify_one();
        receiver
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("figures have string keys and serialize")
}

/// `GET /api/metrics/stream`: server-sent events `snapshot` and `problem`, each with the whole state.
///
/// Who reads slowly misses frames and never gets an old one.
pub(crate) async fn stream(State(console): State<Console>) -> Response {
    let frames = console.live.watch();
    let stop = console.live.stop.clone();
    let events = stream::unfold((frames, stop), async |(mut frames, stop)| {
        tokio::select! {
            () = stop.cancelled() => return None,
            changed = frames.changed() => changed.ok()?,
        }
        let frame = frames.borrow_and_update().clone()?;
        let event = sse::Event::default().id(frame.sequence.to_string()).event(frame.event).data(&frame.data);
        Some((Ok::<_, Infallible>(event), (frames, stop)))
    });
    // proxies must not collect the events
    let headers = [(CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))).into_response()
}
