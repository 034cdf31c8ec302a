//! A worker that connects as `service_role` sees the same figures as the owner of the schema, and can do no more than read.

use std::time::Duration;

use cogo_bus_core::{Bus, CountedBy, Failure, Limit, failures, recent_events, recent_messages, summary, totals};
use cogo_contracts::NewMessage;
use cogo_test_support::TestDatabase;
use serde_json::json;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::support::{ROUTE, bus, claim, message, numbered};

const WINDOW: Duration = Duration::from_secs(300);

/// Connections that are `service_role` from their first moment, as those of a worker's own role are.
pub(crate) async fn as_service_role(database: &TestDatabase) -> PgPool {
    let options: PgConnectOptions = database.url.parse().unwrap();
    let options = options.options([("role", "service_role")]);
    PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap()
}

/// Something in every place that figures look at.
async fn fill(bus: &Bus) {
    let sent = bus.enqueue_many(&numbered(8)).await.unwrap();
    let grouped = || NewMessage { group_key: Some("g".to_owned()), ..message(json!({})) };
    let delayed = NewMessage { delay_ms: Some(60_000), ..message(json!({})) };
    let join = NewMessage { awaits: vec![sent[7].id], ..message(json!({})) };
    let held = claim(bus, "w", 3).await;
    bus.enqueue_many(&[grouped(), grouped(), delayed, join]).await.unwrap();
    let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&held[0].fence(), "w", &broken).await.unwrap();
    assert!(bus.complete(&held[1].fence(), "w", &Default::default()).await.unwrap());
    bus.pause_route(&ROUTE, "a test").await.unwrap();
    let limit =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: Some(3), per_second: None, burst: None };
    bus.set_limit(&ROUTE, &limit, "a test").await.unwrap();
}

#[tokio::test]
async fn figures_are_those_that_the_owner_sees() {
    let (bus, database) = bus().await;
    fill(&bus).await;
    let worker = as_service_role(&database).await;
    let is_role: bool = sqlx::query_scalar("select current_user = 'service_role'").fetch_one(&worker).await.unwrap();
    assert!(is_role);
    let (owns, sees) = (summary(bus.pool(), WINDOW).await.unwrap(), summary(&worker, WINDOW).await.unwrap());
    assert_eq!((owns.by_status.failed, owns.by_status.claimed, owns.by_status.done, owns.delayed), (1, 1, 1, 1));
    assert_eq!((sees.by_status, sees.delayed, sees.latency_ms), (owns.by_status, owns.delayed, owns.latency_ms));
    assert_eq!(sees.by_route.len(), owns.by_route.len());
    assert_eq!(sees.by_route[0].mean_run_ms, owns.by_route[0].mean_run_ms);
    let without_age = |totals: Vec<cogo_bus_core::StatusTotal>| {
        totals.into_iter().map(|total| (total.role, total.status, total.messages)).collect::<Vec<_>>()
    };
    assert_eq!(without_age(totals(&worker).await.unwrap()), without_age(totals(bus.pool()).await.unwrap()));
    assert_eq!(failures(&worker, 10).await.unwrap(), failures(bus.pool(), 10).await.unwrap());
    let ids = |messages: Vec<cogo_bus_core::RecentMessage>| messages.into_iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(recent_messages(&worker, 50).await.unwrap()), ids(recent_messages(bus.pool(), 50).await.unwrap()));
    let events = async |pool: &PgPool| recent_events(pool, None, None, 50).await.unwrap();
    assert_eq!(events(&worker).await, events(bus.pool()).await);
    let theirs = Bus::new(worker.clone());
    assert_eq!(theirs.routes().await.unwrap(), bus.routes().await.unwrap());
    assert_eq!(theirs.dead_letters(10).await.unwrap().len(), 1);
    assert!(matches!(cogo_db::schema_state(&worker).await.unwrap(), cogo_db::SchemaState::Fits(_)));
}

#[tokio::test]
async fn nothing_beside_the_figures_may_be_read_and_nothing_written() {
    let (bus, database) = bus().await;
    fill(&bus).await;
    let worker = as_service_role(&database).await;
    let mut statements: Vec<String> = [
        "select tenant from bus.dead_letters",
        "select limit_key from bus.claims",
        "select missing from bus.joins",
        "select keyed from bus.routes",
        "select 1 from bus.keys",
        "select 1 from bus.attempts",
        "select 1 from bus.buckets",
        "select 1 from bus.watchers",
        "select checksum from public._sqlx_migrations",
        "update public._sqlx_migrations set success = false",
        "insert into bus.routes (lane, service, role) values (1, 'a', 'b')",
    ]
    .map(str::to_owned)
    .into();
    for table in ["ready", "delayed", "groups", "joins", "claims", "dead_letters", "routes", "limits"] {
        statements.push(format!("delete from bus.{table}"));
        statements.push(format!("truncate bus.{table}"));
    }
    for statement in statements {
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&worker).await;
        let code = refused.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}");
    }
}
