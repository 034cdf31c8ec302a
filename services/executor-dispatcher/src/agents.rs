//! Which agent serves a target, as the registry has it.

use cogo_contracts::Route;
use sqlx::PgPool;

/// Name and version that agents have in common.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AgentSort {
    /// Name of the process.
    pub name: String,
    /// Version of the program.
    pub version: String,
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
