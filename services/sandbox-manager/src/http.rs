//! The HTTP side: workers connect, people look on.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use cogo_contracts::{Isolation, SandboxEvent};
use cogo_service_runtime::ApiError;
use futures_util::stream;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{Manager, guard::Admitted, socket};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The routes of the sandbox manager.
pub fn router(manager: Arc<Manager>) -> Router {
    Router::new()
        .route("/sandbox", get(state))
        .route("/sandbox/worker", get(socket::connect))
        .route("/sandbox/jobs/{message}/events", get(events))
        .fallback(async || ApiError::not_found("Nothing answers at this path"))
        .with_state(manager)
}

async fn state(State(manager): State<Arc<Manager>>, _: Admitted) -> Json<Value> {
    Json(json!({
        "isolation": Isolation::None,
        "allow_local": manager.settings().allow_local,
        "workers": manager.workers().reports(),
        "jobs": manager.jobs().count(),
    }))
}

/// Output of a job from its start, then live to its end.
async fn events(
    State(manager): State<Arc<Manager>>,
    Admitted: Admitted,
    Path(message): Path<String>,
) -> Result<Response, ApiError> {
    let id: Uuid = message.parse().map_err(|_| ApiError::bad_request("The id in the path is not a UUID"))?;
    let Some(log) = manager.jobs().find(id) else {
        let detail = format!("No job of message {id} runs here; its result stands in the task");
        return Err(ApiError::not_found(detail));
    };
    let events = stream::unfold(Some((log, 0)), async |place| {
        let (log, place) = place?;
        let event = log.at(place).await?;
        let next = (!event.is_terminal()).then_some((log, place + 1));
        Some((Ok::<Event, Infallible>(shown(&event)), next))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn shown(event: &SandboxEvent) -> Event {
    let json = serde_json::to_string(event).expect("events hold strings and numbers only");
    Event::default().data(json)
}
