//! Observing: each outcome is learned from once, by whoever sees it first, and survives a restart.

use std::time::Duration;

use cogo_bus_core::{Completion, Failure};
use cogo_orchestrator_brain::{Brain, Lookout, Policy, Settings, Stats, forget_decisions, observe};
use serde_json::json;
use uuid::Uuid;

use crate::it::support::{HALF_LIFE, World, ask, world};

async fn done(world: &World, decision: Uuid) {
    let claimed = world.dispatched(decision, 5).await;
    let usage = json!({"input_tokens": 900, "output_tokens": 100, "cost_usd": 0.02, "estimated": false});
    let completion = Completion { result: Some(json!({"usage": usage})), ..Completion::default() };
    assert!(world.bus.complete(&claimed.fence(), "chat", &completion).await.unwrap());
}

async fn failed(world: &World, decision: Uuid) {
    let claimed = world.dispatched(decision, 1).await;
    let failure = Failure { reason: "it broke".to_owned(), retriable: true, retry_after: None };
    world.bus.fail(&claimed.fence(), "chat", &failure).await.unwrap().unwrap();
}

async fn learn(world: &World) -> usize {
    observe(&world.database.pool, HALF_LIFE).await.unwrap()
}

/// Moves all audit rows that are committed to this long from now, so that no test depends on how fast it runs.
async fn date_events(world: &World, from_now: &str) {
    sqlx::query("update public.bus_events set at = clock_timestamp() + $1::text::interval")
        .bind(from_now)
        .execute(&world.database.pool)
        .await
        .unwrap();
}

async fn stats(world: &World) -> Stats {
    world.brain.refresh().await.unwrap();
    world.brain.snapshot().candidates("acme", "ask").next().unwrap().stats.clone()
}

#[tokio::test]
async fn outcomes_are_learned_from_once() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    let (_, decision) = world.decide(&ask()).await;
    assert_eq!(learn(&world).await, 0);
    done(&world, decision.id).await;
    failed(&world, decision.id).await;
    assert_eq!(learn(&world).await, 2);
    assert_eq!(learn(&world).await, 0);
    let stats = stats(&world).await;
    assert_eq!((stats.decisions, stats.done, stats.failed, stats.usage_count), (1, 1, 1, 1));
    assert_eq!((stats.cost_usd_sum, stats.tokens_sum), (0.02, 1000.0));
    assert!(stats.latency_ms.is_some());
}

#[tokio::test]
async fn two_brains_at_once_count_nothing_twice() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    for _ in 0..5 {
        done(&world, decision.id).await;
    }
    let (one, other) = (world.database.another_pool(), world.database.another_pool());
    let (one, other) = tokio::join!(observe(&one, HALF_LIFE), observe(&other, HALF_LIFE));
    assert_eq!(one.unwrap() + other.unwrap(), 5);
    assert_eq!(stats(&world).await.done, 5);
}

#[tokio::test]
async fn retry_that_is_made_good_counts_as_done_and_as_a_failed_attempt() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    let claimed = world.dispatched(decision.id, 5).await;
    let failure = Failure { reason: "later".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    world.bus.fail(&claimed.fence(), "chat", &failure).await.unwrap().unwrap();
    let again = world.claim(&cogo_contracts::routes::CHAT, "chat").await.unwrap();
    assert!(world.bus.complete(&again.fence(), "chat", &Completion::default()).await.unwrap());
    assert_eq!(learn(&world).await, 2);
    let stats = stats(&world).await;
    assert_eq!((stats.done, stats.failed, stats.retried), (1, 0, 1));
    assert!(stats.fail_weight > 0.9 && stats.ok_weight == 1.0, "{stats:?}");
}

#[tokio::test]
async fn row_that_appears_below_one_already_seen_is_learned_too() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    // its id is taken now, but it is committed only after a later one was learned from
    let claimed = world.dispatched(decision.id, 5).await;
    let mut late = world.database.pool.begin().await.unwrap();
    let completion = Completion::default();
    assert!(cogo_bus_core::Bus::complete_in(&mut late, &claimed.fence(), "chat", &completion).await.unwrap());
    done(&world, decision.id).await;
    date_events(&world, "1 minute").await;
    assert_eq!(learn(&world).await, 1);
    late.commit().await.unwrap();
    assert_eq!(learn(&world).await, 1);
    assert_eq!(stats(&world).await.done, 2);
}

