//! The HTTP side: deciding without consequence, enqueueing, and what the brain knows.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use cogo_bus_core::Bus;
use cogo_contracts::{Budget, DecideReply, DecideRequest, NewMessage, Problem, Scores, Tenant, routes::DECIDE};
use cogo_service_runtime::{ApiError, RequestBody};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    brain::{Brain, DecideError},
    diagnose::scores,
    plan::{Refusal, plan},
    policy::Policy,
    scorers::kg::Coverage,
    sense::{Snapshot, Target},
    store::{RecentDecision, recent_decisions},
    update::Stats,
};

/// Decisions that `state` lists.
const RECENT: i64 = 20;

#[derive(Clone)]
struct Api {
    brain: Arc<Brain>,
    bus: Bus,
}

/// The routes below `/api/orchestrator`.
pub fn routes(brain: Arc<Brain>, bus: Bus) -> Router {
    Router::new()
        .route("/api/orchestrator/decide", post(decide))
        .route("/api/orchestrator/decide-enqueue", post(enqueue))
        .route("/api/orchestrator/state", get(state))
        .with_state(Api { brain, bus })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    tenant: Tenant,
    intent: String,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    budget: Option<Budget>,
    #[serde(default)]
    ttl_ms: Option<u64>,
}

impl Body {
    fn into_request(self) -> (Tenant, DecideRequest) {
        let Self { tenant, intent, payload, budget, ttl_ms } = self;
        (tenant, DecideRequest { intent, payload, budget, ttl_ms })
    }
}

async fn decide(State(api): State<Api>, RequestBody(body): RequestBody<Body>) -> Result<Json<DecideReply>, ApiError> {
    let (tenant, request) = body.into_request();
    let decision = api.brain.decide(tenant.as_str(), &request).await.map_err(problem)?;
    Ok(Json(decision.reply()))
}

#[derive(Serialize)]
struct Accepted {
    id: Uuid,
}

async fn enqueue(
    State(api): State<Api>,
    RequestBody(body): RequestBody<Body>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let (tenant, request) = body.into_request();
    // what the handler would refuse is refused here, where the caller can still read why
    let check = |snapshot: &Snapshot| plan(snapshot, tenant.as_str(), &request).map(|_| ());
    if matches!(check(&api.brain.snapshot()), Err(Refusal::UnknownIntent { .. })) {
        api.brain.refresh().await.map_err(|error| ApiError::unavailable(&error))?;
    }
    check(&api.brain.snapshot()).map_err(|refusal| problem(refusal.into()))?;
    let payload = serde_json::to_value(&request).map_err(|error| ApiError::internal(&error.into()))?;
    let mut message = NewMessage::new(DECIDE, Some(tenant), payload);
    // a year is longer than any target allows, and the database counts in smaller numbers than a caller can send
    message.ttl_ms = request.ttl_ms.map(|ttl_ms| ttl_ms.min(365 * 24 * 3600 * 1000));
    let enqueued = api.bus.enqueue(&message).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { id: enqueued.id })))
}

#[derive(Serialize)]
struct StateOfBrain {
    policy: Policy,
    intents: Vec<StateOfIntent>,
    recent: Vec<RecentDecision>,
}

#[derive(Serialize)]
struct StateOfIntent {
    intent: String,
    decisions: u64,
    epsilon: f64,
    targets: Vec<StateOfTarget>,
}

#[derive(Serialize)]
struct StateOfTarget {
    target_id: i64,
    tenant: Option<String>,
    route: String,
    model: Option<String>,
    live: bool,
    scores: Scores,
    total: f64,
    stats: Stats,
}

async fn state(State(api): State<Api>) -> Result<Json<StateOfBrain>, ApiError> {
    let recent = recent_decisions(api.brain.pool(), RECENT).await?;
    let policy = api.brain.policy();
    let snapshot = api.brain.snapshot();
    let mut intents: Vec<&str> = snapshot.targets.iter().map(|target| target.intent.as_str()).collect();
    intents.sort_unstable();
    intents.dedup();
    let intents = intents.into_iter().map(|intent| {
        let of_intent: Vec<&Target> = snapshot.targets.iter().filter(|target| target.intent == intent).collect();
        let live = of_intent.iter().filter(|target| target.live).count();
        let decisions = snapshot.decisions_on(intent);
        StateOfIntent {
            intent: intent.to_owned(),
            decisions,
            epsilon: policy.epsilon(if live == 0 { of_intent.len() } else { live }, decisions),
            targets: of_intent.into_iter().map(|target| state_of(target, policy)).collect(),
        }
    });
    Ok(Json(StateOfBrain { policy: policy.clone(), intents: intents.collect(), recent }))
}

/// Scores as of no certain tenant, under the target's own budget.
fn state_of(target: &Target, policy: &Policy) -> StateOfTarget {
    let scores = scores(target, target.max_cost_usd, Coverage::Unknown, policy);
    StateOfTarget {
        target_id: target.id,
        tenant: target.tenant.clone(),
        route: target.route.to_string(),
        model: target.model.clone(),
        live: target.live,
        scores,
        total: policy.weights.total(&scores),
        stats: target.stats.clone(),
    }
}

fn problem(error: DecideError) -> ApiError {
    match error {
        DecideError::Refused(refusal) => {
            let problem = Problem::new(422, refusal.code(), "Request cannot be decided on", refusal.to_string());
            ApiError::from(match refusal {
                Refusal::UnknownIntent { .. } => problem.hint("Send one of the known intents"),
                Refusal::NothingFits { .. } => problem.hint("Raise the budget"),
                _ => problem,
            })
        }
        DecideError::Unavailable(cause) => ApiError::unavailable(&cause),
    }
}
