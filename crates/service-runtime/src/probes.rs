//! The HTTP side of a process, on a thread and runtime of its own so that busy work never looks dead.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use cogo_contracts::Problem;
use cogo_telemetry::Exposition;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::error;

use crate::{ApiError, chore::Chores};

/// What the probes tell of the process.
#[derive(Clone, Default)]
pub(crate) struct Health {
    pub(crate) started: Arc<AtomicBool>,
    pub(crate) ready: Arc<AtomicBool>,
    pub(crate) chores: Chores,
}

/// What the HTTP side of a process consists of.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) name: &'static str,
    pub(crate) health: Health,
    pub(crate) exposition: Exposition,
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
}

/// Serves until `stop`; the service's own routes run on the runtime of `work`, only their bytes move here.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn serve(
    served: Served,
    address: SocketAddr,
    work: Handle,
    stop: CancellationToken,
) -> io::Result<thread::JoinHandle<()>> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("http".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let router = router(Probes { served, work });
            let ended = match TcpListener::from_std(listener) {
                Ok(listener) => {
                    let service = router.into_make_service_with_connect_info::<SocketAddr>();
                    tokio::select! {
                        ended = axum::serve(listener, service).into_future() => ended,
                        () = stop.cancelled() => Ok(()),
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                error!(%error, "HTTP side of the process ended");
            }
        });
    })
}

fn router(probes: Probes) -> Router {
    Router::new()
        .route("/livez", get(async || Json(json!({"live": true}))))
        .route("/healthz", get(async || Json(json!({"live": true}))))
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .route("/chores", get(chores))
        .route("/metrics", get(metrics))
        .fallback(forward)
        .with_state(probes)
}

async fn metrics(State(probes): State<Probes>, request: Request<Body>) -> Response {
    if probes.served.service.get().is_some_and(|service| service.own_metrics) {
        return forward(State(probes), request).await;
    }
    let text = probes.served.exposition.prometheus_text();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn startup(State(probes): State<Probes>) -> Response {
    answer("started", probes.served.health.started.load(Ordering::Relaxed))
}

async fn ready(State(probes): State<Probes>) -> Response {
    answer("ready", probes.served.health.ready.load(Ordering::Relaxed))
}

fn answer(what: &str, holds: bool) -> Response {
    let status = if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ what: holds }))).into_response()
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
    match probes.work.spawn(routes.oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => {
            error!(error = %panic, "request handler panicked");
            ApiError::from(Problem::new(500, "internal", "Internal error", "The request could not be served"))
                .into_response()
        }
    }
}
