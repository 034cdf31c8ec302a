//! The functions that make a foreign worker short.

use cogo_bus_core::{Bus, Claimed};
use cogo_contracts::NewMessage;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::support::{bus, claim_one, delays_to_pass, leases_to_pass, message};

async fn look(bus: &Bus, holder: &str, held: &Value, max_messages: i32) -> Value {
    sqlx::query_scalar("select bus.look('test', 'work', 0, $1, 'w', $2, $3, 30000, 15000)")
        .bind(holder)
        .bind(held)
        .bind(max_messages)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

async fn renew(bus: &Bus, holder: &str, held: &Value, lease_ms: i64) -> Value {
    sqlx::query_scalar("select bus.renew($1, $2, $3)")
        .bind(holder)
        .bind(held)
        .bind(lease_ms)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

async fn settle(bus: &Bus, claimed: &Claimed, holder: &str, ending: Value) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select bus.settle($1, $2, $3, $4)")
        .bind(claimed.id)
        .bind(holder)
        .bind(claimed.attempt)
        .bind(ending)
        .fetch_one(bus.pool())
        .await
}

async fn lease_of(bus: &Bus, id: Uuid) -> String {
    sqlx::query_scalar("select lease_until::text from public.agent_messages where id = $1")
        .bind(id)
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

fn held(claimed: &[&Claimed]) -> Value {
    claimed.iter().map(|one| (one.id.to_string(), json!(one.attempt))).collect::<Map<_, _>>().into()
}

#[tokio::test]
async fn look_hands_back_what_its_holder_does_not_know_of_and_nothing_else() {
    let (bus, _database) = bus().await;
    let known = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let known = (claim_one(&bus, "w#1").await, known);
    assert_eq!(known.0.id, known.1);
    let unheard = bus.enqueue(&message(json!({}))).await.unwrap().id;
    claim_one(&bus, "w#1").await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let of_another = claim_one(&bus, "w#2").await;
    let seen = look(&bus, "w#1", &held(&[&known.0]), 10).await;
    let messages = seen["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 1, "{seen}");
    assert_eq!((&messages[0]["id"], &messages[0]["attempt"]), (&json!(unheard), &json!(2)));
    assert_eq!((&messages[0]["holder"], &seen["next_ms"]), (&json!("w#1"), &json!(0)));
    assert_eq!(settle(&bus, &known.0, "w#1", json!({})).await.unwrap().as_deref(), Some("done"));
    assert_eq!(settle(&bus, &of_another, "w#2", json!({})).await.unwrap().as_deref(), Some("done"));
}

#[tokio::test]
async fn look_without_a_free_hand_claims_nothing_and_returns_in_time_to_renew() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w#1").await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert_eq!(look(&bus, "w#1", &held(&[&claimed]), 0).await, json!({"messages": [], "next_ms": 10_000}));
    assert_eq!(look(&bus, "w#2", &json!({}), 0).await, json!({"messages": [], "next_ms": 15_000}));
}

#[tokio::test]
async fn what_is_due_and_locked_is_asked_for_ten_times_a_second_at_most() {
    let (bus, _database) = bus().await;
    bus.enqueue(&NewMessage { delay_ms: Some(3_600_000), ..message(json!({})) }).await.unwrap();
    delays_to_pass(&bus).await;
    let mut somebody = bus.pool().begin().await.unwrap();
    sqlx::query("select from bus.delayed for update").execute(&mut *somebody).await.unwrap();
    assert_eq!(look(&bus, "w#1", &json!({}), 1).await, json!({"messages": [], "next_ms": 100}));
    somebody.rollback().await.unwrap();
    assert_eq!(look(&bus, "w#1", &json!({}), 1).await["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn renewal_writes_only_when_it_is_due_and_names_what_is_lost() {
    let (bus, _database) = bus().await;
    for _ in 0..2 {
        bus.enqueue(&message(json!({}))).await.unwrap();
    }
    let (kept, cancelled) = (claim_one(&bus, "w#1").await, claim_one(&bus, "w#1").await);
    let both = held(&[&kept, &cancelled]);
    let before = lease_of(&bus, kept.id).await;
    assert_eq!(renew(&bus, "w#1", &both, 30_000).await, json!([]));
    assert_eq!(lease_of(&bus, kept.id).await, before, "it has just begun");
    assert_eq!(bus.cancel(cancelled.id).await.unwrap(), 1);
    assert_eq!(renew(&bus, "w#1", &both, 3_600_000).await, json!([cancelled.id]));
    assert_ne!(lease_of(&bus, kept.id).await, before);
    assert_eq!(renew(&bus, "w#2", &held(&[&kept]), 30_000).await, json!([kept.id]), "not its");
    leases_to_pass(&bus).await;
    assert_eq!(renew(&bus, "w#1", &held(&[&kept]), 30_000).await, json!([kept.id]), "too late");
}

#[tokio::test]
async fn ending_of_a_lost_claim_writes_nothing_and_one_with_a_strange_field_is_refused() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w#1").await;
    for ending in [json!({"result": 1}), json!({"error": "why"}), json!({"error": "why", "defer_ms": 1_000})] {
        assert_eq!(settle(&bus, &claimed, "w#2", ending).await.unwrap(), None);
    }
    let refused = settle(&bus, &claimed, "w#1", json!({"resutl": 1})).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    assert_eq!(code.as_deref(), Some("22023"), "{refused}");
    assert_eq!(settle(&bus, &claimed, "w#1", json!({"result": [1, 2]})).await.unwrap().as_deref(), Some("done"));
    let row = bus.message(claimed.id).await.unwrap().unwrap();
    assert_eq!((&row["result"], &row["result_snippet"]), (&json!([1, 2]), &json!("[1, 2]")));
    assert_eq!(settle(&bus, &claimed, "w#1", json!({"result": 2})).await.unwrap(), None, "once");
}

#[tokio::test]
async fn error_that_is_null_is_none_and_one_without_words_is_one() {
    let (bus, _database) = bus().await;
    let nothing_failed = json!({"result": 1, "error": null, "code": null, "retriable": null, "defer_ms": null});
    let without_words = json!({"error": "", "result": null, "snippet": null, "url": null, "follow_ups": []});
    for (ending, status) in [(nothing_failed, "done"), (json!({"error": null}), "done"), (without_words, "queued")] {
        bus.enqueue(&message(json!({}))).await.unwrap();
        let claimed = claim_one(&bus, "w#1").await;
        assert_eq!(settle(&bus, &claimed, "w#1", ending.clone()).await.unwrap().as_deref(), Some(status), "{ending}");
        let row = bus.message(claimed.id).await.unwrap().unwrap();
        let error = if status == "done" { json!(null) } else { json!("no reason given") };
        assert_eq!((&row["result"], &row["error"]), (&json!(ending["result"]), &error), "{row}");
    }
}

#[tokio::test]
async fn what_a_failure_would_lose_is_refused_with_its_error() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w#1").await;
    let child = json!({"service": "test", "role": "work"});
    for (ending, words) in [
        (json!({"error": "why", "result": 0}), "An ending has an error or result, not both; the error: why"),
        (json!({"error": "", "snippet": "s"}), "An ending has an error or snippet, not both; the error: "),
        (json!({"error": "why", "url": "u"}), "An ending has an error or url, not both; the error: why"),
        (json!({"defer_ms": 1, "follow_ups": [child]}), "An ending has defer_ms or follow_ups, not both"),
    ] {
        let refused =
            settle(&bus, &claimed, "w#1", ending.clone()).await.expect_err(words).into_database_error().unwrap();
        assert_eq!((refused.code().as_deref(), refused.message()), (Some("22023"), words), "{ending}");
    }
    // a worker that says all at once is told in the row of the message
    let said = json!({claimed.id.to_string(): {"attempt": 1, "ending": {"error": "why", "result": 0}}});
    let told: Value =
        sqlx::query_scalar("select bus.settle_many('w#1', $1)").bind(said).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(told, json!({claimed.id.to_string(): "failed"}));
    assert!(bus.message(claimed.id).await.unwrap().unwrap()["error"].as_str().unwrap().ends_with("the error: why"));
}
