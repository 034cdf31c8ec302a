//! A task's state, its result and its end before time.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header::RETRY_AFTER, request::Parts},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use cogo_contracts::{Task, TaskStatus};
use cogo_service_runtime::ApiError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

use crate::{Gateway, access::Caller, follow::Follow, problems};

/// Longest wait of one request for a result; a longer wish is cut.
const MAX_WAIT_MS: u64 = 60_000;

/// The id in the path, as an argument of handlers.
pub(crate) struct TaskId(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for TaskId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refusal = || ApiError::bad_request("The id in the path is not a UUID");
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|_rejection| refusal())?;
        id.parse().map(Self).map_err(|_not_a_uuid| refusal())
    }
}

/// How a task ended, or where it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ending {
    /// The task.
    id: Uuid,
    /// `done`, `failed` or `cancelled` if it has ended.
    pub(crate) status: TaskStatus,
    /// Reply of the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// Where a large reply stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_url: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When the last step ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<DateTime<Utc>>,
}

impl From<&Task> for Ending {
    fn from(task: &Task) -> Self {
        let ended = task.status.is_terminal();
        Self {
            id: task.id,
            status: task.status,
            // replies of steps on the way are not the task's
            result: task.result.clone().filter(|_| ended),
            result_url: task.result_url.clone().filter(|_| ended),
            error: task.error.clone().filter(|_| ended),
            finished_at: task.finished_at,
        }
    }
}

/// How long the caller waits for a result.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

/// `GET /tasks/{id}`.
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    TaskId(id): TaskId,
) -> Result<Json<Task>, ApiError> {
    gateway.task(id, &access).await.map(Json)
}

/// `GET /tasks/{id}/result`: 200 once the task has ended, 202 while it has not.
pub(crate) async fn result(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    TaskId(id): TaskId,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(wait) = wait.map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let until = Instant::now() + Duration::from_millis(wait.wait_ms.min(MAX_WAIT_MS));
    let mut task = gateway.task(id, &access).await?;
    if !task.status.is_terminal() && wait.wait_ms > 0 {
        let mut follow = Follow::start(&gateway, id).await?;
        task = gateway.task(id, &access).await?;
        while !task.status.is_terminal() && Instant::now() < until && !gateway.parts().stop.is_cancelled() {
            follow.wait(Some(until)).await;
            task = gateway.task(id, &access).await?;
        }
    }
    let ending = Json(Ending::from(&task));
    if task.status.is_terminal() {
        return Ok(ending.into_response());
    }
    Ok((StatusCode::ACCEPTED, [(RETRY_AFTER, "1")], ending).into_response())
}

/// `DELETE /tasks/{id}`.
pub(crate) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    Caller(access): Caller,
    TaskId(id): TaskId,
) -> Result<Json<Value>, ApiError> {
    let task = gateway.task(id, &access).await?;
    let cancelled =
        if task.status.is_terminal() { 0 } else { gateway.database().answered(gateway.parts().bus.cancel(id)).await? };
    if cancelled == 0 {
        // it may have ended between the two looks
        let task = gateway.task(id, &access).await?;
        return Err(problems::already_ended(&format!("{:?}", task.status).to_lowercase()));
    }
    info!(task.id = %id, cancelled, "cancelled task {id}");
    Ok(Json(json!({ "id": id, "cancelled": cancelled })))
}
