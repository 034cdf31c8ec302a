//! The problems of this API, each made in one place so that its code means one thing.

use std::{collections::BTreeSet, time::Duration};

use cogo_bus_core::Error as BusError;
use cogo_contracts::Problem;
use cogo_registry_core::NotChecked;
use cogo_service_runtime::{ApiError, Foreign};
use uuid::Uuid;

/// Characters of a caller's text that a problem repeats.
const ECHO: usize = 80;

/// What the bus said instead of an answer.
pub(crate) fn of_bus(error: BusError) -> ApiError {
    match error {
        BusError::Refused { reason, .. } if reason.starts_with("payload at most") => too_large(),
        error => error.into(),
    }
}

pub(crate) fn crowded() -> ApiError {
    let detail = "As many requests as this server lets wait for the database are waiting";
    let problem = Problem::new(503, "busy", "Too many requests at once", detail);
    problem.hint("Send the request again with the same Idempotency-Key").into()
}

pub(crate) fn too_large() -> ApiError {
    let problem = Problem::new(413, "too-large", "Body too large", "The body is larger than 1 MiB");
    problem.hint("Put larger data elsewhere and send its address").into()
}

pub(crate) fn artifact_too_large() -> ApiError {
    let problem = Problem::new(413, "too-large", "Artifact too large", "The artifact is larger than 16 MiB");
    problem.hint("Divide it, or put it elsewhere and send its address").into()
}

pub(crate) fn not_a_media_type() -> ApiError {
    let detail = "The content type is not a media type of visible ASCII characters";
    Problem::new(415, "unsupported-media-type", "Content type cannot be stored", detail).into()
}

pub(crate) fn busy() -> ApiError {
    let detail = "As many uploads as this server takes at once are under way";
    Problem::new(503, "busy", "Too many uploads at once", detail).into()
}

pub(crate) fn no_such_artifact() -> ApiError {
    Problem::new(404, "no-such-artifact", "No such artifact", "There is no artifact under this digest").into()
}

pub(crate) fn too_slow(within: Duration) -> ApiError {
    Problem::new(408, "body-too-slow", "Body too slow", format!("The body did not arrive within {within:?}")).into()
}

pub(crate) fn not_json_type(content_type: &str) -> ApiError {
    let detail = format!("The content type is {:?}", shortened(content_type));
    let problem = Problem::new(415, "unsupported-media-type", "Content type is not JSON", detail);
    problem.hint("Send the header Content-Type: application/json").into()
}

pub(crate) fn malformed(detail: impl Into<String>) -> ApiError {
    let problem = Problem::new(400, "malformed-json", "Body is not usable JSON", detail);
    problem.hint("Send one JSON object {\"tenant\", \"intent\", \"payload\"}").into()
}

pub(crate) fn bad_field(field: &str, detail: impl Into<String>) -> ApiError {
    Problem::new(422, "bad-field", "A field is not as expected", format!("{field}: {}", detail.into())).into()
}

pub(crate) fn unknown_field(field: &str) -> ApiError {
    let detail = format!("{:?} is not a field of this request", shortened(field));
    let problem = Problem::new(422, "unknown-field", "Unknown field", detail);
    problem.hint("Known fields are tenant, intent, payload, budget and ttl_ms").into()
}

pub(crate) fn unknown_intent(intent: &str, known: &BTreeSet<String>) -> ApiError {
    let detail = format!("Nobody serves the intent {:?}", shortened(intent));
    let hint = if known.is_empty() {
        "No intent has a target yet; see the table public.orch_targets".to_owned()
    } else {
        format!("Known intents are {}", known.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    };
    Problem::new(422, "unknown-intent", "Unknown intent", detail).hint(hint).into()
}

/// What is sent breaks the schema of its route, or that cannot be told now.
pub(crate) fn not_checked(error: NotChecked) -> ApiError {
    match error {
        NotChecked::Refused(refusal) => {
            let problem = Problem::new(422, "breaks-schema", "The request breaks its schema", refusal.to_string());
            problem.hint(format!("`cogo schema show {}` shows the schema", refusal.subject)).into()
        }
        NotChecked::Unavailable(_) => ApiError::unavailable(&error.into()),
        NotChecked::Unusable { .. } | NotChecked::NoSuchVersion { .. } => ApiError::internal(&error.into()),
    }
}

pub(crate) fn unauthorized(detail: &str) -> ApiError {
    let problem = Problem::new(401, "unauthorized", "Not authorized", detail);
    problem.hint("Send a key as Authorization: Bearer <key> or as apikey: <key>").into()
}

pub(crate) fn wrong_tenant(tenant: &str) -> ApiError {
    let detail = format!("This key does not act for tenant {tenant}");
    Problem::new(403, "wrong-tenant", "Not this tenant's key", detail).into()
}

pub(crate) fn foreign(foreign: &Foreign) -> ApiError {
    let Foreign { header, value } = foreign;
    let detail = format!("{header} {:?} is not of this machine, and no API key is configured", shortened(value));
    let problem = Problem::new(403, "foreign-origin", "Open to this machine only", detail);
    problem.hint("Set COGO_API_KEYS to let others in with a key").into()
}

pub(crate) fn no_such_task(id: Uuid) -> ApiError {
    Problem::new(404, "no-such-task", "No such task", format!("There is no task {id}")).into()
}

pub(crate) fn already_ended(status: &str) -> ApiError {
    let detail = format!("The task is {status}, so there is nothing to take back");
    Problem::new(409, "already-ended", "Task has ended", detail).into()
}

pub(crate) fn no_such_route() -> ApiError {
    let problem = Problem::new(404, "no-such-route", "No such route", "Nothing answers at this path");
    problem.hint("GET / lists what this server answers").into()
}

pub(crate) fn wrong_method() -> ApiError {
    let detail = "This path does not answer that method; see the header Allow";
    Problem::new(405, "wrong-method", "Method not allowed", detail).into()
}

pub(crate) fn not_a_stream(detail: &str) -> ApiError {
    let problem = Problem::new(406, "not-a-stream", "Answered as a stream only", detail);
    problem.hint("Send Accept: text/event-stream, or open a WebSocket on /tasks/stream/{id}").into()
}

/// A hostile value is not echoed at length.
fn shortened(value: &str) -> String {
    value.chars().take(ECHO).collect()
}
