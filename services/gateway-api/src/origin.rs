//! Browsers: cross-origin answers, and keeping foreign pages out while no key protects the door.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ORIGIN, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use cogo_service_runtime::{ApiError, expect_this_machine};

use crate::{Gateway, problems};

const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, x-client-info, apikey, content-type, idempotency-key, traceparent, tracestate, if-none-match, last-event-id",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS");
const EXPOSED: HeaderValue = HeaderValue::from_static("location, retry-after, etag");
/// Seconds for which a browser may remember a preflight; Chromium caps it at two hours.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
/// Seconds after which a caller may ask again when the database was away.
const COME_BACK: HeaderValue = HeaderValue::from_static("2");

/// Runs around every route.
pub(crate) async fn around(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let origin = match allowed_origin(&gateway, request.headers()) {
        Ok(origin) => origin,
        Err(refusal) => return refusal.into_response(),
    };
    let mut response = if request.method() == Method::OPTIONS { preflight() } else { next.run(request).await };
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"cogo\""));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.entry(RETRY_AFTER).or_insert(COME_BACK);
    }
    response
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    response
}

/// The origin that may read the answer.
///
/// With keys it is any: a page must know one. Without keys a foreign page in a browser on this machine could submit
/// work, so it is refused.
fn allowed_origin(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    if !gateway.is_open() {
        return Ok(Some(HeaderValue::from_static("*")));
    }
    expect_this_machine(headers).map_err(|foreign| problems::foreign(&foreign))?;
    Ok(headers.get(ORIGIN).cloned())
}
