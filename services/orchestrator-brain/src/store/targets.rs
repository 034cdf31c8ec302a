//! Targets with what is known of them, and what tenants have indexed.

use chrono::{DateTime, Utc};
use cogo_contracts::Route;
use cogo_registry_core::{Query, Stale, View};
use sqlx::{PgConnection, PgPool};

use crate::{
    scorers::kg::Coverage,
    sense::{Snapshot, Target},
    update::Stats,
};

#[derive(sqlx::FromRow)]
struct TargetRow {
    target_id: i64,
    intent: String,
    tenant: Option<String>,
    service: String,
    role: String,
    shard: i32,
    agent: Option<String>,
    model: Option<String>,
    slo_ms: f64,
    ttl_ms: i64,
    max_cost_usd: Option<f64>,
    max_tokens: Option<i64>,
    price_usd_per_1k_tokens: Option<f64>,
    cost_prior_usd: f64,
    uses_knowledge: bool,
    live: bool,
    seen_at: DateTime<Utc>,
    news: bool,
    #[sqlx(flatten)]
    stats: Stats,
}

impl TryFrom<TargetRow> for Target {
    type Error = anyhow::Error;

    fn try_from(row: TargetRow) -> anyhow::Result<Self> {
        let id = row.target_id;
        let route = u16::try_from(row.shard)
            .map_err(anyhow::Error::from)
            .and_then(|shard| Ok(Route::new(&row.service, &row.role, shard)?))
            .map_err(|error| error.context(format!("Row {id} of orch_targets has no usable route")))?;
        Ok(Self {
            id,
            intent: row.intent,
            tenant: row.tenant,
            route,
            model: row.model,
            slo_ms: row.slo_ms,
            ttl_ms: row.ttl_ms.unsigned_abs(),
            max_cost_usd: row.max_cost_usd,
            max_tokens: row.max_tokens.map(i64::unsigned_abs),
            price_usd_per_1k_tokens: row.price_usd_per_1k_tokens,
            cost_prior_usd: row.cost_prior_usd,
            uses_knowledge: row.uses_knowledge,
            live: row.live,
            stats: row.stats,
            seen_at: row.seen_at,
        })
    }
}

/// Whether an active agent declares the route, or is the one that the target names; an error if the copy of the registry
/// is too old to tell.
fn lives(view: &View, route: &Route, agent: Option<&str>) -> Result<bool, Stale> {
    let any = |query: Query| Ok(!view.discover(&query.limit(1))?.value.is_empty());
    Ok(any(Query::capability(&format!("route:{route}")))?
        || agent.is_some_and(|name| any(Query::name(name)) == Ok(true)))
}

/// How things are.
pub(crate) struct Seen {
    pub(crate) snapshot: Snapshot,
    /// As [`has_news`](super::has_news); not known where there is no target.
    pub(crate) news: Option<bool>,
}

/// All enabled targets with what was learned of them and whether an active agent serves them: out of the copy of the
/// registry if there is one that can tell, else out of the database.
pub(crate) async fn load_snapshot(connection: &mut PgConnection, view: Option<&View>) -> anyhow::Result<Seen> {
    if let Some(view) = view.filter(|view| view.look(|_| ()).is_ok()) {
        let mut rows = read_targets(connection, AskRegistry::No).await?;
        let asked: Result<(), Stale> = rows.iter_mut().try_for_each(|row| {
            row.target.live = lives(view, &row.target.route, row.agent.as_deref())?;
            Ok(())
        });
        if asked.is_ok() {
            return Ok(Seen::of(rows));
        }
    }
    Ok(Seen::of(read_targets(connection, AskRegistry::Yes).await?))
}

impl Seen {
    fn of(rows: Vec<Row>) -> Self {
        let news = rows.first().map(|row| row.news);
        Self { snapshot: Snapshot { targets: rows.into_iter().map(|row| row.target).collect() }, news }
    }
}

/// Whether the database shall say who lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AskRegistry {
    Yes,
    No,
}

/// A target and what came with it.
struct Row {
    target: Target,
    /// The agent that it names.
    agent: Option<String>,
    news: bool,
}

/// All enabled targets; beside each whether there are news, which spares whoever looks for both a statement.
async fn read_targets(connection: &mut PgConnection, ask: AskRegistry) -> anyhow::Result<Vec<Row>> {
    let rows: Vec<TargetRow> = sqlx::query_as(
        "select t.target_id, t.intent, t.tenant, t.service, t.role, t.shard, t.agent, t.model,
                t.slo_ms::double precision as slo_ms, t.ttl_ms, t.max_cost_usd, t.max_tokens,
                t.price_usd_per_1k_tokens, t.cost_prior_usd, t.uses_knowledge,
                $1 and exists (select from public.orch_agents_of(t.service, t.role, t.shard)) as live,
                clock_timestamp() as seen_at,
                exists (select from public.bus_events e
                         where e.kind in ('execute_done', 'execute_retry', 'execute_failed')
                           and e.id > (select p.events_through from public.orch_progress p)) as news,
                coalesce(s.decisions, 0) as decisions, coalesce(s.done, 0) as done, coalesce(s.failed, 0) as failed,
                coalesce(s.retried, 0) as retried, coalesce(s.usage_count, 0) as usage_count,
                coalesce(s.cost_usd_sum, 0) as cost_usd_sum, coalesce(s.tokens_sum, 0) as tokens_sum,
                coalesce(s.ok_weight, 0) as ok_weight, coalesce(s.fail_weight, 0) as fail_weight,
                s.latency_ms, s.learned_at
           from public.orch_targets t
           left join public.orch_stats s on s.target_id = t.target_id
          where t.enabled
          order by t.target_id",
    )
    .bind(ask == AskRegistry::Yes)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|mut row| {
            let (agent, news) = (row.agent.take(), row.news);
            Ok(Row { target: Target::try_from(row)?, agent, news })
        })
        .collect()
}

/// Intents that some enabled target serves, sorted; what the front door lets in.
///
/// # Errors
/// When the database does not answer.
pub async fn known_intents(pool: &PgPool) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select distinct intent from public.orch_targets where enabled order by intent")
        .fetch_all(pool)
        .await
}

/// Whether the tenant has anything indexed, or the collection if one is named.
pub(crate) async fn coverage(pool: &PgPool, tenant: &str, collection: Option<&str>) -> Result<Coverage, sqlx::Error> {
    let asked: Result<bool, sqlx::Error> = sqlx::query_scalar(
        "select exists (select from public.rag_scopes
                         where tenant = $1 and ($2::text is null or collection = $2) and chunk_count > 0)",
    )
    .bind(tenant)
    .bind(collection)
    .fetch_one(pool)
    .await;
    match asked {
        Ok(true) => Ok(Coverage::Indexed),
        Ok(false) => Ok(Coverage::Nothing),
        // the tables of retrieval belong to another crate; without them nothing is known
        Err(error) if error.as_database_error().is_some_and(|refusal| refusal.code().as_deref() == Some("42P01")) => {
            Ok(Coverage::Unknown)
        }
        Err(error) => Err(error),
    }
}
