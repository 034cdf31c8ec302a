//! How often what happened in the supervision tree, counted from the audit.

use sqlx::PgPool;

use crate::error::Error;

/// Writers of the audit commit within this; rows that are older have all the smaller ids before them.
const SETTLED_AFTER_S: f64 = 60.0;

/// How often one thing happened to one place in the tree.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct TreeEvents {
    /// `tree_spawn`, `tree_terminate`, `tree_transition`, `tree_crash` or `tree_recovery`.
    pub kind: String,
    /// Path in the tree, `fleet` for its root.
    pub agent: String,
    /// Rows up to [`TreeCount::mark`], which will be no more.
    pub settled: i64,
    /// Rows behind it.
    pub recent: i64,
}

/// A count of the tree's events behind a point of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TreeCount {
    /// Up to which row the events are settled; the next count starts behind it.
    pub mark: i64,
    /// The events by kind and place.
    pub events: Vec<TreeEvents>,
}

/// Counts the events of the tree whose rows come after `mark`, 0 for all that the audit still has.
///
/// Whoever adds up what is settled, and starts the next count behind the new mark, has a count that does not shrink when
/// old rows are removed.
///
/// # Errors
/// When the database does not answer.
pub async fn tree_events_after(pool: &PgPool, mark: i64) -> Result<TreeCount, Error> {
    let mut transaction = pool.begin().await?;
    let settled: Option<i64> = sqlx::query_scalar(
        "select max(e.id) from public.bus_events e
          where e.kind in ('tree_spawn', 'tree_terminate', 'tree_transition', 'tree_crash', 'tree_recovery')
            and e.id > $1 and e.at < (select clock_timestamp()) - $2 * interval '1 second'",
    )
    .bind(mark)
    .bind(SETTLED_AFTER_S)
    .fetch_one(&mut *transaction)
    .await?;
    let settled = settled.unwrap_or(mark);
    let events = sqlx::query_as(
        "select e.kind, coalesce(e.detail ->> 'agent', 'fleet') as agent, count(*) filter (where e.id <= $2) as settled,
                count(*) filter (where e.id > $2) as recent
           from public.bus_events e
          where e.kind in ('tree_spawn', 'tree_terminate', 'tree_transition', 'tree_crash', 'tree_recovery')
            and e.id > $1
          group by 1, 2 order by 1, 2",
    )
    .bind(mark)
    .bind(settled)
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(TreeCount { mark: settled, events })
}
