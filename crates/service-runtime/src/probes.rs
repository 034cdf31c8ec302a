//! The HTTP side of a process, on a thread and runtime of its own so that busy work never looks dead.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use cogo_contracts::Problem;
use cogo_telemetry::Exposition;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::error;

use crate::{
    ApiError,
    guard::expect_this_machine,
    health::Health,
    listen::{Ending, listen},
};

/// How long a caller may take to send the headers of a request.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the HTTP side of a process consists of.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) name: &'static str,
    pub(crate) health: Health,
    pub(crate) exposition: Exposition,
    /// Whether only callers on this machine, and no foreign page in a browser on it, are answered.
    pub(crate) guarded: bool,
    pub(crate) header_timeout: Duration,
    /// Set once the service has started; until then only the probes answer.
    pub(crate) service: Arc<OnceLock<ServiceRoutes>>,
}

/// The service's own routes.
pub(crate) struct ServiceRoutes {
    pub(crate) router: Router,
    /// Whether they answer `/metrics` instead of the frame.
    pub(crate) own_metrics: bool,
}

#[derive(Clone)]
struct Probes {
    served: Served,
    work: Handle,
    requests: TaskTracker,
}

/// Serves until its end; the service's own routes run on the runtime of `work`, only their bytes move here.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn serve(
    served: Served,
    listener: std::net::TcpListener,
    work: Handle,
    ending: Ending,
) -> io::Result<thread::JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("http".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let header_timeout = served.header_timeout;
            let router = router(Probes { served, work, requests: ending.requests.clone() });
            if let Err(error) = listen(listener, router, header_timeout, ending).await {
                error!(%error, "HTTP side of the process ended");
            }
        });
    })
}

fn router(probes: Probes) -> Router {
    let mut open_to_callers = Router::new()
        .route("/chores", get(chores))
        .route("/metrics", get(metrics))
        .fallback(forward)
        .with_state(probes.clone());
    if probes.served.guarded {
        open_to_callers = open_to_callers.layer(from_fn(this_machine_only));
    }
    Router::new()
        .route("/livez", get(live))
        .route("/healthz", get(live))
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .with_state(probes)
        .fallback_service(open_to_callers)
}

async fn this_machine_only(request: Request, next: Next) -> Response {
    match expect_this_machine(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(foreign) => ApiError::from(foreign).into_response(),
    }
}

/// Fails when a loop of the process has not turned for so long that only a restart helps, or a liveness probe says so.
async fn live(State(probes): State<Probes>) -> Response {
    answer(probes.served.health.live())
}

async fn metrics(State(probes): State<Probes>, request: Request<Body>) -> Response {
    if probes.served.service.get().is_some_and(|service| service.own_metrics) {
        return forward(State(probes), request).await;
    }
    let text = probes.served.exposition.prometheus_text();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn startup(State(probes): State<Probes>) -> Response {
    answer(probes.served.health.has_started())
}

async fn ready(State(probes): State<Probes>) -> Response {
    answer(probes.served.health.is_ready())
}

fn answer((holds, body): (bool, Value)) -> Response {
    let status = if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn chores(State(probes): State<Probes>) -> Json<Value> {
    Json(json!({"process": probes.served.name, "chores": probes.served.health.chores.reports()}))
}

/// Runs the request on the work runtime, where the pool and the handlers live.
async fn forward(State(probes): State<Probes>, request: Request<Body>) -> Response {
    let Some(service) = probes.served.service.get() else {
        let problem = Problem::new(503, "starting", "Not started yet", "The process waits for its database");
        return ApiError::from(problem).into_response();
    };
    let routes = service.router.clone();
    match probes.requests.spawn_on(routes.oneshot(request), &probes.work).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => {
            error!(error = %panic, "request handler panicked");
            ApiError::from(Problem::new(500, "internal", "Internal error", "The request could not be served"))
                .into_response()
        }
    }
}
