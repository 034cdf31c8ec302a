//! Retention against a real Postgres.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Completion, NewBroadcast};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_registry_core::Kv;
use cogo_test_support::TestDatabase;
use serde_json::json;
use uuid::Uuid;

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

/// A part of the messages for some days ago, and an id of that day.
async fn day_ago(bus: &Bus, days: i32) -> (String, Uuid) {
    let (part, id, next): (String, Uuid, Uuid) = sqlx::query_as(
        "select 'bus.messages_' || to_char(day, 'YYYYMMDD'), bus.first_id(day), bus.first_id(day + interval '1 day')
           from date_trunc('day', clock_timestamp() - $1 * interval '1 day', 'UTC') as day",
    )
    .bind(days)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    let make = format!("create table {part} partition of public.agent_messages for values from ('{id}') to ('{next}')");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(bus.pool()).await.unwrap();
    (part, id)
}

#[tokio::test]
async fn all_days_that_are_too_old_by_a_shorter_time_go_in_one_turn() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let tenant = Tenant::new("t").unwrap();
    let mut parts = Vec::new();
    for days in 2..=6 {
        let (part, id) = day_ago(&bus, days).await;
        parts.push(part);
        let message = NewMessage { id: Some(id), ..NewMessage::new(ROUTE, Some(tenant.clone()), json!({})) };
        bus.enqueue(&message).await.unwrap();
    }
    let lease = Duration::from_secs(30);
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 20, lease };
    for claimed in bus.claim(&request).await.unwrap() {
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    }
    sqlx::query("update public.agent_messages set done_at = done_at - interval '2 days'")
        .execute(&database.pool)
        .await
        .unwrap();
    let (removed, _) = cogo_bus_retention::remove(&bus, Duration::from_hours(24), 1_000).await.unwrap();
    assert_eq!(removed, 5);
    let left: Vec<String> =
        sqlx::query_scalar("select part from unnest($1) as part where to_regclass(part) is not null")
            .bind(parts)
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Lets a function of the bus fail.
async fn breaks(bus: &Bus, function: &str) {
    let broken = format!(
        "create or replace function bus.{function}(keep interval, LIMIT) returns integer language plpgsql
         set search_path = pg_catalog, pg_temp as $$ begin raise exception 'broken'; end $$"
    );
    let limit = if function == "retain" { "max_tasks integer default 1000" } else { "max_rows integer default 5000" };
    sqlx::raw_sql(sqlx::AssertSqlSafe(broken.replace("LIMIT", limit))).execute(bus.pool()).await.unwrap();
}

#[tokio::test]
async fn what_fails_is_told_and_keeps_nothing_else_from_being_removed() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    breaks(&bus, "retain").await;
    breaks(&bus, "retain_partials").await;
    let tenant = Tenant::new("t").unwrap();
    let sent = bus.enqueue(&NewMessage::new(ROUTE, Some(tenant.clone()), json!({}))).await.unwrap();
    bus.cancel(sent.id).await.unwrap();
    bus.put_artifact(&tenant, "text/plain", b"old").await.unwrap();
    let counted = "select (select count(*) from public.bus_events), (select count(*) from bus.artifacts)";
    let (events, artifacts): (i64, i64) = sqlx::query_as(counted).fetch_one(&database.pool).await.unwrap();
    assert!(events > 0 && artifacts == 1);
    assert!(cogo_bus_retention::remove(&bus, Duration::ZERO, 100).await.is_err());
    assert!(cogo_bus_retention::remove_payloads(&bus, Duration::ZERO, Duration::ZERO, 100).await.is_err());
    let left: (i64, i64) = sqlx::query_as(counted).fetch_one(&database.pool).await.unwrap();
    assert_eq!(left, (0, 0));
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
    let _process = process(&database);
    until("the chore runs", async || keys(&database.pool).await == ["long"]).await;
}

fn process(database: &TestDatabase) -> tokio::process::Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_cogo-bus-retention"))
        .env("DATABASE_URL", &database.url)
        .env("COGO_PORT", "0")
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect(what);
}

#[tokio::test]
async fn process_makes_the_days_to_come_though_nothing_can_be_removed() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    sqlx::query("select bus.ensure_partitions()").execute(&database.pool).await.unwrap();
    breaks(&bus, "retain").await;
    let last: String = sqlx::query_scalar(
        "select max(inhrelid::regclass::text) from pg_inherits
          where inhparent = 'public.agent_messages'::regclass and inhrelid <> 'bus.messages_other'::regclass",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {last}"))).execute(&database.pool).await.unwrap();
    let _process = process(&database);
    until("the day is made", async || {
        let stands = sqlx::query_scalar("select to_regclass($1) is not null").bind(&last);
        stands.fetch_one(&database.pool).await.unwrap()
    })
    .await;
}
