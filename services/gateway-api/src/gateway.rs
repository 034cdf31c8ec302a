//! What every request shares, and the routes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::ensure;
use axum::{
    Json, Router,
    extract::State,
    middleware,
    routing::{get, post, put},
};
use cogo_bus_core::{Bus, WakeUps};
use cogo_contracts::Task;
use cogo_registry_core::SchemaRegistry;
use cogo_service_runtime::{ApiError, Dependency};
use cogo_telemetry::BusMetrics;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    Settings,
    access::{Access, Keys},
    artifacts,
    database::Database,
    intents::Intents,
    origin, problems, socket, sse, submit, tasks,
};

/// Uploads at once, each of at most 16 MiB; a quarter of a gigabyte is what a small machine can spare.
const UPLOADS: usize = 16;

/// What the front door needs of its process.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where tasks are sent and read.
    pub bus: Bus,
    /// What is sent is held against, where its route has a schema.
    pub schemas: SchemaRegistry,
    /// Hints that a task changed.
    pub wakeups: WakeUps,
    /// Instruments that count what was sent.
    pub metrics: BusMetrics,
    /// Guards the database; see [`database_guard`](crate::database_guard).
    pub database: Dependency,
    /// Ends streams and waits.
    pub stop: CancellationToken,
    /// Where streams run.
    pub tracker: TaskTracker,
}

/// What every request shares.
pub struct Gateway {
    parts: Parts,
    keys: Keys,
    intents: Intents,
    database: Database,
    watcher: String,
    uploads: Semaphore,
}

impl Gateway {
    /// A front door.
    ///
    /// # Errors
    /// When an entry of `api_keys` cannot be used.
    pub fn new(parts: Parts, settings: &Settings) -> anyhow::Result<Self> {
        let keys = Keys::parse(&settings.api_keys)?;
        let database = Database::new(parts.database.clone());
        let intents = Intents::new(parts.bus.pool().clone(), database.clone());
        let watcher = format!("gateway-api#{}", Uuid::now_v7().simple());
        Ok(Self { parts, keys, intents, database, watcher, uploads: Semaphore::new(UPLOADS) })
    }

    /// Whether it takes requests without a key.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Refuses to stand open on an address that others can reach.
    ///
    /// # Errors
    /// When no key is configured and the address is not a loopback one.
    pub fn expect_safe(&self, bind: IpAddr) -> anyhow::Result<()> {
        ensure!(
            !self.is_open() || bind.is_loopback(),
            "No API key is configured and {bind} is not a loopback address, so anyone could submit work; \
             set COGO_API_KEYS to one or more keys, or COGO_BIND to 127.0.0.1"
        );
        Ok(())
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn intents(&self) -> &Intents {
        &self.intents
    }

    pub(crate) fn uploads(&self) -> &Semaphore {
        &self.uploads
    }

    /// The task as the caller may see it; another tenant's is as absent as one that never was.
    pub(crate) async fn task(&self, id: Uuid, access: &Access) -> Result<Task, ApiError> {
        let task = self.database.answered(self.parts.bus.task(id)).await?;
        task.filter(|task| access.covers(&task.tenant)).ok_or_else(|| problems::no_such_task(id))
    }

    /// Asks the bus to announce changes of the task for a while.
    pub(crate) async fn watch(&self, id: Uuid, time: Duration) -> Result<(), ApiError> {
        self.database.answered(self.parts.bus.watch(id, &self.watcher, time)).await
    }
}

/// The routes of the front door.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/", get(about))
        .route("/functions/v1/orchestrator-chat", post(submit::submit))
        .route("/tasks/submit", post(submit::submit))
        .route("/tasks/{id}", get(tasks::show).delete(tasks::cancel))
        .route("/tasks/{id}/result", get(tasks::result))
        .route("/tasks/{id}/stream", get(sse::stream))
        .route("/tasks/stream/{id}", get(socket::stream))
        .route("/artifacts", put(artifacts::put))
        .route("/artifacts/{digest}", get(artifacts::get))
        .fallback(async || problems::no_such_route())
        .method_not_allowed_fallback(async || problems::wrong_method())
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), origin::around))
        .with_state(gateway)
}

async fn about(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    let auth = if gateway.is_open() { "open on loopback" } else { "api key" };
    Json(json!({
        "service": "cogo-gateway-api",
        "version": env!("CARGO_PKG_VERSION"),
        "auth": auth,
        "routes": [
            "POST /functions/v1/orchestrator-chat",
            "POST /tasks/submit",
            "GET /tasks/{id}",
            "GET /tasks/{id}/result?wait_ms=",
            "DELETE /tasks/{id}",
            "GET /tasks/{id}/stream",
            "GET /tasks/stream/{id} (server-sent events or WebSocket)",
            "PUT /artifacts",
            "GET /artifacts/{digest}",
        ],
    }))
}