#[tokio::test]
async fn mark_passes_what_is_settled_and_what_nobody_decided_on() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    done(&world, decision.id).await;
    done(&world, Uuid::now_v7()).await;
    date_events(&world, "1 minute").await;
    assert_eq!(learn(&world).await, 1);
    let through = async || -> i64 {
        sqlx::query_scalar("select events_through from public.orch_progress")
            .fetch_one(&world.database.pool)
            .await
            .unwrap()
    };
    assert_eq!(through().await, 0);
    date_events(&world, "-1 minute").await;
    assert_eq!(learn(&world).await, 0);
    let newest: i64 = sqlx::query_scalar("select max(id) from public.bus_events where kind = 'execute_done'")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(through().await, newest);
}

#[tokio::test]
async fn more_than_a_page_is_learned_in_one_go() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    sqlx::query(
        "insert into public.bus_events (kind, tenant, detail)
         select 'execute_done', 'acme', jsonb_build_object('decision_id', $1::uuid, 'attempt', 1)
           from generate_series(1, 1201)",
    )
    .bind(decision.id)
    .execute(&world.database.pool)
    .await
    .unwrap();
    assert_eq!(learn(&world).await, 1201);
    assert_eq!(stats(&world).await.done, 1201);
}

#[tokio::test]
async fn restart_goes_on_from_what_was_learned() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    let (_, decision) = world.decide(&ask()).await;
    for _ in 0..3 {
        failed(&world, decision.id).await;
    }
    assert_eq!(learn(&world).await, 3);
    let policy = Policy::new(&Settings::default()).unwrap();
    let restarted = Brain::new(world.database.another_pool(), policy);
    let after = restarted.decide("acme", &ask()).await.unwrap();
    assert_eq!(after.pick().candidate.scores.quality, 0.2);
    assert!(after.pick().candidate.scores.health < 0.3);
    assert_eq!(restarted.snapshot().decisions_on("ask"), 1);
}

#[tokio::test]
async fn failures_move_work_to_the_better_target() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    let (_, decision) = world.decide(&ask()).await;
    failed(&world, decision.id).await;
    learn(&world).await;
    let better = world.candidate(1, None, 0.0).await;
    sqlx::query("update public.orch_stats set decisions = 100000").execute(&world.database.pool).await.unwrap();
    world.brain.refresh().await.unwrap();
    let after = world.brain.decide("acme", &ask()).await.unwrap();
    let best = after.candidates.iter().max_by(|a, b| a.candidate.total.total_cmp(&b.candidate.total)).unwrap();
    assert_eq!(best.target_id, better);
    assert!(best.candidate.probability > 0.99, "{best:?}");
}

#[tokio::test]
async fn old_decisions_go_with_their_outcomes_and_statistics_stay() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    done(&world, decision.id).await;
    learn(&world).await;
    let forget = async |keep| forget_decisions(&world.database.pool, keep, 100).await.unwrap();
    assert_eq!(forget(Duration::from_secs(3600)).await, 0);
    assert_eq!(forget(Duration::ZERO).await, 1);
    assert_eq!((world.count("public.orch_decisions").await, world.count("public.orch_outcomes").await), (0, 0));
    assert_eq!(learn(&world).await, 0);
    assert_eq!(stats(&world).await.done, 1);
}

#[tokio::test]
async fn one_look_learns_and_shows_what_was_learned_also_where_no_target_is_left() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    let (_, decision) = world.decide(&ask()).await;
    let lookout = Lookout::new(&world.database.pool);
    assert_eq!(lookout.look(&world.brain).await.unwrap(), 0);
    done(&world, decision.id).await;
    assert_eq!(lookout.look(&world.brain).await.unwrap(), 1);
    assert_eq!(world.brain.snapshot().candidates("acme", "ask").next().unwrap().stats.done, 1);
    assert_eq!(lookout.look(&world.brain).await.unwrap(), 0);

    let (_, decision) = world.decide(&ask()).await;
    failed(&world, decision.id).await;
    sqlx::query("update public.orch_targets set enabled = false").execute(&world.database.pool).await.unwrap();
    assert_eq!(lookout.look(&world.brain).await.unwrap(), 1, "what ended is learned from all the same");
    assert!(world.brain.snapshot().targets.is_empty());
}
