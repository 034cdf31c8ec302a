//! Events, failures, messages: paging, grouping, refusals.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::it::seeded::{get_json, refused, seed, server};

#[tokio::test]
async fn events_are_paged_in_the_order_of_writing() {
    let database = cogo_test_support::database().await;
    for n in 1..=7 {
        let kind = if n % 2 == 0 { "execute_done" } else { "execute_failed" };
        sqlx::query("insert into public.bus_events (kind, tenant, detail) values ($1, 'acme', $2)")
            .bind(kind)
            .bind(json!({"n": n}))
            .execute(&database.pool)
            .await
            .unwrap();
    }
    let server = server(&database.pool);
    let numbers = |page: &Value| -> Vec<i64> {
        page["items"].as_array().unwrap().iter().map(|event| event["detail"]["n"].as_i64().unwrap()).collect()
    };

    let newest = get_json(&server, "/api/metrics/bus/events?limit=3").await;
    assert_eq!(numbers(&newest), [5, 6, 7]);
    let first = get_json(&server, "/api/metrics/bus/events?after=0&limit=4").await;
    assert_eq!(numbers(&first), [1, 2, 3, 4]);
    let rest = get_json(&server, &format!("/api/metrics/bus/events?after={}", first["next"])).await;
    assert_eq!(numbers(&rest), [5, 6, 7]);
    let none = get_json(&server, &format!("/api/metrics/bus/events?after={}", rest["next"])).await;
    assert_eq!(none, json!({"items": [], "next": rest["next"]}));
    let failed = get_json(&server, "/api/metrics/bus/events?kind=execute_failed&limit=2").await;
    assert_eq!(numbers(&failed), [5, 7]);
    let failed = get_json(&server, "/api/metrics/bus/events?kind=execute_failed&after=0&limit=2").await;
    assert_eq!(numbers(&failed), [1, 3]);

    for query in ["limit=0", "limit=501", "limit=x", "after=x", "kind=%00", "before=3"] {
        refused(&server, &format!("/api/metrics/bus/events?{query}"), 400).await;
    }
}

#[tokio::test]
async fn failures_with_one_cause_are_one_group() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    sqlx::query(
        "update public.agent_messages set error = 'payload refused' where id in (
           select id from public.agent_messages where status = 'failed' order by done_at limit 2)",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let server = server(&database.pool);
    let failures = get_json(&server, "/api/metrics/bus/failures").await;
    let groups = failures["items"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{failures}");
    assert_eq!(groups[0]["error"], "Model <id> timed out after <n> ms");
    assert_eq!(groups[0]["count"], 23);
    assert_eq!(groups[1]["error"], "payload refused");
    assert_eq!(groups[1]["count"], 2);

    let newest: (String, String) = sqlx::query_as(
        "select id::text, error from public.agent_messages where status = 'failed' order by done_at desc limit 1",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(groups[0]["sample_id"], newest.0);
    assert_eq!(groups[0]["sample_error"], newest.1);
    assert!(groups[0]["first_seen"].as_str() < groups[0]["last_seen"].as_str());

    let one = get_json(&server, "/api/metrics/bus/failures?limit=1").await;
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn recent_messages_show_what_changed_last_and_no_content() {
    let database = cogo_test_support::database().await;
    seed(&database.pool).await;
    sqlx::query(
        "update public.agent_messages set payload = '{\"secret\": \"hunter2\"}', result = '{\"a\": \"hunter2\"}'",
    )
    .execute(&database.pool)
    .await
    .unwrap();
    let page = get_json(&server(&database.pool), "/api/metrics/bus/messages?limit=500").await;
    let messages = page["items"].as_array().unwrap();
    assert_eq!(messages.len(), 111 + 25 + 3 + 6 + 6);
    let changed: Vec<_> = messages
        .iter()
        // not as text: whole milliseconds are written with fewer digits
        .map(|message| message["changed_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap())
        .collect();
    assert!(changed.is_sorted_by(|a, b| a >= b));
    assert!(!page.to_string().contains("hunter2"));

    let claimed = messages.iter().find(|message| message["status"] == "claimed").unwrap();
    let waited = claimed["wait_ms"].as_f64().unwrap();
    assert!((waited - 2000.0).abs() < 50.0, "{waited}");
    assert!(claimed["run_ms"].as_f64().unwrap() >= 1000.0);
    let queued = messages.iter().find(|message| message["status"] == "queued").unwrap();
    assert_eq!((&queued["wait_ms"], &queued["run_ms"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn an_unknown_address_or_method_is_a_problem() {
    let database = cogo_test_support::database().await;
    let server = server(&database.pool);
    assert_eq!(refused(&server, "/api/metrics/nothing", 404).await["code"], "not-found");
    assert_eq!(refused(&server, "/dashboard/other", 404).await["code"], "not-found");
    let list = get_json(&server, "/api/metrics/agents").await;
    assert_eq!(list, json!({"items": []}));
}
