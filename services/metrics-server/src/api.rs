//! The routes and what they answer.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    routing::get,
};
use cogo_bus_core::{Event, FailureGroup, RecentMessage};
use cogo_contracts::Problem;
use cogo_registry_core::Agent;
use cogo_service_runtime::{ApiError, Dependencies};
use cogo_telemetry::Exposition;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{
    agents::Agents,
    live::{self, Live},
    page, scrape,
    snapshot::{self, SummaryView, WINDOW, database},
    tree::Tree,
};

const LONGEST_WINDOW_S: u64 = 86_400;
const MAX_LIMIT: u32 = 500;
const DEFAULT_LIMIT: u32 = 50;

/// What the routes share.
#[derive(Debug, Clone)]
pub struct Console {
    pub(crate) pool: PgPool,
    pub(crate) exposition: Exposition,
    pub(crate) live: Live,
    pub(crate) agents: Option<Agents>,
    pub(crate) tree: Tree,
}

impl Console {
    /// Reads through `pool`, shows the process's own metrics from `exposition`, ends its streams when `stop` fires.
    #[must_use]
    pub fn new(pool: PgPool, exposition: Exposition, stop: CancellationToken) -> Self {
        let live = Live::new(pool.clone(), stop);
        Self { pool, exposition, live, agents: None, tree: Tree::default() }
    }

    /// Asks each agent for its own figures at every scrape, under guards of this process.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn asking_agents(mut self, dependencies: Dependencies) -> anyhow::Result<Self> {
        self.agents = Some(Agents::new(dependencies)?);
        Ok(self)
    }

    /// Reads for the live stream while someone watches; to be spawned once.
    pub fn sample_while_watched(&self) -> impl Future<Output = ()> + Send + 'static {
        self.live.clone().sample()
    }
}

/// All routes of the process but the probes.
pub fn router(console: Console) -> Router {
    Router::new()
        .route("/api/metrics/summary", get(summary))
        .route("/api/metrics/bus/events", get(events))
        .route("/api/metrics/bus/failures", get(failures))
        .route("/api/metrics/bus/messages", get(messages))
        .route("/api/metrics/agents", get(agents))
        .route("/api/metrics/stream", get(live::stream))
        .route("/metrics", get(scrape::metrics))
        .merge(page::routes())
        .fallback(async || ApiError::not_found("There is nothing under this address"))
        .method_not_allowed_fallback(async || {
            ApiError::from(Problem::new(405, "method-not-allowed", "Method not allowed", "Only GET is answered here"))
        })
        .with_state(console)
}

/// A list; `next` is what `after` continues it with.
#[derive(Debug, Serialize)]
struct Page<T> {
    items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SummaryQuery {
    window: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<i64>,
    kind: Option<String>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u32>,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

async fn summary(State(console): State<Console>, query: Asked<SummaryQuery>) -> Result<Json<SummaryView>, ApiError> {
    let window = asked(query)?.window.unwrap_or(WINDOW.as_secs());
    if !(1..=LONGEST_WINDOW_S).contains(&window) {
        return Err(ApiError::bad_request(format!("window is 1 to {LONGEST_WINDOW_S} seconds, not {window}")));
    }
    Ok(Json(SummaryView::read(&console.pool, Duration::from_secs(window)).await?))
}

async fn events(State(console): State<Console>, query: Asked<EventsQuery>) -> Result<Json<Page<Event>>, ApiError> {
    let EventsQuery { after, kind, limit } = asked(query)?;
    let limit = checked(limit)?;
    if kind.as_deref().is_some_and(|kind| kind.contains('\0')) {
        return Err(ApiError::bad_request("kind is a word such as execute_failed"));
    }
    let items = cogo_bus_core::recent_events(&console.pool, after, kind.as_deref(), limit).await.map_err(database)?;
    // also where nothing is new: a reader that polls goes on from where it stands
    let next = items.last().map(|event| event.id).or(after);
    Ok(Json(Page { items, next }))
}

async fn failures(
    State(console): State<Console>,
    query: Asked<ListQuery>,
) -> Result<Json<Page<FailureGroup>>, ApiError> {
    let limit = checked(asked(query)?.limit)?;
    let items = cogo_bus_core::failures(&console.pool, limit).await.map_err(database)?;
    Ok(Json(Page { items, next: None }))
}

async fn messages(
    State(console): State<Console>,
    query: Asked<ListQuery>,
) -> Result<Json<Page<RecentMessage>>, ApiError> {
    let limit = checked(asked(query)?.limit)?;
    let items = cogo_bus_core::recent_messages(&console.pool, limit).await.map_err(database)?;
    Ok(Json(Page { items, next: None }))
}

async fn agents(State(console): State<Console>) -> Result<Json<Page<Agent>>, ApiError> {
    Ok(Json(Page { items: snapshot::agents(&console.pool).await?, next: None }))
}

fn asked<T>(query: Asked<T>) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|rejection| ApiError::bad_request(rejection.body_text()))
}

fn checked(limit: Option<u32>) -> Result<u32, ApiError> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::bad_request(format!("limit is 1 to {MAX_LIMIT}, not {limit}")))
    }
}
