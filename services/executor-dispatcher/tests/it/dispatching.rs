//! Dispatching: what reaches the target, what the audit says, and which agent is named.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, events_of_task};
use cogo_contracts::{Assignment, Budget, DispatchRequest, NewMessage, Route, Tenant, routes};
use cogo_executor_dispatcher::{AgentSort, Agents, Dispatch, Known, Origin, Settings, agent_of, dispatch};
use cogo_registry_core::{Follower, Registry, ViewSettings};
use cogo_service_runtime::{Dependency, DependencySettings};
use serde_json::json;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

const HOLDER: &str = "dispatcher";

fn request(assignment: Assignment) -> DispatchRequest {
    let payload = json!({"question": "x", "__assignment": {"budget": {"maxTokens": 1_000_000_000}}});
    DispatchRequest { target: routes::CHAT, payload, assignment }
}

async fn send(bus: &Bus, request: &DispatchRequest) -> Uuid {
    let payload = serde_json::to_value(request).unwrap();
    let tenant = Tenant::new("acme").unwrap();
    bus.enqueue(&NewMessage::new(routes::DISPATCH, Some(tenant), payload)).await.unwrap().id
}

async fn claim(bus: &Bus, route: &Route, holder: &str) -> Option<Claimed> {
    let request = ClaimRequest { route, holder, instance: None, max_messages: 1, lease: Duration::from_secs(30) };
    bus.claim(&request).await.unwrap().pop()
}

/// Ends a claim as the frame does: completion and record in one transaction, nothing if the claim was lost.
async fn finish(bus: &Bus, claimed: &Claimed, holder: &str, dispatch: &Dispatch) -> bool {
    let origin = Origin { task_id: claimed.root_id, tenant: claimed.tenant.clone(), holder: holder.to_owned() };
    let completion = Completion { follow_ups: vec![dispatch.message.clone()], ..Completion::default() };
    let mut transaction = bus.pool().begin().await.unwrap();
    let ours = Bus::complete_in(&mut transaction, &claimed.fence(), holder, &completion).await.unwrap();
    if ours {
        dispatch.record(&mut transaction, &origin).await.unwrap();
        transaction.commit().await.unwrap();
    }
    ours
}

async fn agent(pool: &PgPool, name: &str, slot: i32, version: &str, capabilities: &[&str]) -> Uuid {
    let id = Uuid::now_v7();
    sqlx::query("select outcome from registry.register($1, 'test', $2, $3, $4, $5)")
        .bind(id)
        .bind(name)
        .bind(slot)
        .bind(version)
        .bind(capabilities)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("select registry.activate($1)").bind(id).execute(pool).await.unwrap();
    id
}

#[tokio::test]
async fn target_gets_the_stamp_and_the_audit_says_so() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let decision_id = Uuid::now_v7();
    let budget = Some(Budget { max_cost_usd: Some(0.03), max_tokens: None });
    let assignment =
        Assignment { budget, ttl_ms: Some(20_000), decision_id: Some(decision_id), ..Assignment::default() };
    let task = send(&bus, &request(assignment)).await;
    let claimed = claim(&bus, &routes::DISPATCH, HOLDER).await.unwrap();
    let parsed: DispatchRequest = serde_json::from_value(claimed.payload.clone()).unwrap();
    let dispatch = dispatch(&parsed, None, &Settings::default()).unwrap();
    assert!(finish(&bus, &claimed, HOLDER, &dispatch).await);

    let work = claim(&bus, &routes::CHAT, "chat").await.unwrap();
    assert_eq!((work.root_id, work.parent_id, work.tenant.as_str()), (task, Some(task), "acme"));
    assert!((1..=20_000).contains(&work.remaining_ms.unwrap()), "{:?}", work.remaining_ms);
    let stamp = Assignment::of(&work.payload).unwrap();
    assert_eq!(stamp, dispatch.reply.assignment);
    let budget = stamp.budget.unwrap();
    assert_eq!((budget.max_cost_usd, budget.max_tokens), (Some(0.03), Some(200_000)));
    assert!(bus.complete(&work.fence(), "chat", &Completion::default()).await.unwrap());

    let events = events_of_task(&database.pool, task).await.unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["execute_enqueued", "execute_done"]);
    assert_eq!(events[0].message_id, Some(work.id));
    assert_eq!(events[0].route.as_deref(), Some("gateway/chat/0"));
    for event in &events {
        assert_eq!(event.detail["decision_id"], json!(decision_id));
    }
}

