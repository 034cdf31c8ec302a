//! Idempotency keys that outlive the message that was sent under them, and those that a completion holds.

use std::time::Duration;

use cogo_contracts::NewMessage;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{bus, claim, claim_one, message, misplaced, numbered, statuses};

#[tokio::test]
async fn message_sent_again_after_retention_is_a_duplicate_until_its_window_ends() {
    let (bus, _database) = bus().await;
    let named = NewMessage { id: Some(Uuid::now_v7()), idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    let first = bus.enqueue(&named).await.unwrap();
    let held = claim_one(&bus, "w").await;
    assert!(bus.complete(&held.fence(), "w", &Default::default()).await.unwrap());
    assert_eq!(bus.retain(Duration::ZERO, 10).await.unwrap(), 1);
    let again = bus.enqueue(&named).await.unwrap();
    assert_eq!((again.id, again.duplicate), (first.id, true));
    assert_eq!(statuses(&bus).await, []);
    // what is gone has ended, also for what is sent with it
    let join = NewMessage { awaits: vec![first.id], ..message(json!({"joins": true})) };
    let sent = bus.enqueue_many(&[named.clone(), join]).await.unwrap();
    assert!(sent[0].duplicate && !sent[1].duplicate);
    assert_eq!(claim_one(&bus, "w").await.id, sent[1].id);
    sqlx::query("update bus.keys set until = clock_timestamp()").execute(bus.pool()).await.unwrap();
    assert!(!bus.enqueue(&named).await.unwrap().duplicate, "the window has passed");
    let other = NewMessage { id: None, ..named };
    assert!(bus.enqueue(&other).await.unwrap().duplicate, "another window has begun");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn follow_up_of_a_lost_attempt_takes_no_key_from_that_of_another() {
    let (bus, _database) = bus().await;
    let mut sent: Vec<Uuid> = bus.enqueue_many(&numbered(2)).await.unwrap().iter().map(|one| one.id).collect();
    sent.sort_unstable();
    let held = claim(&bus, "w", 2).await;
    let lost = held.iter().find(|one| one.id == sent[0]).unwrap();
    assert_eq!(bus.release(&[lost.fence()], "w").await.unwrap(), 1);
    let ending = json!({"result": {}, "follow_ups": [
        {"service": "test", "role": "next", "payload": {}, "idempotency_key": "one for both"}]});
    let ended: Value = held
        .iter()
        .map(|one| (one.id.to_string(), json!({"attempt": one.attempt, "ending": ending})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let statuses: Value =
        sqlx::query_scalar("select bus.settle_many('w', $1)").bind(ended).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(statuses, json!({sent[1].to_string(): "done"}));
    let of_the_other: Vec<Uuid> = sqlx::query_scalar("select parent_id from public.agent_messages where role = 'next'")
        .fetch_all(bus.pool())
        .await
        .unwrap();
    assert_eq!(of_the_other, [sent[1]]);
    let keys: Vec<bool> =
        sqlx::query_scalar("select until > clock_timestamp() from bus.keys").fetch_all(bus.pool()).await.unwrap();
    assert_eq!((keys, misplaced(&bus).await), (vec![true], 0));
}
