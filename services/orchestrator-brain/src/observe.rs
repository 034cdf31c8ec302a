//! Observe: reads how dispatched work ended and lets each outcome be learned from once.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use cogo_bus_core::{Event, execution_events_after};
use cogo_db::Kept;
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::{
    brain::Brain,
    evaluate::{Outcome, outcome},
    store,
};

/// Audit rows read at once.
const PAGE: u32 = 500;
/// Longer than a transaction that writes an audit row may reasonably take; rows younger than this are read again.
const SETTLED: Duration = Duration::from_secs(5);

/// Learns from everything new; answers how many outcomes were learned from. Safe to run twice and at once.
///
/// # Errors
/// When the database does not answer; what was not committed is learned at the next call.
pub async fn observe(pool: &PgPool, half_life: Duration) -> anyhow::Result<usize> {
    let mut after = store::events_through(pool).await.context("read how far was learned")?;
    let mut learned = 0;
    loop {
        let events = execution_events_after(pool, after, PAGE).await.context("read how work ended")?;
        let Some(last) = events.last() else { return Ok(learned) };
        after = last.id;
        learned += learn(pool, &events, half_life).await.context("learn from outcomes")?;
        if events.len() < PAGE as usize {
            return Ok(learned);
        }
    }
}

/// What looks every other second: at what happened, and at targets and agents.
#[derive(Debug)]
pub struct Lookout(Mutex<Kept>);

impl Lookout {
    /// Looks at the database of this pool.
    #[must_use]
    pub fn new(pool: &PgPool) -> Self {
        Self(Mutex::new(Kept::beside(pool)))
    }

    /// Makes the brain see how things are, and learns from what is new; answers how many outcomes were learned from.
    ///
    /// # Errors
    /// When the database does not answer; what was not learned is learned at the next look.
    pub async fn look(&self, brain: &Brain) -> anyhow::Result<usize> {
        let mut kept = self.0.lock().await;
        let seen = kept.ask(brain, |connection, brain| {
            Box::pin(async move {
                match brain.refresh_by(connection).await? {
                    Some(seen) => Ok(seen),
                    None => store::has_news(connection).await.context("look whether work has ended"),
                }
            })
        });
        if !seen.await.context("ask how things are")?? {
            return Ok(0);
        }
        let learned = observe(brain.pool(), brain.policy().half_life()).await?;
        let shown = kept.ask(brain, |connection, brain| Box::pin(brain.refresh_by(connection)));
        shown.await.context("ask how things are now")??;
        Ok(learned)
    }
}

/// Outcomes, statistics and the mark move in one transaction, so a crash neither loses nor repeats any.
async fn learn(pool: &PgPool, events: &[Event], half_life: Duration) -> Result<usize, sqlx::Error> {
    let outcomes: Vec<Outcome> = events.iter().filter_map(outcome).collect();
    let ids: Vec<i64> = events.iter().map(|event| event.id).collect();
    let times: Vec<_> = events.iter().map(|event| event.at).collect();
    let mut transaction = pool.begin().await?;
    store::lock_progress(&mut transaction).await?;
    let fresh: BTreeMap<i64, i64> = store::insert_outcomes(&mut transaction, &outcomes).await?.into_iter().collect();
    let mut by_target: BTreeMap<i64, Vec<&Outcome>> = BTreeMap::new();
    for outcome in &outcomes {
        if let Some(&target) = fresh.get(&outcome.event_id) {
            by_target.entry(target).or_default().push(outcome);
        }
    }
    for (target, outcomes) in by_target {
        let mut stats = store::stats_of(&mut transaction, target).await?;
        for outcome in outcomes {
            stats.learn(outcome, half_life);
        }
        store::save_stats(&mut transaction, target, &stats).await?;
    }
    store::advance_progress(&mut transaction, &ids, &times, SETTLED).await?;
    transaction.commit().await?;
    Ok(fresh.len())
}
