//! Who may connect as a worker or look at live output.

use std::{
    hint::black_box,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
};
use cogo_contracts::Problem;
use cogo_service_runtime::{ApiError, Secret, expect_this_machine};
use sha2::{Digest, Sha256};

use crate::Manager;

/// Proof that the caller may, as an argument of handlers.
pub(crate) struct Admitted;

impl FromRequestParts<Arc<Manager>> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, manager: &Arc<Manager>) -> Result<Self, ApiError> {
        match &manager.settings().worker_token {
            Some(token) => with_token(token, &parts.headers),
            None => {
                let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
                from_this_machine(peer, &parts.headers)
            }
        }
    }
}

fn with_token(token: &Secret, headers: &HeaderMap) -> Result<Admitted, ApiError> {
    let presented = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let presented = presented.strip_prefix("Bearer ").unwrap_or_default();
    let (expected, given) = (Sha256::digest(token.reveal()), Sha256::digest(presented.trim()));
    let difference = expected.iter().zip(&given).fold(0, |difference, (left, right)| difference | (left ^ right));
    if black_box(difference) == 0 {
        return Ok(Admitted);
    }
    let problem =
        Problem::new(401, "unauthorized", "Not authorized", "The worker token is missing or not the right one");
    Err(problem.hint("Send Authorization: Bearer <worker_token>").into())
}

/// Neither another machine nor a foreign page in a browser on this one.
fn from_this_machine(peer: Option<IpAddr>, headers: &HeaderMap) -> Result<Admitted, ApiError> {
    if peer.is_some_and(|peer| peer.is_loopback()) && expect_this_machine(headers).is_ok() {
        return Ok(Admitted);
    }
    let detail = "No worker token is configured, so only callers on this machine are let in";
    let problem = Problem::new(403, "this-machine-only", "Open to this machine only", detail);
    Err(problem.hint("Set COGO_SANDBOX_MANAGER_WORKER_TOKEN and present it").into())
}
