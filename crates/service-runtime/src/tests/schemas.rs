//! Messages of a route that has a schema: what does not fit reaches no handler and nobody else.

use std::sync::atomic::Ordering;

use cogo_contracts::{Direction, SchemaSubject, TaskStatus};
use cogo_registry_core::{NewSchema, SchemaCatalog, SchemaDocument};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{ROUTE, Running, pace};
use cogo_contracts::Route;

async fn register(pool: &PgPool, route: &Route, direction: Direction, document: Value) {
    let new = NewSchema {
        subject: SchemaSubject::new(route, direction),
        document: SchemaDocument::parse(document).unwrap(),
        author: "test".to_owned(),
        note: None,
        compatibility: None,
    };
    SchemaCatalog::new(pool.clone()).register(&new).await.unwrap();
}

#[tokio::test]
async fn payload_that_breaks_its_schema_is_a_dead_letter_and_costs_nothing_else() {
    let running = Running::start(true, pace()).await;
    let schema =
        json!({"type": "object", "required": ["what"], "properties": {"what": {"enum": ["answer", "reject"]}}});
    register(running.bus.pool(), &ROUTE, Direction::Request, schema).await;
    let good = running.send("answer").await;
    let bad = running.send("hang").await;
    let stamped = running
        .send_with("", |message| message.payload = json!({"what": "answer", "__assignment": {"ttl_ms": 60000}}))
        .await;
    let task = running.ended(bad).await;
    assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1), "no attempt can mend it");
    let error = task.error.unwrap();
    assert!(error.starts_with("payload refused: Breaks schema test/work/request version 1: /what: "), "{error}");
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    assert_eq!(running.ended(stamped).await.status, TaskStatus::Done);
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 2, "what is refused reaches no handler");
    drop(running.finish().await);
}

#[tokio::test]
async fn reply_and_follow_up_that_break_their_schemas_fail_the_message_and_are_not_written() {
    let running = Running::start(true, pace()).await;
    let pool = running.bus.pool();
    let no_answer = json!({"type": "object", "properties": {"answer": {"type": "null"}}});
    register(pool, &ROUTE, Direction::Reply, no_answer).await;
    register(pool, &Route::constant("test", "next"), Direction::Request, json!({"type": "object", "required": ["x"]}))
        .await;
    for (what, told) in [
        ("answer", "reply refused: Breaks schema test/work/reply version 1: /answer"),
        ("effect", "follow-up to test/next/0 refused: Breaks schema test/next/request version 1"),
    ] {
        let task = running.ended(running.send(what).await).await;
        assert_eq!((task.status, task.steps.len(), task.steps[0].attempts), (TaskStatus::Failed, 1, 1));
        assert!(task.error.as_deref().unwrap().starts_with(told), "{task:?}");
    }
    let effects: i64 = sqlx::query_scalar("select count(*) from public.bus_events where kind = 'effect'")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(effects, 0);
    drop(running.finish().await);
}

#[tokio::test]
async fn schema_that_nobody_can_use_holds_nothing_up() {
    let running = Running::start(true, pace()).await;
    let register = "select r.outcome from registry.register_schema('test', 'work', 'request', '{\"type\": 5}', 'x', 0, 'none') as r";
    sqlx::query(register).execute(running.bus.pool()).await.unwrap();
    let id = running.send("answer").await;
    assert_eq!(running.ended(id).await.status, TaskStatus::Done);
    drop(running.finish().await);
}
