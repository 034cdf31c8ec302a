//! Limits: the tighter of the caller's and the target's, and what is refused for them.

use cogo_contracts::{Budget, DecideRequest, routes};
use cogo_orchestrator_brain::{DecideError, Refusal};
use serde_json::json;

use crate::it::support::{World, ask, request, world};

fn with(budget: Option<Budget>, ttl_ms: Option<u64>) -> DecideRequest {
    DecideRequest { budget, ttl_ms, ..ask() }
}

fn budget(max_cost_usd: Option<f64>, max_tokens: Option<u64>) -> Option<Budget> {
    Some(Budget { max_cost_usd, max_tokens })
}

async fn refused(world: &World, request: DecideRequest) -> Refusal {
    match world.brain.decide("acme", &request).await {
        Err(DecideError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn caller_tightens_limits_and_never_widens_them() {
    let world = world().await;
    for (request, expected) in [
        (with(None, None), (Some(0.10), Some(200_000), Some(60_000))),
        (with(budget(Some(0.02), None), Some(500)), (Some(0.02), Some(200_000), Some(500))),
        (with(budget(None, Some(7)), None), (Some(0.10), Some(7), Some(60_000))),
        (with(budget(Some(1e9), Some(u64::MAX)), Some(u64::MAX)), (Some(0.10), Some(200_000), Some(60_000))),
    ] {
        let assignment = world.brain.decide("acme", &request).await.unwrap().assignment;
        let budget = assignment.budget.unwrap();
        assert_eq!((budget.max_cost_usd, budget.max_tokens, assignment.ttl_ms), expected);
    }
    let run = world.brain.decide("acme", &request("run", json!({}))).await.unwrap().assignment;
    assert_eq!((run.budget, run.ttl_ms), (None, Some(600_000)));
}

#[tokio::test]
async fn time_of_the_caller_bounds_the_whole_task() {
    let world = world().await;
    world.decide(&with(None, Some(50_000))).await;
    let sent = world.claim(&routes::DISPATCH, "dispatcher").await.unwrap();
    assert!((1..=50_000).contains(&sent.remaining_ms.unwrap()), "{:?}", sent.remaining_ms);
    world.decide(&ask()).await;
    assert_eq!(world.claim(&routes::DISPATCH, "dispatcher").await.unwrap().remaining_ms, None);
}

#[tokio::test]
async fn unusable_requests_are_refused_with_their_reason() {
    let world = world().await;
    assert!(matches!(refused(&world, with(budget(Some(-0.1), None), None)).await, Refusal::Budget(_)));
    assert!(matches!(refused(&world, with(budget(Some(f64::NAN), None), None)).await, Refusal::Budget(_)));
    assert_eq!(refused(&world, with(None, Some(0))).await, Refusal::NoTime);
    assert_eq!(refused(&world, request("ask", json!([1]))).await, Refusal::PayloadNotAnObject);
    assert_eq!(refused(&world, request("ask", json!({"a": [{"b\0": 1}]}))).await, Refusal::Nul);
    assert_eq!(refused(&world, request("ask", json!({"collection": "a\0"}))).await, Refusal::Nul);
    assert_eq!(refused(&world, request("a\0", json!({}))).await, Refusal::Nul);
    assert!(world.brain.decide("acme", &request("ask", json!(null))).await.is_ok());
}

#[tokio::test]
async fn candidate_over_the_budget_is_left_out() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    world.candidate(1, None, 0.05).await;
    let decision = world.brain.decide("acme", &with(budget(Some(0.01), None), None)).await.unwrap();
    assert_eq!(decision.route().shard(), 0);
    assert!(decision.candidates[1].reason.as_deref().unwrap().contains("over the budget"));

    sqlx::query("update public.orch_targets set enabled = false where intent = 'ask' and shard = 0")
        .execute(&world.database.pool)
        .await
        .unwrap();
    world.brain.refresh().await.unwrap();
    let refusal = refused(&world, with(budget(Some(0.01), None), None)).await;
    assert!(refusal.to_string().contains("over the budget"), "{refusal}");
}
