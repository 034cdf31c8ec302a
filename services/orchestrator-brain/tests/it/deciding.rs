//! Deciding: what is picked, what is sent on and what is recorded.

use cogo_bus_core::{Bus, Completion, events_of_task};
use cogo_contracts::{DispatchRequest, MessageStatus, routes};
use cogo_orchestrator_brain::{
    Brain, DecideError, Policy, Provenance, Refusal, Settings, Weights, decision_of, known_intents, replay,
};
use cogo_registry_core::{Follower, Registry, ViewSettings};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::it::support::{ask, request, world};

#[tokio::test]
async fn decision_goes_on_to_the_dispatcher_and_is_recorded_with_the_completion() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    let (message, decision) = world.decide(&ask()).await;

    let task = world.bus.task(message).await.unwrap().unwrap();
    assert_eq!(task.steps.len(), 2);
    assert_eq!(task.steps[0].status, MessageStatus::Done);
    let sent = world.claim(&routes::DISPATCH, "dispatcher").await.unwrap();
    assert_eq!(sent.parent_id, Some(message));
    let dispatch: DispatchRequest = serde_json::from_value(sent.payload).unwrap();
    assert_eq!(dispatch.target, routes::CHAT);
    assert_eq!(dispatch.payload, ask().payload);
    assert_eq!(dispatch.assignment.decision_id, Some(decision.id));

    let row = decision_of(&world.database.pool, message).await.unwrap().unwrap();
    assert_eq!((row.decision_id, row.probability, row.candidates.len()), (decision.id, 1.0, 1));
    let events = events_of_task(&world.database.pool, message).await.unwrap();
    let event = events.iter().find(|event| event.kind == "orchestrate_enqueued").unwrap();
    assert_eq!(event.message_id, Some(sent.id));
    assert_eq!(event.detail["decision_id"], json!(decision.id));
}

#[tokio::test]
async fn stale_claim_records_no_second_decision() {
    let world = world().await;
    let message = world.send(&ask()).await;
    let stale = world.claim(&routes::DECIDE, "slow").await.unwrap();
    let late = world.brain.decide(&stale.tenant, &ask()).await.unwrap();
    assert_eq!(world.bus.release(&[stale.fence()], "slow").await.unwrap(), 1);

    let current = world.claim(&routes::DECIDE, "quick").await.unwrap();
    let decision = world.brain.decide(&current.tenant, &ask()).await.unwrap();
    assert!(!world.finish(&stale, "slow", &late).await);
    assert!(world.finish(&current, "quick", &decision).await);
    assert!(!world.finish(&stale, "slow", &late).await);

    assert_eq!(world.count("public.orch_decisions").await, 1);
    let row = decision_of(&world.database.pool, message).await.unwrap().unwrap();
    assert_eq!(row.decision_id, decision.id);
    assert_eq!(world.bus.task(message).await.unwrap().unwrap().steps.len(), 2);
    let counted: i64 = sqlx::query_scalar("select sum(decisions)::bigint from public.orch_stats")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    assert_eq!(counted, 1);
}

#[tokio::test]
async fn record_that_fails_takes_the_completion_with_it() {
    let world = world().await;
    let message = world.send(&ask()).await;
    let claimed = world.claim(&routes::DECIDE, "brain").await.unwrap();
    let decision = world.brain.decide(&claimed.tenant, &ask()).await.unwrap();
    let provenance = Provenance { message_id: message, task_id: message, holder: "brain".to_owned() };
    let mut transaction = world.database.pool.begin().await.unwrap();
    assert!(Bus::complete_in(&mut transaction, &claimed.fence(), "brain", &Completion::default()).await.unwrap());
    decision.record(&mut transaction, &provenance, None).await.unwrap();
    // a second decision on the same message, which the database refuses
    let second = world.brain.decide(&claimed.tenant, &ask()).await.unwrap();
    assert!(second.record(&mut transaction, &provenance, None).await.is_err());
    drop(transaction);
    assert_eq!(world.count("public.orch_decisions").await, 0);
    assert_eq!(world.bus.task(message).await.unwrap().unwrap().steps[0].status, MessageStatus::Claimed);
    assert!(world.finish(&claimed, "brain", &decision).await);
    assert!(decision_of(&world.database.pool, message).await.unwrap().is_some());
}

#[tokio::test]
async fn recorded_decision_replays_bit_for_bit() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    for shard in 1..=3 {
        let id = world.candidate(shard, None, 0.01 * f64::from(shard) / 3.0).await;
        sqlx::query(
            "insert into public.orch_stats (target_id, done, failed, ok_weight, fail_weight, latency_ms, learned_at)
             values ($1, 7, $2, 1.7, 0.3, 7001.3, clock_timestamp())",
        )
        .bind(id)
        .bind(i64::from(shard))
        .execute(&world.database.pool)
        .await
        .unwrap();
    }
    let mut explored = 0;
    for _ in 0..40 {
        world.brain.refresh().await.unwrap();
        let (message, decision) = world.decide(&ask()).await;
        let row = decision_of(&world.database.pool, message).await.unwrap().unwrap();
        let weights = Weights::from_array(row.weights.clone().try_into().unwrap());
        let again = replay(row.decision_id, &row.candidates, &weights, row.epsilon).unwrap();
        assert_eq!(row.candidates[again.chosen].target_id, row.target_id);
        assert_eq!(again.probabilities[again.chosen].to_bits(), row.probability.to_bits());
        assert_eq!(again.explored, row.explored);
        assert_eq!(again.chosen, decision.chosen);
        let sum: f64 = row.candidates.iter().map(|recorded| recorded.candidate.probability).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        explored += u32::from(row.explored);
    }
    // the first ones explore for certain: 5 * 4 / (n + 1) is above 1 until n = 19
    assert!(explored >= 20, "{explored}");
}

