//! Retention against a real Postgres.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Completion, NewBroadcast};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_registry_core::Kv;
use serde_json::json;

const ROUTE: Route = Route::constant("test", "work");

#[tokio::test]
async fn batches_remove_all_that_is_finished_and_nothing_else() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let tenant = Tenant::new("t").unwrap();
    let messages: Vec<_> = (0..25).map(|n| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"n": n}))).collect();
    bus.enqueue_many(&messages).await.unwrap();
    let lease = Duration::from_secs(30);
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 20, lease };
    for claimed in bus.claim(&request).await.unwrap().into_iter().take(15) {
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    }
    let (removed, _) = cogo_bus_retention::remove(&bus, Duration::ZERO, 4).await.unwrap();
    assert_eq!(removed, 15);
    assert_eq!(cogo_bus_retention::remove(&bus, Duration::ZERO, 4).await.unwrap(), (0, 0));
    let left: Vec<(String, i64)> =
        sqlx::query_as("select status, count(*) from public.agent_messages group by status order by status")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(left, [("claimed".to_owned(), 5), ("queued".to_owned(), 5)]);
}

#[tokio::test]
async fn payloads_go_once_they_are_old_and_no_message_with_them() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let tenant = Tenant::new("t").unwrap();
    bus.enqueue(&NewMessage::new(ROUTE, Some(tenant.clone()), json!({}))).await.unwrap();
    let lease = Duration::from_secs(30);
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 1, lease };
    let claimed = bus.claim(&request).await.unwrap().remove(0);
    let parts: Vec<String> = (0..11).map(|part| part.to_string()).collect();
    bus.emit(&claimed.fence(), "w", 1, &parts, lease).await.unwrap().unwrap();
    for number in 0..7_u8 {
        bus.put_artifact(&tenant, "text/plain", &[number]).await.unwrap();
    }
    let hour = Duration::from_secs(3_600);
    assert_eq!(cogo_bus_retention::remove_payloads(&bus, hour, hour, 4).await.unwrap(), (0, 0));
    assert_eq!(cogo_bus_retention::remove_payloads(&bus, hour, Duration::ZERO, 4).await.unwrap(), (0, 7));
    let unfinished = cogo_bus_retention::remove_payloads(&bus, Duration::ZERO, hour, 4).await.unwrap();
    assert_eq!(unfinished, (0, 0), "it may go on streaming");
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(cogo_bus_retention::remove_payloads(&bus, Duration::ZERO, hour, 4).await.unwrap(), (11, 0));
    assert!(bus.message(claimed.id).await.unwrap().is_some());
}

#[tokio::test]
async fn expired_broadcasts_go_in_batches_and_others_stay() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let news = NewBroadcast::new("news", Tenant::new("t").unwrap(), json!({}));
    for _ in 0..7 {
        bus.publish(&NewBroadcast { ttl: Some(Duration::from_millis(1)), ..news.clone() }).await.unwrap();
    }
    bus.publish(&news).await.unwrap();
    sqlx::query("select pg_sleep(0.01)").execute(&database.pool).await.unwrap();
    assert_eq!(cogo_bus_retention::remove_broadcasts(&bus, 2).await.unwrap(), 7);
    assert_eq!(cogo_bus_retention::remove_broadcasts(&bus, 2).await.unwrap(), 0);
}

#[tokio::test]
async fn shared_values_go_once_their_time_is_over_and_no_others() {
    let database = cogo_test_support::database().await;
    let kv = Kv::new(database.pool.clone(), "test");
    for number in 0..7 {
        kv.put(&format!("short-{number}"), &json!(number), Some(Duration::from_millis(1))).await.unwrap();
    }
    kv.put("long", &json!(1), Some(Duration::from_secs(3_600))).await.unwrap();
    kv.put("for ever", &json!(2), None).await.unwrap();
    sqlx::query("select pg_sleep(0.01)").execute(&database.pool).await.unwrap();
    assert_eq!(cogo_bus_retention::sweep_values(&kv, 3).await.unwrap(), 7);
    assert_eq!(cogo_bus_retention::sweep_values(&kv, 3).await.unwrap(), 0);
    assert_eq!(keys(&database.pool).await, ["for ever", "long"]);
}

async fn keys(pool: &sqlx::PgPool) -> Vec<String> {
    sqlx::query_scalar("select key from registry.kv order by key").fetch_all(pool).await.expect("the database answers")
}

#[tokio::test]
async fn process_sweeps_shared_values() {
    let database = cogo_test_support::database().await;
    let kv = Kv::new(database.pool.clone(), "test");
    kv.put("short", &json!(1), Some(Duration::from_millis(1))).await.unwrap();
    kv.put("long", &json!(1), None).await.unwrap();
    let _process = tokio::process::Command::new(env!("CARGO_BIN_EXE_cogo-bus-retention"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let swept = async {
        while keys(&database.pool).await != ["long"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), swept).await.expect("the chore runs");
}
