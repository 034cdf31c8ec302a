//! Keys, tenants and browsers.

use axum::body::Body;
use cogo_bus_core::WakeUps;
use cogo_contracts::routes;
use cogo_gateway_api::{Gateway, Parts, Settings, database_guard};
use cogo_registry_core::{Registry, SchemaRegistry};
use cogo_service_runtime::{Dependency, Secret};
use cogo_telemetry::BusMetrics;

use super::support::{CHAT, door, door_with_keys, id_of, question};

#[tokio::test]
async fn without_a_valid_key_nothing_is_answered() {
    let door = door_with_keys(&["secret"]).await;
    let id = id_of(&door.post(&question("acme"), &[("apikey", "secret")]).await);
    let task = format!("/tasks/{id}");
    for (method, path) in [
        ("POST", CHAT),
        ("POST", "/tasks/submit"),
        ("GET", task.as_str()),
        ("GET", &format!("{task}/result")),
        ("GET", &format!("{task}/stream")),
        ("GET", &format!("/tasks/stream/{id}")),
        ("DELETE", &task),
    ] {
        for headers in [&[][..], &[("apikey", "wrong")], &[("authorization", "Bearer wrong"), ("apikey", "secret")]] {
            let answer = door.call(method, path, headers, Body::empty()).await;
            answer.problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"cogo\"", "{method} {path}");
        }
    }
    let both = [("authorization", "Bearer secret"), ("apikey", "secret")];
    assert_eq!(door.call("GET", &task, &both, Body::empty()).await.status, 200);
}

#[tokio::test]
async fn key_of_one_tenant_reaches_nothing_of_another() {
    let door = door_with_keys(&["acme:for-acme", "other:for-other", "for-all"]).await;
    let (acme, other, all) = ([("apikey", "for-acme")], [("apikey", "for-other")], [("apikey", "for-all")]);
    let id = id_of(&door.post(&question("acme"), &acme).await);
    door.post(&question("acme"), &other).await.problem(403, "wrong-tenant");
    for (method, path) in [
        ("GET", format!("/tasks/{id}")),
        ("GET", format!("/tasks/{id}/result?wait_ms=1")),
        ("GET", format!("/tasks/{id}/stream")),
        ("GET", format!("/tasks/stream/{id}")),
        ("DELETE", format!("/tasks/{id}")),
    ] {
        door.call(method, &path, &other, Body::empty()).await.problem(404, "no-such-task");
    }
    for key in [&acme, &all] {
        let answer = door.call("GET", &format!("/tasks/{id}"), key, Body::empty()).await;
        assert_eq!((answer.status, answer.json["status"].as_str()), (200, Some("queued")));
    }
    assert_eq!(door.claim(&routes::DECIDE).await.id, id);
}

#[tokio::test]
async fn open_door_is_closed_to_foreign_pages() {
    let door = door().await;
    for headers in [
        [("origin", "https://evil.example")],
        [("origin", "null")],
        [("origin", "http://localhost.evil.example:3000")],
        [("host", "evil.example:3000")],
        [("host", "")],
    ] {
        door.post(&question("acme"), &headers).await.problem(403, "foreign-origin");
        let preflight = door.call("OPTIONS", CHAT, &headers, Body::empty()).await;
        assert_eq!(preflight.status, 403, "{headers:?}");
    }
    for origin in ["http://localhost:5173", "http://127.0.0.1:3100", "http://[::1]:3100"] {
        let answer = door.post(&question("acme"), &[("origin", origin), ("host", "localhost:3000")]).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (202, origin));
    }
}

#[tokio::test]
async fn preflight_is_answered_without_a_key() {
    let door = door_with_keys(&["secret"]).await;
    let headers = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    let answer = door.call("OPTIONS", CHAT, &headers, Body::empty()).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, "*"));
    for name in ["authorization", "x-client-info", "apikey", "content-type"] {
        assert!(answer.header("access-control-allow-headers").contains(name));
    }
    let answer = door.post(&question("acme"), &[("origin", "https://app.example")]).await;
    answer.problem(401, "unauthorized");
    assert_eq!(answer.header("access-control-allow-origin"), "*", "a page must be able to read the problem");
}

#[tokio::test]
async fn door_without_keys_stays_on_loopback() {
    let door = door().await;
    let parts = Parts {
        bus: door.bus.clone(),
        schemas: SchemaRegistry::new(&Registry::new(door.bus.pool().clone())),
        wakeups: WakeUps::default(),
        metrics: BusMetrics::unread(),
        database: Dependency::alone("database", &database_guard()).unwrap(),
        stop: door.stop.clone(),
        tracker: door.tracker.clone(),
    };
    let open = Gateway::new(parts.clone(), &Settings::default()).unwrap();
    assert!(open.expect_safe([127, 0, 0, 1].into()).is_ok());
    let refusal = open.expect_safe([0, 0, 0, 0].into()).unwrap_err().to_string();
    assert!(refusal.contains("COGO_API_KEYS"), "{refusal}");
    let keyed = Gateway::new(parts, &Settings { api_keys: vec![Secret::new("secret")] }).unwrap();
    assert!(keyed.expect_safe([0, 0, 0, 0].into()).is_ok());
}
