//! The HTTP side: dry runs, enqueueing, the state, and clear answers to bad input.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header::CONTENT_TYPE},
};
use cogo_contracts::{DecideReply, DecideRequest, Problem, routes::DECIDE};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

use crate::it::support::{World, ask, world};

fn router(world: &World) -> Router {
    cogo_orchestrator_brain::routes(Arc::clone(&world.brain), world.bus.clone())
}

async fn call(world: &World, method: &str, path: &str, body: impl Into<Body>) -> (u16, String, Value) {
    let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
    answer(world, request.body(body.into()).unwrap()).await
}

async fn answer(world: &World, request: Request<Body>) -> (u16, String, Value) {
    let response = router(world).oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap()).to_owned();
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, kind, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn dry_run_decides_and_leaves_no_trace() {
    let world = world().await;
    let body = json!({"tenant": "acme", "intent": "ask", "payload": {"question": "x"}}).to_string();
    let (status, _, reply) = call(&world, "POST", "/api/orchestrator/decide", body).await;
    assert_eq!(status, 200);
    let reply: DecideReply = serde_json::from_value(reply).unwrap();
    assert_eq!((reply.candidates.len(), reply.probability), (1, 1.0));
    assert_eq!(world.count("public.orch_decisions").await, 0);
    assert_eq!(world.count("public.agent_messages").await, 0);
}

#[tokio::test]
async fn body_that_is_not_declared_as_json_is_refused() {
    let world = world().await;
    let body = json!({"tenant": "acme", "intent": "ask", "payload": {"question": "x"}}).to_string();
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let mut request = Request::builder().method("POST").uri("/api/orchestrator/decide-enqueue");
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let (status, _, problem) = answer(&world, request.body(Body::from(body.clone())).unwrap()).await;
        assert_eq!((status, problem["code"].as_str()), (415, Some("unsupported-media-type")), "{kind:?}");
    }
    assert_eq!(world.count("public.agent_messages").await, 0);
}

#[tokio::test]
async fn enqueued_request_is_a_message_for_the_brain() {
    let world = world().await;
    let body = json!({"tenant": "acme", "intent": "ask", "payload": {"question": "x"}, "ttl_ms": 9000}).to_string();
    let (status, _, reply) = call(&world, "POST", "/api/orchestrator/decide-enqueue", body).await;
    assert_eq!(status, 202);
    let claimed = world.claim(&DECIDE, "brain").await.unwrap();
    assert_eq!(json!(claimed.id), reply["id"]);
    assert!(claimed.id != Uuid::nil() && claimed.remaining_ms.unwrap() <= 9000);
    let request: DecideRequest = serde_json::from_value(claimed.payload).unwrap();
    assert_eq!((request.intent.as_str(), request.ttl_ms), ("ask", Some(9000)));
}

#[tokio::test]
async fn state_shows_policy_targets_and_recent_decisions() {
    let world = world().await;
    world.agent("gateway-chat", &[]).await;
    world.decide(&ask()).await;
    world.brain.refresh().await.unwrap();
    let (status, _, state) = call(&world, "GET", "/api/orchestrator/state", Body::empty()).await;
    assert_eq!(status, 200);
    assert_eq!(state["policy"]["weights"]["health"], 0.4);
    let ask = &state["intents"][0];
    assert_eq!((&ask["intent"], &ask["decisions"], &ask["epsilon"]), (&json!("ask"), &json!(1), &json!(0.0)));
    assert_eq!((&ask["targets"][0]["live"], &ask["targets"][0]["scores"]["health"]), (&json!(true), &json!(0.5)));
    assert_eq!(state["recent"][0]["route"], "gateway/chat/0");
}

#[tokio::test]
async fn bad_input_is_answered_with_a_problem() {
    let world = world().await;
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep = format!(r#"{{"tenant":"t","intent":"ask","payload":{deep}}}"#);
    for (body, status, code) in [
        ("", 400, "malformed-json"),
        ("{", 400, "malformed-json"),
        ("[]", 400, "malformed-json"),
        (r#"{"intent":"ask"}"#, 400, "malformed-json"),
        (r#"{"tenant":7,"intent":"ask"}"#, 400, "malformed-json"),
        (r#"{"tenant":"a b","intent":"ask"}"#, 400, "malformed-json"),
        (r#"{"tenant":"t","intent":{}}"#, 400, "malformed-json"),
        (r#"{"tenant":"t","intent":"ask","ttl_ms":-1}"#, 400, "malformed-json"),
        (r#"{"tenant":"t","intent":"ask","budget":{"maxCostUsd":1e999}}"#, 400, "malformed-json"),
        (r#"{"tenant":"t","intent":"ask","colour":1}"#, 400, "malformed-json"),
        (deep.as_str(), 400, "malformed-json"),
        (r#"{"tenant":"t","intent":"nope"}"#, 422, "unknown-intent"),
        (r#"{"tenant":"t","intent":"ask","payload":[]}"#, 422, "payload-not-an-object"),
        (r#"{"tenant":"t","intent":"ask","payload":{"a":"\u0000"}}"#, 422, "nul-in-text"),
        (r#"{"tenant":"t","intent":"ask","budget":{"maxCostUsd":-1}}"#, 422, "bad-budget"),
        (r#"{"tenant":"t","intent":"ask","ttl_ms":0}"#, 422, "no-time"),
    ] {
        for path in ["/api/orchestrator/decide", "/api/orchestrator/decide-enqueue"] {
            let (answered, kind, problem) = call(&world, "POST", path, body.to_owned()).await;
            let shown: String = body.chars().take(80).collect();
            assert_eq!((answered, kind.as_str()), (status, Problem::MEDIA_TYPE), "{path} {shown}");
            assert_eq!(problem["code"], code, "{path} {shown}");
        }
    }
    let (status, _, _) = call(&world, "POST", "/api/orchestrator/decide", "x".repeat(3 << 20)).await;
    assert_eq!(status, 413);
    assert_eq!(world.count("public.agent_messages").await, 0);
}
