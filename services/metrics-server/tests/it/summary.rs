//! The figures equal the rows.

use cogo_contracts::AgentState;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::it::seeded::{get, get_json, refused, seed, seed_agents, server};

fn near(value: &Value, expected: f64, tolerance: f64) {
    let value = value.as_f64().unwrap_or(f64::NAN);
    assert!((value - expected).abs() <= tolerance, "{value} is not {expected} ± {tolerance}");
}

async fn count(pool: &PgPool, status: &str) -> i64 {
    sqlx::query_scalar("select count(*) from public.agent_messages where status = $1")
        .bind(status)
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn counts_rates_and_latencies_equal_the_rows() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    let summary = get_json(&server(&database.pool), "/api/metrics/summary").await;

    let bus = &summary["bus"];
    for status in ["queued", "claimed", "done", "failed", "cancelled"] {
        assert_eq!(bus["byStatus"][status], count(&database.pool, status).await, "{status}");
    }
    assert_eq!(bus["byStatus"]["queued"], 6);
    assert_eq!(bus["delayed"], 2);
    assert_eq!(summary["exact"], true);
    assert_eq!(summary["v"], 1);
    assert!(summary["age_ms"].as_u64().unwrap() < 30_000);

    // of 1, 2, … 100 ms the percentiles are known
    near(&bus["latency_ms"]["p50"], 50.5, 1e-6);
    near(&bus["latency_ms"]["p90"], 90.1, 1e-6);
    near(&bus["latency_ms"]["p99"], 99.01, 1e-6);
    assert_eq!(bus["latency_ms"]["n"], 100);
    // 25 waited 0 ms and 100 waited 0.5, 1, … 50 ms
    assert_eq!(bus["wait_ms"]["n"], 125);
    near(&bus["wait_ms"]["p50"], 19.0, 1e-6);
    near(&bus["failure_rate"], 0.2, 1e-9);
    near(&bus["throughput_per_s"], 100.0 / 300.0, 1e-9);
    // the delayed ones are older, but they wait for their time and not for a worker
    near(&bus["oldest_queued_age_s"], 70.0, 30.0);
    assert_eq!(summary["window_s"], 300.0);

    let routes = bus["byKey"].as_array().unwrap();
    let names: Vec<_> = routes.iter().map(|row| format!("{}/{}", row["service"], row["role"])).collect();
    assert_eq!(names, [r#""gateway"/"chat""#, r#""rag"/"embed""#], "kg/build ended before the window");
    assert_eq!(routes[0]["claimed"], 3);
    assert_eq!(routes[0]["failed"], 25);
    assert_eq!(routes[0]["oldest_age_s"], Value::Null);
    assert_eq!(routes[0]["p50_ms"], Value::Null);
    assert_eq!(routes[1]["queued"], 6);
    assert_eq!(routes[1]["done"], 100);
    near(&routes[1]["p90_ms"], 90.1, 1e-6);
}

#[tokio::test]
async fn a_window_bounds_rates_but_not_counts() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    let server = server(&database.pool);
    let short = get_json(&server, "/api/metrics/summary?window=1").await;
    assert_eq!(short["bus"]["latency_ms"], json!({"p50": null, "p90": null, "p99": null, "n": 0}));
    assert_eq!(short["bus"]["byStatus"]["done"], 111);
    let long = get_json(&server, "/api/metrics/summary?window=86400").await;
    assert_eq!(long["bus"]["latency_ms"]["n"], 111);

    for query in ["window=0", "window=86401", "window=-1", "window=five", "windows=5"] {
        refused(&server, &format!("/api/metrics/summary?{query}"), 400).await;
    }
}

#[tokio::test]
async fn an_empty_bus_has_zeros_and_no_invented_latencies() {
    let database = cogo_test_support::database().await;
    let summary = get_json(&server(&database.pool), "/api/metrics/summary").await;
    let bus = &summary["bus"];
    assert_eq!(bus["byStatus"], json!({"queued": 0, "claimed": 0, "done": 0, "failed": 0, "cancelled": 0}));
    assert_eq!(bus["failure_rate"], 0.0);
    assert_eq!(bus["throughput_per_s"], 0.0);
    assert_eq!(bus["oldest_queued_age_s"], Value::Null);
    assert_eq!(bus["latency_ms"]["p50"], Value::Null);
    assert_eq!(bus["byKey"], json!([]));
    for state in AgentState::ALL.into_iter().filter(|state| *state != AgentState::Terminated) {
        assert_eq!(summary["agents"][state.as_str()], 0, "{state}");
    }
}

#[tokio::test]
async fn a_table_above_the_cap_is_answered_with_at_least() {
    let database = cogo_test_support::database().await;
    let pool = &database.pool;
    sqlx::query("alter table public.agent_messages disable trigger user").execute(pool).await.unwrap();
    sqlx::query(
        "insert into public.agent_messages (root_id, service, role, tenant, payload, status, done_at)
         select gen_random_uuid(), 'rag', 'embed', 'acme', '{}', 'done', clock_timestamp()
           from generate_series(1, 100005)",
    )
    .execute(pool)
    .await
    .unwrap();
    let summary = get_json(&server(pool), "/api/metrics/summary").await;
    assert_eq!(summary["exact"], false);
    assert_eq!(summary["bus"]["capped"]["done"], true);
    assert_eq!(summary["bus"]["capped"]["queued"], false);
    let done = summary["bus"]["byStatus"]["done"].as_i64().unwrap();
    assert!((100_000..=100_005).contains(&done), "{done}");
}

#[tokio::test]
async fn a_message_that_seems_to_come_from_the_future_has_no_negative_latency() {
    let database = cogo_test_support::database().await;
    let pool = &database.pool;
    sqlx::query("alter table public.agent_messages disable trigger user").execute(pool).await.unwrap();
    sqlx::query(
        "insert into public.agent_messages (root_id, service, role, tenant, payload, status, created_at, done_at)
         values (gen_random_uuid(), 'rag', 'embed', 'acme', '{}', 'done', clock_timestamp() + interval '1 hour',
                 clock_timestamp())",
    )
    .execute(pool)
    .await
    .unwrap();
    let summary = get_json(&server(pool), "/api/metrics/summary").await;
    assert_eq!(summary["bus"]["latency_ms"]["p99"], 0.0);
}

#[tokio::test]
async fn a_database_that_is_away_is_a_problem_and_not_a_zero() {
    let database = cogo_test_support::database().await;
    let server = server(&database.pool);
    database.pool.close().await;
    let problem = refused(&server, "/api/metrics/summary", 503).await;
    assert_eq!(problem["code"], "unavailable");
}

#[tokio::test]
async fn agents_are_those_of_the_registry() {
    let database = cogo_test_support::database().await;
    seed_agents(&database.pool).await;
    let server = server(&database.pool);
    let summary = get_json(&server, "/api/metrics/summary").await;
    let expected = json!({"active": 1, "suspended": 1, "registered": 1, "suspect": 0, "draining": 0});
    assert_eq!(summary["agents"], expected);
    let agents = get_json(&server, "/api/metrics/agents").await;
    let names: Vec<_> = agents["items"].as_array().unwrap().iter().map(|agent| &agent["name"]).collect();
    assert_eq!(names, ["gateway-api", "kg-builder", "rag-embed"]);
    let scrape = get(&server, "/metrics").await;
    assert!(scrape.text().contains("\ncogo_agents{state=\"suspended\"} 1\n"));
}
