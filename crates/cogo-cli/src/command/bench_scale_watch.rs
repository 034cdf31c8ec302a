//! What `cogo bench scale` sees: steps with what came of them, the decisions, and what became of the messages.
//!
//! All times are the database's.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use cogo_registry_core::{Agent, Pools, Registry, ScalingDecision};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{command::bench_scale_fleet::PROCESS, failure::Failure};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// More than are made in a run of a day.
const DECISIONS: u32 = 10_000;

/// One load step and what came of it, in seconds from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Instances that worked before.
    pub(crate) instances_before: usize,
    /// Until the decision for more of them was written down.
    pub(crate) decided_s: Option<f64>,
    /// Until a new one was in the registry.
    pub(crate) registered_s: Option<f64>,
    /// Until a new one claimed its first message.
    pub(crate) working_s: Option<f64>,
}

impl Step {
    pub(crate) fn summary(&self) -> String {
        let time = |seconds: Option<f64>| seconds.map_or_else(|| "never".to_owned(), |s| format!("{s:.1} s"));
        format!(
            "decided after {}, new instance registered after {}, working after {}",
            time(self.decided_s),
            time(self.registered_s),
            time(self.working_s)
        )
    }
}

/// What became of everything that was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub(crate) struct Account {
    pub(crate) sent: i64,
    pub(crate) done: i64,
    pub(crate) failed: i64,
    /// Done by a second or later claim: its first worker was stopped before it was done.
    pub(crate) repeated: i64,
}

/// Everything that is seen.
pub(crate) struct Watch {
    pool: PgPool,
    /// When each period began, and when the last one ended.
    pub(crate) edges: Vec<DateTime<Utc>>,
    pub(crate) steps: Vec<Step>,
    /// In the order of writing.
    pub(crate) decisions: Vec<ScalingDecision>,
    pub(crate) account: Account,
}

impl Watch {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, edges: Vec::new(), steps: Vec::new(), decisions: Vec::new(), account: Account::default() }
    }

    /// A period begins.
    pub(crate) async fn edge(&mut self) -> Result<DateTime<Utc>, Failure> {
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?;
        self.edges.push(now);
        Ok(now)
    }

    /// The last period ends.
    pub(crate) async fn end(&mut self) -> Result<(), Failure> {
        self.edge().await?;
        self.decisions = self.read_decisions().await?;
        Ok(())
    }

    /// Waits until everything that was sent has ended, and counts it.
    pub(crate) async fn account(&mut self, sent: Vec<Uuid>, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            self.account = sqlx::query_as(
                "select count(*) as sent, count(*) filter (where m.status = 'done') as done,
                        count(*) filter (where m.status = 'failed') as failed,
                        count(*) filter (where m.attempts > 1) as repeated
                   from unnest($1::uuid[]) as s (id) left join public.agent_messages m on m.id = s.id",
            )
            .bind(&sent)
            .fetch_one(&self.pool)
            .await?;
            let is_over = self.account.done + self.account.failed >= self.account.sent;
            if is_over || Instant::now() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn read_decisions(&self) -> Result<Vec<ScalingDecision>, Failure> {
        let mut decisions = Pools::new(self.pool.clone()).decisions(PROCESS, DECISIONS).await?;
        decisions.reverse();
        Ok(decisions)
    }

    async fn instances(&self) -> Result<Vec<Agent>, Failure> {
        let mut agents = Registry::new(self.pool.clone()).list().await?;
        agents.retain(|agent| agent.id.name == PROCESS && agent.ended_at.is_none());
        Ok(agents)
    }

    /// The first claim of any of these holders.
    async fn first_claim(&self, holders: &[String], since: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Failure> {
        let first = sqlx::query_scalar(
            "select min(m.claimed_at) from public.agent_messages m
              where m.created_at >= $2 - interval '1 hour' and m.claimed_by = any ($1) and m.claimed_at >= $2",
        );
        Ok(first.bind(holders).bind(since).fetch_one(&self.pool).await?)
    }
}

/// Looks until a new instance works, at most so long.
pub(crate) async fn step_of(watch: &Watch, edge: DateTime<Utc>, patience: Duration) -> Result<Step, Failure> {
    let deadline = Instant::now() + patience;
    let before = watch.instances().await?;
    let before: Vec<&Agent> = before.iter().filter(|agent| agent.registered_at < edge).collect();
    let mut step = Step { instances_before: before.len(), decided_s: None, registered_s: None, working_s: None };
    while Instant::now() < deadline {
        let instances = watch.instances().await?;
        let new: Vec<&Agent> = instances.iter().filter(|agent| agent.registered_at >= edge).collect();
        if let Some(first) = new.iter().map(|agent| agent.registered_at).min() {
            step.registered_s = Some(seconds(edge, first));
            let holders: Vec<String> = new.iter().map(|agent| agent.holder.clone()).collect();
            if let Some(claimed) = watch.first_claim(&holders, edge).await? {
                step.working_s = Some(seconds(edge, claimed));
                break;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let decisions = watch.read_decisions().await?;
    let up = decisions.iter().find(|decision| decision.at >= edge && decision.to_count > decision.from_count);
    step.decided_s = up.map(|decision| seconds(edge, decision.at));
    Ok(step)
}

/// Seconds from one moment to a later one, to the millisecond.
pub(crate) fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    let milliseconds = i32::try_from((to - from).num_milliseconds()).unwrap_or(i32::MAX);
    f64::from(milliseconds) / 1000.0
}
