//! Which agent serves a target, as the registry has it: out of the copy in memory, else out of the database.

use cogo_contracts::Route;
use cogo_registry_core::{Query, View};
use cogo_service_runtime::{Claim, Dependency, HandlerError};
use sqlx::PgPool;
use tracing::debug;

/// Name and version that agents have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, sqlx::FromRow)]
pub struct AgentSort {
    /// Name of the process.
    pub name: String,
    /// Version of the program.
    pub version: String,
}

/// Knows who serves what.
#[derive(Debug, Clone)]
pub struct Agents {
    view: View,
    pool: PgPool,
    database: Dependency,
}

/// What the copy in memory says of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It is too old to say anything.
    Nothing,
    /// Nobody declares the route; a target in the database may still name somebody.
    Nobody,
    /// The agents that declare it are all of this sort; none if they are of several.
    Served(Option<AgentSort>),
}

impl Agents {
    /// Looks in this copy first, and in the database under this guard.
    #[must_use]
    pub fn new(view: View, pool: PgPool, database: Dependency) -> Self {
        Self { view, pool, database }
    }

    /// What the copy in memory says of the active agents of a route.
    #[must_use]
    pub fn known(&self, route: &Route) -> Known {
        let Ok(found) = self.view.discover(&Query::capability(&format!("route:{route}"))) else {
            return Known::Nothing;
        };
        let sort = |id: &cogo_contracts::AgentId| AgentSort { name: id.name.clone(), version: id.version.to_string() };
        let mut sorts: Vec<AgentSort> = found.value.iter().map(|entry| sort(&entry.id)).collect();
        sorts.sort_unstable();
        sorts.dedup();
        match sorts.len() {
            0 => Known::Nobody,
            1 => Known::Served(sorts.pop()),
            _ => Known::Served(None),
        }
    }

    /// The sort of the active agents of a route; none unless there is exactly one. A database that is not asked, because
    /// it fails, costs the name of the agent and not the dispatch.
    ///
    /// # Errors
    /// When the copy does not know and the database, asked, does not answer.
    pub(crate) async fn of(&self, route: &Route, claim: &Claim) -> Result<Option<AgentSort>, HandlerError> {
        if let Known::Served(sort) = self.known(route) {
            return Ok(sort);
        }
        let unanswered = match claim.call(&self.database, agent_of(&self.pool, route), |_away| true).await {
            Ok(sort) => return Ok(sort),
            Err(unanswered) => unanswered,
        };
        match unanswered.failure() {
            Ok(error) => Err(anyhow::Error::from(error).context("look for agents of the target").into()),
            Err(not_asked) => {
                debug!(%route, reason = %not_asked, "dispatched without the name of an agent");
                Ok(None)
            }
        }
    }
}

/// The sort of the active agents of a route; none unless there is exactly one.
///
/// # Errors
/// When the database does not answer.
pub async fn agent_of(pool: &PgPool, route: &Route) -> Result<Option<AgentSort>, sqlx::Error> {
    let mut sorts: Vec<AgentSort> =
        sqlx::query_as("select name, version from public.orch_agents_of($1, $2, $3) limit 2")
            .bind(route.service())
            .bind(route.role())
            .bind(i32::from(route.shard()))
            .fetch_all(pool)
            .await?;
    Ok(if sorts.len() == 1 { sorts.pop() } else { None })
}
