//! What is refused, and with which words.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use cogo_bus_core::{Bus, WakeUps};
use cogo_db::PoolSettings;
use cogo_gateway_api::{Gateway, Parts, Settings, database_guard, router};
use cogo_registry_core::{Registry, SchemaRegistry};
use cogo_service_runtime::Dependency;
use cogo_supervision::breaker::Phase;
use cogo_telemetry::BusMetrics;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use uuid::Uuid;

use super::support::{CHAT, door, question};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn unusable_bodies_are_refused_with_their_reason() {
    let door = door().await;
    let large =
        json!({"tenant": "acme", "intent": "ask", "payload": {"question": "x".repeat(1024 * 1024)}}).to_string();
    let deep = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"tenant":"acme","intent":"ask","payload":{{"a":{open}{close}}}}}"#)
    };
    for (body, status, code, words) in [
        ("", 400, "malformed-json", "EOF"),
        ("{\"tenant\": \"acme\"", 400, "malformed-json", "EOF"),
        ("not json", 400, "malformed-json", "line 1 column"),
        ("[]", 400, "malformed-json", "an array"),
        ("null", 400, "malformed-json", "null"),
        (&deep(100_000), 400, "malformed-json", "recursion limit"),
        (&deep(80), 400, "malformed-json", "64 levels"),
        (r#"{"tenant":"acme","intent":"ask","payload":{"a":["b","\u0000"]}}"#, 400, "malformed-json", "/payload/a/1"),
        (r#"{"tenant":"a\u0000b","intent":"ask","payload":{}}"#, 400, "malformed-json", "/tenant"),
        (r#"{"tenant":"acme","intent":"ask","payload":{"a":"\ud800"}}"#, 400, "malformed-json", "hex escape"),
        (r#"{"tenant":"acme","intent":"ask","payload":{"a":1e999}}"#, 400, "malformed-json", "out of range"),
        (r#"{"tenant":5,"intent":"ask","payload":{}}"#, 422, "bad-field", "tenant"),
        (r#"{"tenant":"a b","intent":"ask","payload":{}}"#, 422, "bad-field", "tenant"),
        (r#"{"tenant":"acme","intent":"ask","payload":[]}"#, 422, "bad-field", "payload"),
        (r#"{"tenant":"acme","intent":"ask"}"#, 422, "bad-field", "payload"),
        (r#"{"tenant":"acme","intent":"ask","payload":{},"ttl_ms":"soon"}"#, 422, "bad-field", "ttl_ms"),
        (r#"{"tenant":"acme","intent":"ask","payload":{},"extra":1}"#, 422, "unknown-field", "extra"),
        (r#"{"tenant":"acme","intent":"'; drop table","payload":{}}"#, 422, "unknown-intent", "drop table"),
        (&large, 413, "too-large", "1 MiB"),
    ] {
        let answer = door.call("POST", CHAT, &[JSON], body.to_owned()).await;
        let said = answer.problem(status, code);
        assert!(said.contains(words), "{words:?} is not in {said}");
        assert!(said.len() < 600, "a hostile value is echoed at length");
    }
    let not_utf8 = door.call("POST", CHAT, &[JSON], Body::from(b"{\"tenant\":\"\xff\"}".to_vec())).await;
    not_utf8.problem(400, "malformed-json");
    let rows: i64 =
        sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(door.bus.pool()).await.unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn largest_body_is_taken_or_refused_but_never_lost() {
    let door = door().await;
    let mut body = question("acme");
    body["payload"]["question"] = Value::from("x".repeat(1024 * 1024 - 200));
    assert_eq!(door.post(&body, &[]).await.status, 202);
    // numbers take more room in the database than in the text, so the contract has the last word
    body["payload"]["question"] = json!(vec![1; 500_000]);
    door.post(&body, &[]).await.problem(413, "too-large");
}

#[tokio::test]
async fn content_type_other_than_json_is_refused() {
    let door = door().await;
    for headers in
        [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/x-www-form-urlencoded")]]
    {
        let answer = door.call("POST", CHAT, headers, question("acme").to_string()).await;
        answer.problem(415, "unsupported-media-type");
    }
}

#[tokio::test]
async fn unusable_idempotency_keys_are_refused() {
    let door = door().await;
    let long = "x".repeat(181);
    for key in ["", long.as_str(), "k\u{e9}y"] {
        let answer = door.post(&question("acme"), &[("idempotency-key", key)]).await;
        answer.problem(400, "bad-request");
    }
}

#[tokio::test]
async fn unknown_paths_methods_and_ids_are_problems() {
    let door = door().await;
    let id = Uuid::now_v7();
    for (method, path, status, code) in [
        ("GET", "/nowhere".to_owned(), 404, "no-such-route"),
        ("GET", CHAT.to_owned(), 405, "wrong-method"),
        ("PUT", format!("/tasks/{id}"), 405, "wrong-method"),
        ("GET", format!("/tasks/{id}"), 404, "no-such-task"),
        ("GET", format!("/tasks/{id}/result"), 404, "no-such-task"),
        ("GET", format!("/tasks/{id}/stream"), 404, "no-such-task"),
        ("GET", format!("/tasks/stream/{id}"), 404, "no-such-task"),
        ("DELETE", format!("/tasks/{id}"), 404, "no-such-task"),
        ("GET", "/tasks/7".to_owned(), 400, "bad-request"),
        ("GET", "/tasks/%00".to_owned(), 400, "bad-request"),
        ("GET", "/tasks/%ff/result".to_owned(), 400, "bad-request"),
        ("GET", format!("/tasks/{id}/result?wait_ms=soon"), 400, "bad-request"),
        ("GET", format!("/tasks/{id}/result?wait=5"), 400, "bad-request"),
    ] {
        door.call(method, &path, &[], Body::empty()).await.problem(status, code);
    }
    let wrong = door.call("PUT", CHAT, &[], Body::empty()).await;
    assert_eq!(wrong.header("allow"), "POST");
}

#[tokio::test]
async fn absent_database_answers_503_and_never_hangs() {
    let mut settings = PoolSettings::new("postgres://nobody@127.0.0.1:1/none", "test");
    settings.acquire_timeout = Duration::from_millis(200);
    let database = Dependency::alone("database", &database_guard()).unwrap();
    let pool = cogo_db::connect(&settings).unwrap();
    let parts = Parts {
        bus: Bus::new(pool.clone()),
        schemas: SchemaRegistry::new(&Registry::new(pool)),
        wakeups: WakeUps::default(),
        metrics: BusMetrics::unread(),
        database: database.clone(),
        stop: CancellationToken::new(),
        tracker: TaskTracker::new(),
    };
    let router = router(Arc::new(Gateway::new(parts, &Settings::default()).unwrap()));
    for (method, path) in [("POST", CHAT), ("GET", "/tasks/0199aa00-0000-7000-8000-000000000000")] {
        let request = axum::http::Request::builder().method(method).uri(path).header(JSON.0, JSON.1);
        let request = request.body(Body::from(question("acme").to_string())).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    // after a few more of them nobody is made to wait for it any more
    for _ in 0..8 {
        let request = axum::http::Request::builder().uri("/tasks/0199aa00-0000-7000-8000-000000000000");
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 503);
        if database.phase() == Phase::Open {
            return;
        }
    }
    panic!("the circuit stays closed");
}
