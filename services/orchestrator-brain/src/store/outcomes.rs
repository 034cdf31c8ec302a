//! Outcomes, what was learned from them, and how far.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use crate::{evaluate::Outcome, update::Stats};

/// Audit rows up to this id were learned from.
pub(crate) async fn events_through(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select events_through from public.orch_progress").fetch_one(pool).await
}

/// Whether work has ended, or an attempt of it, that nobody is known to have learned from.
pub(crate) async fn has_news(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from public.bus_events e
                         where e.kind in ('execute_done', 'execute_retry', 'execute_failed') and e.id > p.events_through)
           from public.orch_progress p",
    )
    .fetch_one(connection)
    .await
}

/// Makes this transaction the only one that learns.
pub(crate) async fn lock_progress(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select one from public.orch_progress for update").execute(connection).await?;
    Ok(())
}

/// Writes outcomes; answers event and target of those that nobody had written and that a known decision led to.
pub(crate) async fn insert_outcomes(
    connection: &mut PgConnection,
    outcomes: &[Outcome],
) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    let column = |of: fn(&Outcome) -> Option<f64>| outcomes.iter().map(of).collect::<Vec<_>>();
    sqlx::query_as(
        "insert into public.orch_outcomes
                (event_id, decision_id, target_id, kind, at, attempt, latency_ms, cost_usd, tokens)
         select o.event_id, d.decision_id, d.target_id, o.kind, o.at, o.attempt, o.latency_ms, o.cost_usd, o.tokens
           from unnest($1::bigint[], $2::uuid[], $3::text[], $4::timestamptz[], $5::smallint[],
                       $6::double precision[], $7::double precision[], $8::bigint[])
                  as o (event_id, decision_id, kind, at, attempt, latency_ms, cost_usd, tokens)
           join public.orch_decisions d on d.decision_id = o.decision_id
         on conflict (event_id) do nothing
         returning event_id, target_id",
    )
    .bind(outcomes.iter().map(|outcome| outcome.event_id).collect::<Vec<_>>())
    .bind(outcomes.iter().map(|outcome| outcome.decision_id).collect::<Vec<_>>())
    .bind(outcomes.iter().map(|outcome| outcome.ending.kind()).collect::<Vec<_>>())
    .bind(outcomes.iter().map(|outcome| outcome.at).collect::<Vec<_>>())
    .bind(outcomes.iter().map(|outcome| outcome.attempt).collect::<Vec<_>>())
    .bind(column(|outcome| outcome.latency_ms))
    .bind(column(|outcome| outcome.spent.map(|spent| spent.cost_usd)))
    .bind(outcomes.iter().map(|outcome| outcome.spent.map(|spent| spent.tokens)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
}

/// Reads what is known of a target, to be changed in this transaction.
pub(crate) async fn stats_of(connection: &mut PgConnection, target: i64) -> Result<Stats, sqlx::Error> {
    let stats: Option<Stats> = sqlx::query_as(
        "select decisions, done, failed, retried, usage_count, cost_usd_sum, tokens_sum, ok_weight, fail_weight,
                latency_ms, learned_at
           from public.orch_stats where target_id = $1 for update",
    )
    .bind(target)
    .fetch_optional(connection)
    .await?;
    Ok(stats.unwrap_or_default())
}

/// Writes what is known of a target, but for the number of decisions, which decisions count themselves.
pub(crate) async fn save_stats(connection: &mut PgConnection, target: i64, stats: &Stats) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update public.orch_stats
            set done = $2, failed = $3, retried = $4, usage_count = $5, cost_usd_sum = $6, tokens_sum = $7,
                ok_weight = $8, fail_weight = $9, latency_ms = $10, learned_at = $11
          where target_id = $1",
    )
    .bind(target)
    .bind(stats.done)
    .bind(stats.failed)
    .bind(stats.retried)
    .bind(stats.usage_count)
    .bind(stats.cost_usd_sum)
    .bind(stats.tokens_sum)
    .bind(stats.ok_weight)
    .bind(stats.fail_weight)
    .bind(stats.latency_ms)
    .bind(stats.learned_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves the mark up to the newest of these audit rows that is older than `settled`.
///
/// Ids are given before a commit, so a row may appear below one that was seen already; rows younger than the longest
/// such commit are therefore looked at again.
pub(crate) async fn advance_progress(
    connection: &mut PgConnection,
    ids: &[i64],
    times: &[DateTime<Utc>],
    settled: Duration,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update public.orch_progress as p
            set events_through = s.through
           from (select max(e.id) as through from unnest($1::bigint[], $2::timestamptz[]) as e (id, at)
                  where e.at < clock_timestamp() - $3 * interval '1 second') as s
          where p.events_through < s.through",
    )
    .bind(ids)
    .bind(times)
    .bind(settled.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}