#[tokio::test]
async fn stale_claim_dispatches_nothing() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    send(&bus, &request(Assignment::default())).await;
    let stale = claim(&bus, &routes::DISPATCH, "slow").await.unwrap();
    bus.release(&[stale.fence()], "slow").await.unwrap();
    let current = claim(&bus, &routes::DISPATCH, "quick").await.unwrap();
    let work = |claimed: &Claimed| {
        let parsed: DispatchRequest = serde_json::from_value(claimed.payload.clone()).unwrap();
        dispatch(&parsed, None, &Settings::default()).unwrap()
    };
    assert!(!finish(&bus, &stale, "slow", &work(&stale)).await);
    assert!(finish(&bus, &current, "quick", &work(&current)).await);
    assert!(!finish(&bus, &stale, "slow", &work(&stale)).await);
    assert!(claim(&bus, &routes::CHAT, "chat").await.is_some());
    assert!(claim(&bus, &routes::CHAT, "chat").await.is_none());
}

#[tokio::test]
async fn work_is_not_started_once_its_time_has_passed() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let task = send(&bus, &request(Assignment { ttl_ms: Some(1), ..Assignment::default() })).await;
    let claimed = claim(&bus, &routes::DISPATCH, HOLDER).await.unwrap();
    let parsed: DispatchRequest = serde_json::from_value(claimed.payload.clone()).unwrap();
    assert!(finish(&bus, &claimed, HOLDER, &dispatch(&parsed, None, &Settings::default()).unwrap()).await);
    // the database's clock moves on while it is asked
    sqlx::query("select pg_sleep(0.005)").execute(&database.pool).await.unwrap();
    assert!(claim(&bus, &routes::CHAT, "chat").await.is_none());
    let task = bus.task(task).await.unwrap().unwrap();
    assert!(task.error.unwrap().contains("time to live passed"));
}

#[tokio::test]
async fn agent_is_named_only_where_there_is_one_sort() {
    let database = cogo_test_support::database().await;
    let pool = &database.pool;
    assert_eq!(agent_of(pool, &routes::CHAT).await.unwrap(), None);
    agent(pool, "gateway-chat", 0, "1.0.0", &[]).await;
    agent(pool, "gateway-chat", 1, "1.0.0", &[]).await;
    let one = AgentSort { name: "gateway-chat".to_owned(), version: "1.0.0".to_owned() };
    assert_eq!(agent_of(pool, &routes::CHAT).await.unwrap(), Some(one.clone()));
    let newer = agent(pool, "gateway-chat", 2, "1.1.0", &[]).await;
    assert_eq!(agent_of(pool, &routes::CHAT).await.unwrap(), None);
    sqlx::query("select registry.suspend($1)").bind(newer).execute(pool).await.unwrap();
    assert_eq!(agent_of(pool, &routes::CHAT).await.unwrap(), Some(one));
    agent(pool, "special", 0, "2.0.0", &["route:gateway/chat/7"]).await;
    let special = AgentSort { name: "special".to_owned(), version: "2.0.0".to_owned() };
    assert_eq!(agent_of(pool, &routes::CHAT.on_shard(7)).await.unwrap(), Some(special));
    assert_eq!(agent_of(pool, &routes::BUILD).await.unwrap(), None);
}

#[tokio::test]
async fn agent_is_found_in_the_copy_of_the_registry_without_the_database() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let (follower, view) = Follower::new(&registry, ViewSettings::default());
    let stop = CancellationToken::new();
    let following = TaskTracker::new().spawn(follower.run(stop.clone()));
    // it cannot be asked, so whatever is known comes from the copy
    let absent = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").unwrap();
    let guard = Dependency::alone("registry", &DependencySettings::default()).unwrap();
    let agents = Agents::new(view.clone(), absent, guard);
    assert_eq!(agents.known(&routes::CHAT), Known::Nothing, "before the first reading");
    let version = async || -> i64 {
        sqlx::query_scalar("select version from registry.clock").fetch_one(&database.pool).await.unwrap()
    };
    while agents.known(&routes::CHAT) == Known::Nothing {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(agents.known(&routes::CHAT), Known::Nobody);
    let declares = ["route:gateway/chat/0"];
    agent(&database.pool, "gateway-chat", 0, "1.0.0", &declares).await;
    agent(&database.pool, "gateway-chat", 1, "1.0.0", &declares).await;
    view.wait_for(version().await).await;
    let one = AgentSort { name: "gateway-chat".to_owned(), version: "1.0.0".to_owned() };
    assert_eq!(agents.known(&routes::CHAT), Known::Served(Some(one)));
    agent(&database.pool, "gateway-chat", 2, "1.1.0", &declares).await;
    view.wait_for(version().await).await;
    assert_eq!(agents.known(&routes::CHAT), Known::Served(None));
    stop.cancel();
    following.await.unwrap();
}
