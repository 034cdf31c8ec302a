//! The chores of the reclaimer against a real Postgres.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use cogo_bus_core::{Bus, MissedRuns, NewSchedule};
use cogo_bus_reclaimer::fire_during;
use cogo_contracts::{Route, Tenant};
use serde_json::json;

const ROUTE: Route = Route::constant("test", "work");

fn schedule(name: &str, cron: &str) -> NewSchedule {
    let tenant = Tenant::new("acme").unwrap();
    NewSchedule { missed: MissedRuns::RunAll, ..NewSchedule::new(name, tenant, cron, ROUTE, json!({})) }
}

#[tokio::test]
async fn one_turn_fires_every_second_that_falls_into_it() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    bus.upsert_schedule(&schedule("ticks", "* * * * * *")).await.unwrap();
    bus.upsert_schedule(&schedule("yearly", "0 0 1 1 *")).await.unwrap();
    let mut sent = Vec::new();
    // a machine that stands still may use up a turn, but not each
    while sent.len() < 5 && sent.last().is_none_or(|sent| *sent < 3) {
        sent.push(fire_during(&bus, 1, Duration::from_millis(3_500)).await.unwrap().sent);
    }
    assert!(sent.last().is_some_and(|sent| *sent >= 3), "{sent:?}");
    // never early, by the clock that the schedule is meant by
    let early: i64 = sqlx::query_scalar(
        "select count(*) from public.agent_messages where (headers ->> 'scheduled_for')::timestamptz > created_at",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(early, 0);
}

#[tokio::test]
async fn turn_without_schedules_ends_at_once_and_one_with_a_distant_one_too() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let day = Duration::from_secs(86_400);
    let turn = fire_during(&bus, 10, day);
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), turn).await.unwrap().unwrap().due, 0);
    bus.upsert_schedule(&schedule("yearly", "0 0 1 1 *")).await.unwrap();
    let turn = fire_during(&bus, 10, Duration::from_secs(1));
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), turn).await.unwrap().unwrap().sent, 0);
}
