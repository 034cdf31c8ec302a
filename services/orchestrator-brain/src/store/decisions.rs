//! Decisions: recording them with the completion, reading and forgetting them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_bus_core::{Error as BusError, NewEvent, record_event};
use cogo_contracts::routes;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    decision::{Decision, Provenance, RecordedCandidate},
    policy::Policy,
};

impl Decision {
    /// Records the decision, counts it and tells the audit, all inside the transaction of the completion.
    ///
    /// # Errors
    /// When the database does not answer, or a decision on the message is recorded already.
    pub async fn record(
        &self,
        connection: &mut PgConnection,
        provenance: &Provenance,
        dispatched: Option<Uuid>,
    ) -> Result<(), BusError> {
        let pick = self.pick();
        sqlx::query(
            "insert into public.orch_decisions
                    (decision_id, message_id, task_id, tenant, intent, target_id, route, model, probability, epsilon,
                     explored, candidates, weights, policy_version, assignment)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(self.id)
        .bind(provenance.message_id)
        .bind(provenance.task_id)
        .bind(&self.tenant)
        .bind(&self.intent)
        .bind(pick.target_id)
        .bind(pick.candidate.route.to_string())
        .bind(&pick.candidate.model)
        .bind(pick.candidate.probability)
        .bind(self.epsilon)
        .bind(self.explored)
        .bind(Json(&self.candidates))
        .bind(self.weights.to_array().to_vec())
        .bind(Policy::VERSION)
        .bind(Json(&self.assignment))
        .execute(&mut *connection)
        .await?;
        let detail = json!({
            "decision_id": self.id, "intent": self.intent, "target": pick.candidate.route.to_string(),
            "probability": pick.candidate.probability, "explored": self.explored,
            "decided_on": provenance.message_id,
        });
        let event = NewEvent {
            kind: "orchestrate_enqueued",
            tenant: &self.tenant,
            message_id: dispatched,
            root_id: Some(provenance.task_id),
            route: Some(routes::DISPATCH.to_string()),
            actor: &provenance.holder,
            detail,
        };
        record_event(connection, &event).await?;
        // last, since others that decide on the same target wait for this row
        sqlx::query(
            "insert into public.orch_stats as s (target_id, decisions) values ($1, 1)
             on conflict (target_id) do update set decisions = s.decisions + 1",
        )
        .bind(pick.target_id)
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// A decision as recorded, with what it takes to replay it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct DecisionRow {
    /// Its key.
    pub decision_id: Uuid,
    /// The candidate that was picked.
    pub target_id: i64,
    /// Probability of the pick.
    pub probability: f64,
    /// Share of exploration.
    pub epsilon: f64,
    /// Whether the pick was exploration.
    pub explored: bool,
    /// Everything that could have been picked.
    #[sqlx(json)]
    pub candidates: Vec<RecordedCandidate>,
    /// Weights of health, quality, cost and kg.
    pub weights: Vec<f64>,
}

/// The decision on a message; none if there is none.
///
/// # Errors
/// When the database does not answer.
pub async fn decision_of(pool: &PgPool, message: Uuid) -> Result<Option<DecisionRow>, sqlx::Error> {
    sqlx::query_as(
        "select decision_id, target_id, probability, epsilon, explored, candidates, weights
           from public.orch_decisions where message_id = $1",
    )
    .bind(message)
    .fetch_optional(pool)
    .await
}

/// A decision as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct RecentDecision {
    /// Its key.
    pub decision_id: Uuid,
    /// Its task.
    pub task_id: Uuid,
    /// Whose task.
    pub tenant: String,
    /// What was wanted.
    pub intent: String,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Where the work went.
    pub route: String,
    /// The model, if one was named.
    pub model: Option<String>,
    /// Probability of the pick.
    pub probability: f64,
    /// Share of exploration.
    pub epsilon: f64,
    /// Whether the pick was exploration.
    pub explored: bool,
    /// How it ended so far, as the kind of the newest outcome.
    pub outcome: Option<String>,
    /// Every candidate.
    pub candidates: Value,
}

/// The newest decisions.
///
/// # Errors
/// When the database does not answer.
pub async fn recent_decisions(pool: &PgPool, limit: i64) -> Result<Vec<RecentDecision>, sqlx::Error> {
    sqlx::query_as(
        "select d.decision_id, d.task_id, d.tenant, d.intent, d.at, d.route, d.model, d.probability, d.epsilon,
                d.explored, d.candidates,
                (select o.kind from public.orch_outcomes o where o.decision_id = d.decision_id
                  order by o.event_id desc limit 1) as outcome
           from public.orch_decisions d
          order by d.at desc
          limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Removes up to `max_rows` decisions older than `keep`, with their outcomes; answers how many.
///
/// # Errors
/// When the database does not answer.
pub async fn forget_decisions(pool: &PgPool, keep: Duration, max_rows: i64) -> Result<u64, sqlx::Error> {
    let removed = sqlx::query(
        "delete from public.orch_decisions
          where decision_id in (select d.decision_id from public.orch_decisions d
                                 where d.at < clock_timestamp() - $1 * interval '1 second'
                                 order by d.at limit $2 for update skip locked)",
    )
    .bind(keep.as_secs_f64())
    .bind(max_rows)
    .execute(pool)
    .await?;
    Ok(removed.rows_affected())
}
