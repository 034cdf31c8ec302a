//! What is read from the database for one look at the fleet.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use cogo_bus_core::{Event, FailureGroup, RecentMessage, Summary};
use cogo_contracts::AgentState;
use cogo_registry_core::{Agent, Registry};
use cogo_service_runtime::ApiError;
use serde::Serialize;
use sqlx::PgPool;

/// Window of the page's figures.
pub(crate) const WINDOW: Duration = Duration::from_secs(300);
/// Rows of each list on the page.
const ROWS: u32 = 50;

/// The figures, in the form that callers know.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SummaryView {
    /// Version of this form.
    v: u8,
    at: DateTime<Utc>,
    /// Milliseconds between the moment of the figures and the answer.
    age_ms: u64,
    window_s: f64,
    /// Whether no figure reached its cap.
    exact: bool,
    bus: Summary,
    /// Living agents by state.
    agents: BTreeMap<&'static str, usize>,
}

/// Everything that the page shows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Snapshot {
    /// Milliseconds until the next one, so that a page knows when it is late.
    pub(crate) next_in_ms: u64,
    #[serde(flatten)]
    summary: SummaryView,
    #[serde(rename = "agentList")]
    agent_list: Vec<Agent>,
    messages: Vec<RecentMessage>,
    events: Vec<Event>,
    failures: Vec<FailureGroup>,
}

impl SummaryView {
    pub(crate) async fn read(pool: &PgPool, window: Duration) -> Result<Self, ApiError> {
        let started = Instant::now();
        let bus = cogo_bus_core::summary(pool, window).await.map_err(database)?;
        let agents = agents(pool).await?;
        Ok(Self::new(bus, &agents, started))
    }

    fn new(bus: Summary, agents: &[Agent], started: Instant) -> Self {
        let capped = bus.capped;
        Self {
            v: 1,
            at: bus.at,
            age_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            window_s: bus.window_s,
            exact: !(capped.queued || capped.claimed || capped.done || capped.failed || capped.cancelled),
            agents: by_state(agents),
            bus,
        }
    }
}

impl Snapshot {
    pub(crate) async fn read(pool: &PgPool) -> Result<Self, ApiError> {
        let agent_list = agents(pool).await?;
        let messages = cogo_bus_core::recent_messages(pool, ROWS).await.map_err(database)?;
        let mut events = cogo_bus_core::recent_events(pool, None, None, ROWS).await.map_err(database)?;
        events.reverse();
        let failures = cogo_bus_core::failures(pool, ROWS).await.map_err(database)?;
        let started = Instant::now();
        let bus = cogo_bus_core::summary(pool, WINDOW).await.map_err(database)?;
        let summary = SummaryView::new(bus, &agent_list, started);
        Ok(Self { next_in_ms: 0, summary, agent_list, messages, events, failures })
    }
}

/// The living agents.
pub(crate) async fn agents(pool: &PgPool) -> Result<Vec<Agent>, ApiError> {
    Registry::new(pool.clone()).list().await.map_err(|error| match error {
        cogo_registry_core::Error::Database(source) => database(source.into()),
        other => ApiError::internal(&anyhow::Error::from(other)),
    })
}

/// Every state that an agent can be in with how many are, so that a state never vanishes from a chart.
pub(crate) fn by_state(agents: &[Agent]) -> BTreeMap<&'static str, usize> {
    let living = AgentState::ALL.into_iter().filter(|state| *state != AgentState::Terminated);
    living.map(|state| (state.as_str(), agents.iter().filter(|agent| agent.state == state).count())).collect()
}

/// A figure that would take too long is told apart from a database that is away.
pub(crate) fn database(error: cogo_bus_core::Error) -> ApiError {
    if let cogo_bus_core::Error::Database(source) = &error
        && source.as_database_error().and_then(|refusal| refusal.code()).as_deref() == Some("57014")
    {
        let problem = cogo_contracts::Problem::new(
            503,
            "too-slow",
            "Figure takes too long",
            "The database needed more than 2 s for this figure and was stopped, so that the bus stays fast",
        );
        return ApiError::from(problem.hint("Ask again later or over a shorter window"));
    }
    ApiError::from(error)
}
