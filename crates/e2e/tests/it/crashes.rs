//! kill -9 of everything while it works: tasks end, completions are recorded once, nobody is registered twice.

use std::time::{Duration, Instant};

use cogo_e2e::Fleet;
use serde_json::json;
use sqlx::PgPool;

/// Tasks sent around each kill.
const TASKS: usize = 12;

async fn send(fleet: &Fleet, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(fleet.submit("ask", json!({"question": format!("What is number {number}?")})).await.unwrap());
    }
    ids
}

async fn all_done(fleet: &Fleet, ids: &[String], victim: &str) {
    for id in ids {
        let ended = fleet.result(id).await.unwrap();
        assert_eq!(ended["status"], "done", "after the kill of {victim}: {ended}");
    }
}

/// Every message of every task ended exactly once, in three steps.
async fn recorded_once(pool: &PgPool, ids: &[String]) {
    for id in ids {
        let id: uuid::Uuid = id.parse().unwrap();
        let (steps, done): (i64, i64) = sqlx::query_as(
            "select count(*), count(*) filter (where status = 'done') from public.agent_messages where root_id = $1",
        )
        .bind(id)
        .fetch_one(pool)
        .await
        .unwrap();
        assert_eq!((steps, done), (3, 3));
        let completions: i64 =
            sqlx::query_scalar("select count(*) from public.bus_events where root_id = $1 and kind = 'execute_done'")
                .bind(id)
                .fetch_one(pool)
                .await
                .unwrap();
        assert_eq!(completions, 1);
    }
}

async fn nobody_is_registered_twice(pool: &PgPool) {
    let twice: Vec<String> = sqlx::query_scalar(
        "select name from registry.agents where state <> 'terminated' group by name, slot having count(*) > 1",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_costs_no_task() {
    let fleet = Fleet::start().unwrap();
    let pool = fleet.pool().unwrap();
    for victim in
        ["orchestrator-brain", "executor-dispatcher", "gateway-chat", "gateway-api", "bus-reclaimer", "metrics-server"]
    {
        let mut ids = send(&fleet, TASKS / 2).await;
        fleet.kill(victim).unwrap();
        ids.extend(send(&fleet, TASKS / 2).await);
        all_done(&fleet, &ids, victim).await;
        recorded_once(&pool, &ids).await;
    }
    nobody_is_registered_twice(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_postgres_ends_no_process_and_loses_no_acknowledged_message() {
    let fleet = Fleet::start().unwrap();
    let names = ["orchestrator-brain", "executor-dispatcher", "gateway-chat", "gateway-api", "metrics-server"];
    let pids = || names.map(|name| fleet.pid(name).unwrap());
    let before = pids();
    let mut ids = send(&fleet, TASKS).await;
    fleet.kill_postgres().unwrap();
    // these wait at the door until the database is back
    ids.extend(send(&fleet, TASKS).await);
    all_done(&fleet, &ids, "Postgres").await;
    assert_eq!(pids(), before, "a process did not survive");
    let pool = fleet.pool().unwrap();
    recorded_once(&pool, &ids).await;
    // a beat is 5 s away at most, and the first one may meet a database that is still busy with its recovery
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let active: i64 = sqlx::query_scalar("select count(*) from registry.agents where state = 'active'")
            .fetch_one(&pool)
            .await
            .unwrap();
        if active == fleet.size().unwrap() {
            break;
        }
        assert!(Instant::now() < patience, "{active} agents are back in the registry");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    nobody_is_registered_twice(&pool).await;
}
