//! The process itself, in the frame: it sends on what it may and refuses the rest with a reason.

use std::time::Duration;

use cogo_bus_core::{Bus, events_of_task};
use cogo_contracts::{Assignment, DispatchRequest, NewMessage, Task, Tenant, routes};
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);

async fn send(bus: &Bus, payload: Value) -> Uuid {
    let message = NewMessage::new(routes::DISPATCH, Some(Tenant::new("acme").unwrap()), payload);
    bus.enqueue(&message).await.unwrap().id
}

/// Asks again and again until the first step has ended.
async fn settled(bus: &Bus, id: Uuid) -> Task {
    tokio::time::timeout(PATIENCE, async {
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        loop {
            turn.tick().await;
            let task = bus.task(id).await.unwrap().unwrap();
            if task.steps[0].done_at.is_some() {
                return task;
            }
        }
    })
    .await
    .expect("the process does its work in time")
}

/// Sends work until the process names the agent that it learned of.
async fn named_by_the_process(bus: &Bus) {
    let naming = async {
        loop {
            let work = DispatchRequest { target: routes::CHAT, payload: json!({}), assignment: Assignment::default() };
            let id = send(bus, serde_json::to_value(work).unwrap()).await;
            let task = settled(bus, id).await;
            let sent = bus.message(task.steps[1].id).await.unwrap().unwrap();
            let stamp = Assignment::of(&sent["payload"]).unwrap();
            if stamp.agent_id.as_deref() == Some("gateway-chat") {
                assert_eq!(stamp.version.as_deref(), Some("1.2.3"));
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, naming).await.expect("its copy of the registry is kept current");
}

#[tokio::test]
async fn process_sends_on_refuses_and_ends_in_order() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let mut process = Command::new(env!("CARGO_BIN_EXE_cogo-executor-dispatcher"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .env("COGO_DEFAULT_MAX_TOKENS", "1234")
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    // the database would not say who serves the route: the process has to know by itself
    sqlx::query(
        "create or replace function public.orch_agents_of(service text, role text, shard integer)
         returns table (name text, version text) language sql stable security definer
         set search_path = pg_catalog, pg_temp as 'select null::text, null::text where false'",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let chat = Uuid::now_v7();
    sqlx::query("select registry.register($1, 'gateway', 'gateway-chat', 0, '1.2.3', array['route:gateway/chat/0'])")
        .bind(chat)
        .execute(&database.pool)
        .await
        .unwrap();
    sqlx::query("select registry.activate($1)").bind(chat).execute(&database.pool).await.unwrap();
    named_by_the_process(&bus).await;

    let payload = json!({"question": "x", "__assignment": {"model": "forged"}});
    let work = DispatchRequest { target: routes::CHAT, payload, assignment: Assignment::default() };
    let id = send(&bus, serde_json::to_value(work).unwrap()).await;
    let task = settled(&bus, id).await;
    assert_eq!((task.steps.len(), task.steps[1].service.as_str()), (2, "gateway"));
    let sent = bus.message(task.steps[1].id).await.unwrap().unwrap();
    let stamp = Assignment::of(&sent["payload"]).unwrap();
    assert_eq!((stamp.model, stamp.budget.unwrap().max_tokens), (None, Some(1234)));
    let events = events_of_task(&database.pool, id).await.unwrap();
    assert_eq!((events[0].kind.as_str(), events[0].message_id), ("execute_enqueued", Some(task.steps[1].id)));

    for (payload, reason) in [
        (json!({"target": routes::DECIDE, "payload": {}, "assignment": {}}), "round in circles"),
        (json!({"target": routes::CHAT, "payload": [], "assignment": {}}), "must be a JSON object"),
        (json!({"target": routes::CHAT, "payload": {}, "assignment": {"budget": {"maxCostUsd": -1}}}), "maxCostUsd"),
        (json!({"target": routes::CHAT, "payload": {}, "assignment": {"ttl_ms": 0}}), "ttl_ms"),
        (json!({"target": {"service": "A b", "role": "c"}, "payload": {}, "assignment": {}}), "Invalid service"),
        (json!({"payload": {}}), "payload does not parse"),
    ] {
        let refused = send(&bus, payload).await;
        let task = settled(&bus, refused).await;
        let error = task.error.unwrap();
        assert!(error.contains(reason), "{error}");
        assert_eq!((task.steps.len(), task.steps[0].attempts), (1, 1));
    }

    let pid = process.id().unwrap().to_string();
    assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
