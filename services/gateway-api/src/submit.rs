//! Taking a task in.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, StatusCode, header::LOCATION},
};
use cogo_contracts::{NewMessage, routes};
use cogo_service_runtime::ApiError;
use serde::Serialize;
use tracing::{Instrument, info, info_span};
use uuid::Uuid;

use crate::{Gateway, access::Caller, body, problems, submission::Submission};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_IDEMPOTENCY_KEY: usize = 180;
/// Keeps keys of callers apart from those that agents of the same tenant make for themselves.
const CALLERS_KEY: &str = "front-door:";

/// The answer to a submission.
#[derive(Serialize)]
pub(crate) struct Accepted {
    /// The task, by which it is followed.
    id: Uuid,
}

/// `POST /functions/v1/orchestrator-chat` and `POST /tasks/submit`.
pub(crate) async fn submit(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<Accepted>), ApiError> {
    let idempotency_key = idempotency_key(&headers)?;
    let submission = Submission::parse(body::read(&headers, body, body::ARRIVES_WITHIN).await?)?;
    if !access.covers(submission.tenant.as_str()) {
        return Err(problems::wrong_tenant(submission.tenant.as_str()));
    }
    let span = info_span!(
        "submit",
        otel.name = "POST /functions/v1/orchestrator-chat",
        otel.kind = "server",
        tenant = submission.tenant.as_str(),
        intent = submission.request.intent,
    );
    cogo_telemetry::accept_client(&span, text(&headers, "traceparent"), text(&headers, "tracestate"));
    let trace = cogo_telemetry::inject(&span);
    async {
        gateway.intents().expect(&submission.request.intent, &submission.tenant).await?;
        let mut message = message(&submission)?;
        message.idempotency_key = idempotency_key;
        message.headers = trace;
        gateway.parts().schemas.stamp(&mut message).await.map_err(problems::not_checked)?;
        let id = send(&gateway, &message).await?;
        let location = [(LOCATION, format!("/tasks/{id}"))];
        Ok((StatusCode::ACCEPTED, location, Json(Accepted { id })))
    }
    .instrument(span)
    .await
}

fn message(submission: &Submission) -> Result<NewMessage, ApiError> {
    let mut message = NewMessage::follow_up(routes::DECIDE, &submission.request)
        .map_err(|error| ApiError::internal(&anyhow::Error::from(error)))?;
    message.tenant = Some(submission.tenant.clone());
    message.ttl_ms = submission.request.ttl_ms;
    Ok(message)
}

async fn send(gateway: &Gateway, message: &NewMessage) -> Result<Uuid, ApiError> {
    let parts = gateway.parts();
    let started = Instant::now();
    let sent = gateway.database().answered(parts.bus.enqueue(message)).await?;
    if sent.duplicate {
        info!(task.id = %sent.id, "task {} was submitted before under this key", sent.id);
    } else {
        parts.metrics.sent(&message.route, 1, started.elapsed());
        info!(task.id = %sent.id, "accepted task {}", sent.id);
    }
    Ok(sent.id)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()));
    let refusal =
        || ApiError::bad_request(format!("Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} ASCII characters"));
    key.map(|key| Some(format!("{CALLERS_KEY}{key}"))).ok_or_else(refusal)
}

fn text<'headers>(headers: &'headers HeaderMap, name: &str) -> Option<&'headers str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
