//! Errors and bodies at the HTTP edge: safe text out, cause to the log.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use cogo_bus_core::Error as BusError;
use cogo_contracts::Problem;
use serde::de::DeserializeOwned;
use tracing::error;

use crate::is_json;

/// An error that answers itself as `application/problem+json`.
#[derive(Debug)]
pub struct ApiError(pub Problem);

impl ApiError {
    /// A request that cannot be served as it is.
    #[must_use]
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self(Problem::new(400, "bad-request", "Bad request", detail))
    }

    /// Something that is not there.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self(Problem::new(404, "not-found", "Not found", detail))
    }

    /// A failure of ours; the cause goes to the log and not to the caller.
    #[must_use]
    pub fn internal(cause: &anyhow::Error) -> Self {
        error!(error = format!("{cause:#}"), "request failed");
        Self(Problem::new(500, "internal", "Internal error", "The request could not be served"))
    }

    /// The database is away.
    #[must_use]
    pub fn unavailable(cause: &anyhow::Error) -> Self {
        error!(error = format!("{cause:#}"), "database did not answer");
        let problem = Problem::new(503, "unavailable", "Temporarily unavailable", "The database did not answer");
        Self(problem.hint("Send the request again with the same Idempotency-Key"))
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Refused { reason, .. } => {
                Self(Problem::new(422, "refused", "Refused by the contract", format!("The bus refused it: {reason}")))
            }
            BusError::NotFound { reason } => Self::not_found(reason),
            BusError::Conflict { reason } => Self(Problem::new(409, "conflict", "Not possible now", reason)),
            BusError::Database(_) => Self::unavailable(&anyhow::Error::from(error)),
            BusError::Contract { .. } => Self::internal(&anyhow::Error::from(error)),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::from(BusError::from(error))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Problem::MEDIA_TYPE));
        response
    }
}

/// A JSON body that says that it is one; one that does not parse answers a problem that says where.
#[derive(Debug)]
pub struct RequestBody<T>(pub T);

impl<S, T> FromRequest<S> for RequestBody<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let detail = "The body is not declared as JSON";
            let problem = Problem::new(415, "unsupported-media-type", "Content type is not JSON", detail);
            return Err(problem.hint("Send the header Content-Type: application/json").into());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let status = rejection.status().as_u16();
            if status == 413 {
                let problem =
                    Problem::new(413, "too-large", "Body too large", "The body is larger than this endpoint takes");
                return Self::Rejection::from(
                    problem.hint("Send at most 1 MiB; put larger data elsewhere and send its address"),
                );
            }
            ApiError::bad_request("The body could not be read")
        })?;
        let value = serde_json::from_slice(&bytes).map_err(|error| {
            let problem = Problem::new(400, "malformed-json", "Body is not the JSON expected", error.to_string());
            ApiError::from(problem.hint("Send one JSON object as described in the README"))
        })?;
        Ok(Self(value))
    }
}