#[tokio::test]
async fn target_without_an_agent_is_recorded_but_not_picked() {
    let world = world().await;
    world.agent("chat-of-shard-one", &["route:gateway/chat/1"]).await;
    sqlx::query("insert into public.orch_targets (intent, service, role, shard) values ('ask', 'gateway', 'chat', 1)")
        .execute(&world.database.pool)
        .await
        .unwrap();
    world.brain.refresh().await.unwrap();
    let (_, decision) = world.decide(&ask()).await;
    assert_eq!(decision.route().shard(), 1);
    let dead = decision.candidates.iter().find(|recorded| recorded.candidate.route.shard() == 0).unwrap();
    assert_eq!((dead.candidate.scores.health, dead.candidate.probability, dead.eligible), (0.0, 0.0, false));
    assert_eq!(dead.reason.as_deref(), Some("no active agent"));
}

#[tokio::test]
async fn message_waits_at_its_target_when_no_agent_lives() {
    let world = world().await;
    let (_, decision) = world.decide(&ask()).await;
    assert_eq!(decision.route(), &routes::CHAT);
    assert_eq!(decision.pick().candidate.scores.health, 0.0);
    assert!(decision.pick().reason.as_deref().unwrap().contains("waits"));
}

#[tokio::test]
async fn unknown_intent_is_refused_with_the_known_ones() {
    let world = world().await;
    let error = world.brain.decide("acme", &request("aks", json!({}))).await.unwrap_err();
    assert_eq!(error.to_string(), r#"Unknown intent "aks"; known: ask, build-graph, embed, index, run"#);
    assert_eq!(known_intents(&world.database.pool).await.unwrap(), ["ask", "build-graph", "embed", "index", "run"]);
    sqlx::query("update public.orch_targets set enabled = false where intent = 'run'")
        .execute(&world.database.pool)
        .await
        .unwrap();
    world.brain.refresh().await.unwrap();
    assert!(matches!(
        world.brain.decide("acme", &request("run", json!({}))).await,
        Err(DecideError::Refused(Refusal::UnknownIntent { .. }))
    ));
}

#[tokio::test]
async fn intent_that_was_added_a_moment_ago_is_known() {
    let world = world().await;
    sqlx::query("insert into public.orch_targets (intent, service, role) values ('translate', 'gateway', 'chat')")
        .execute(&world.database.pool)
        .await
        .unwrap();
    let decision = world.brain.decide("acme", &request("translate", json!({}))).await.unwrap();
    assert_eq!(decision.route(), &routes::CHAT);
}

#[tokio::test]
async fn target_of_a_tenant_serves_no_other() {
    let world = world().await;
    world.candidate(5, Some("acme"), 0.0).await;
    assert_eq!(world.brain.decide("acme", &ask()).await.unwrap().candidates.len(), 2);
    assert_eq!(world.brain.decide("other", &ask()).await.unwrap().candidates.len(), 1);
}

#[tokio::test]
async fn coverage_is_that_of_the_tenant_and_the_collection() {
    let world = world().await;
    sqlx::query("insert into public.rag_scopes (tenant, collection, chunk_count) values ('acme', 'full', 3), ('acme', 'empty', 0)")
        .execute(&world.database.pool)
        .await
        .unwrap();
    for (tenant, payload, expected) in [
        ("acme", json!({}), 1.0),
        ("acme", json!({"collection": "full"}), 1.0),
        ("acme", json!({"collection": "empty"}), 0.0),
        ("other", json!({}), 0.0),
    ] {
        let decision = world.brain.decide(tenant, &request("ask", payload)).await.unwrap();
        assert_eq!(decision.pick().candidate.scores.kg, expected, "{tenant}");
    }
    let index = world.brain.decide("acme", &request("index", json!({}))).await.unwrap();
    assert_eq!(index.pick().candidate.scores.kg, 0.5);
}

#[tokio::test]
async fn living_agents_are_known_from_the_copy_of_the_registry() {
    let world = world().await;
    let registry = Registry::new(world.database.pool.clone());
    let (follower, view) = Follower::new(&registry, ViewSettings::default());
    let stop = CancellationToken::new();
    let following = TaskTracker::new().spawn(follower.run(stop.clone()));
    let policy = Policy::new(&Settings::default()).unwrap();
    let brain = Brain::new(world.database.pool.clone(), policy).looking_at(view.clone());
    // the database would say that nobody lives
    sqlx::query(
        "create or replace function public.orch_agents_of(service text, role text, shard integer)
         returns table (name text, version text) language sql stable security definer
         set search_path = pg_catalog, pg_temp as 'select null::text, null::text where false'",
    )
    .execute(&world.database.pool)
    .await
    .unwrap();
    let living = async || {
        let version: i64 =
            sqlx::query_scalar("select version from registry.clock").fetch_one(&world.database.pool).await.unwrap();
        view.wait_for(version).await;
        brain.refresh().await.unwrap();
        brain.snapshot().candidates("acme", "ask").map(|target| target.live).collect::<Vec<_>>()
    };
    assert_eq!(living().await, [false]);
    // by the name that the target gives, without declaring the route
    world.agent("gateway-chat", &[]).await;
    assert_eq!(living().await, [true]);
    stop.cancel();
    following.await.unwrap();
}
