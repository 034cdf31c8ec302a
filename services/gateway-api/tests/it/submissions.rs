//! Taking tasks in.

use cogo_contracts::{DecideRequest, Direction, SchemaSubject, routes};
use cogo_registry_core::{NewSchema, SchemaCatalog, SchemaDocument};
use cogo_telemetry::Look;
use serde_json::{Value, json};

use super::support::{door, door_with_keys, id_of, question};

#[tokio::test]
async fn question_is_accepted_for_the_orchestrator() {
    let door = door().await;
    let mut body = question("acme");
    body["budget"] = json!({"maxCostUsd": 0.5});
    body["ttl_ms"] = json!(60_000);
    let answer = door.post(&body, &[]).await;
    let id = id_of(&answer);
    assert_eq!(answer.header("location"), format!("/tasks/{id}"));

    let claimed = door.claim(&routes::DECIDE).await;
    assert_eq!((claimed.id, claimed.root_id, claimed.tenant.as_str()), (id, id, "acme"));
    assert!(claimed.remaining_ms.unwrap() > 50_000);
    let request: DecideRequest = serde_json::from_value(claimed.payload).unwrap();
    assert_eq!((request.intent.as_str(), request.ttl_ms), ("ask", Some(60_000)));
    assert_eq!(request.payload, json!({"question": "Who claims?"}));
    assert_eq!(request.budget.unwrap().max_cost_usd, Some(0.5));

    let task = door.get(&format!("/tasks/{id}")).await;
    assert_eq!((task.status, task.json["status"].as_str()), (200, Some("running")));
    assert_eq!(task.json["steps"][0]["service"], "orchestrator");
}

#[tokio::test]
async fn tasks_are_also_taken_at_the_other_path() {
    let door = door().await;
    let headers = [("content-type", "application/vnd.cogo+json; charset=utf-8")];
    let answer = door.call("POST", "/tasks/submit", &headers, question("acme").to_string()).await;
    id_of(&answer);
}

#[tokio::test]
async fn idempotency_key_answers_the_first_task_within_its_tenant() {
    let door = door().await;
    let key = [("idempotency-key", "order-7")];
    let first = id_of(&door.post(&question("acme"), &key).await);
    assert_eq!(id_of(&door.post(&question("acme"), &key).await), first);
    assert_ne!(id_of(&door.post(&question("other"), &key).await), first);
    assert_ne!(id_of(&door.post(&question("acme"), &[]).await), first);
    let rows: i64 =
        sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(door.bus.pool()).await.unwrap();
    assert_eq!(rows, 3);
}

#[tokio::test]
async fn trace_of_the_client_is_continued() {
    let settings = cogo_telemetry::Settings::new("test", "0.0.0", "test");
    let (dispatch, _guard) = cogo_telemetry::assemble(&settings, std::io::sink, Look::Json).unwrap();
    // for the whole process: whether a span is wanted is remembered per place in the code, not per thread
    tracing::dispatcher::set_global_default(dispatch).unwrap();
    tracing::callsite::rebuild_interest_cache();
    let door = door().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    door.post(&question("acme"), &[("traceparent", &traceparent)]).await;
    let claimed = door.claim(&routes::DECIDE).await;
    let sent = claimed.headers["traceparent"].as_str().unwrap();
    assert!(sent.contains(trace), "{sent}");
    assert!(!sent.contains("b7ad6b7169203331"), "the client's span is the parent and not the sender: {sent}");
}

#[tokio::test]
async fn intents_are_those_of_enabled_targets() {
    let door = door().await;
    let mut body = question("acme");
    body["intent"] = json!("fly");
    let words = door.post(&body, &[]).await.problem(422, "unknown-intent");
    assert!(words.contains("fly") && words.contains("ask") && words.contains("index"), "{words}");

    sqlx::query("insert into public.orch_targets (intent, tenant, service, role) values ('fly', 'acme', 'x', 'y')")
        .execute(door.bus.pool())
        .await
        .unwrap();
    id_of(&door.post(&body, &[]).await);
    body["tenant"] = json!("other");
    let words = door.post(&body, &[]).await.problem(422, "unknown-intent");
    assert!(!words.contains("fly,") && !words.contains(", fly"), "another tenant's intent is listed: {words}");
}

#[tokio::test]
async fn front_page_says_how_it_is_guarded() {
    for (keys, expected) in [(&[][..], "open on loopback"), (&["secret"][..], "api key")] {
        let door = door_with_keys(keys).await;
        let answer = door.get("/").await;
        assert_eq!((answer.status, &answer.json["auth"]), (200, &Value::from(expected)));
    }
}

#[tokio::test]
async fn request_that_breaks_the_schema_of_its_route_is_refused_with_the_place() {
    let door = door().await;
    let short = json!({"type": "object", "properties": {"payload": {"type": "object", "properties": {
        "question": {"type": "string", "maxLength": 20}}}}});
    let new = NewSchema {
        subject: SchemaSubject::new(&routes::DECIDE, Direction::Request),
        document: SchemaDocument::parse(short).unwrap(),
        author: "test".to_owned(),
        note: None,
        compatibility: None,
    };
    SchemaCatalog::new(door.bus.pool().clone()).register(&new).await.unwrap();
    id_of(&door.post(&question("acme"), &[]).await);
    let claimed = door.claim(&routes::DECIDE).await;
    assert_eq!(claimed.headers["schema-version"], 1, "it is claimed as what it was sent as");
    let mut body = question("acme");
    body["payload"]["question"] = json!("a question that is longer than the schema allows");
    let words = door.post(&body, &[]).await.problem(422, "breaks-schema");
    assert!(words.contains("/payload/question: ") && !words.contains("longer than the schema allows"), "{words}");
    let sent: i64 =
        sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(door.bus.pool()).await.unwrap();
    assert_eq!(sent, 1);
}
