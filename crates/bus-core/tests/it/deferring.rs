//! What happens to messages that are handed back for later.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion};
use cogo_contracts::{NewMessage, TaskStatus};
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    ROUTE, bus, claim, claim_one, delays_to_pass, message, misplaced, numbered, statuses, times_to_live_to_pass,
};

const MINUTE: Duration = Duration::from_secs(60);

/// How long a message waits from its last claim on, in milliseconds.
async fn waits_ms(bus: &Bus, id: Uuid) -> f64 {
    sqlx::query_scalar(
        "select extract(epoch from retry_at - last_error_at)::float8 * 1000 from public.agent_messages where id = $1",
    )
    .bind(id)
    .fetch_one(bus.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn deferred_message_waits_and_keeps_its_attempts() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&NewMessage { max_attempts: Some(1), ..message(json!({})) }).await.unwrap().id;
    for round in 1..=3 {
        let claimed = claim_one(&bus, "w").await;
        assert_eq!(claimed.attempt, round, "the fence never repeats");
        assert_eq!(bus.defer(&[claimed.fence()], "w", MINUTE, "circuit is open").await.unwrap(), 1);
        assert!(claim(&bus, "w", 1).await.is_empty(), "not before its time");
        let due = bus.next_due_for(&ROUTE, None).await.unwrap().expect("it will be due");
        assert!(due <= MINUTE && due > MINUTE / 2, "{due:?}");
        assert_eq!(misplaced(&bus).await, 0);
        delays_to_pass(&bus).await;
    }
    let history = bus.history(id).await.unwrap();
    let told: Vec<_> = history.iter().map(|attempt| (attempt.outcome.as_str(), attempt.error.as_deref())).collect();
    assert_eq!(told, [("released", Some("circuit is open")); 3]);
    let claimed = claim_one(&bus, "w").await;
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(bus.task(id).await.unwrap().unwrap().status, TaskStatus::Done);
}

#[tokio::test]
async fn only_the_holder_of_the_attempt_defers() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let mine = claim(&bus, "w", 2).await;
    let stale = mine[0].fence();
    assert_eq!(bus.release(std::slice::from_ref(&stale), "w").await.unwrap(), 1);
    let again = claim_one(&bus, "w").await;
    assert_eq!(again.id, stale.id);
    assert_eq!(bus.defer(&[stale, mine[1].fence()], "v", MINUTE, "not mine").await.unwrap(), 0);
    assert_eq!(bus.defer(&[mine[0].fence()], "w", MINUTE, "an attempt of before").await.unwrap(), 0);
    assert!(bus.complete(&mine[1].fence(), "w", &Completion::default()).await.unwrap());
    let both = [again.fence(), mine[1].fence()];
    assert_eq!(bus.defer(&both, "w", MINUTE, "one has ended").await.unwrap(), 1);
    assert_eq!(statuses(&bus).await, [("done".to_owned(), 1), ("queued".to_owned(), 1)]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn deferrals_of_a_message_grow_longer_and_have_an_end() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let claimed = claim_one(&bus, "w").await;
        bus.defer(&[claimed.fence()], "w", Duration::ZERO, "circuit is open").await.unwrap();
        waits.push(waits_ms(&bus, id).await);
        delays_to_pass(&bus).await;
    }
    // both ends are read off the clock one after the other, between which a busy machine may stand still
    let seconds = waits.iter().map(|wait| (wait / 1_000.0).round());
    assert!(seconds.eq([0.0, 1.0, 2.0]), "{waits:?}");
    let claimed = claim_one(&bus, "w").await;
    bus.defer(&[claimed.fence()], "w", Duration::MAX, "circuit is open").await.unwrap();
    assert!((waits_ms(&bus, id).await - 31_536_000_000.0).abs() < 10_000.0, "a year is for ever");
    delays_to_pass(&bus).await;
    let claimed = claim_one(&bus, "w").await;
    sqlx::query("update public.agent_messages set attempts = 1000, released = 1000").execute(bus.pool()).await.unwrap();
    sqlx::query("update bus.claims set attempts = array[1001::smallint]").execute(bus.pool()).await.unwrap();
    let last = cogo_bus_core::Fence { attempt: 1001, ..claimed.fence() };
    sqlx::query("update public.agent_messages set attempts = 1001").execute(bus.pool()).await.unwrap();
    assert_eq!(bus.defer(&[last], "w", MINUTE, "circuit is open").await.unwrap(), 0);
    assert_eq!(bus.dead_letters(1).await.unwrap()[0].error, "handed back 1000 times, at last: circuit is open");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn deferred_message_ends_with_its_time_to_live() {
    let (bus, _database) = bus().await;
    bus.enqueue(&NewMessage { ttl_ms: Some(60_000), ..message(json!({})) }).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    assert_eq!(bus.defer(&[claimed.fence()], "w", 2 * MINUTE, "circuit is open").await.unwrap(), 1);
    assert_eq!(statuses(&bus).await, [("queued".to_owned(), 1)]);
    times_to_live_to_pass(&bus).await;
    assert_eq!(bus.expire(10).await.unwrap(), 1);
    let error = &bus.dead_letters(1).await.unwrap()[0].error;
    assert_eq!(error, "time to live passed before another attempt, last error: circuit is open");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn group_waits_for_its_deferred_head() {
    let (bus, _database) = bus().await;
    let grouped = |number: u32| NewMessage { group_key: Some("g".to_owned()), ..message(json!({"number": number})) };
    bus.enqueue_many(&[grouped(1), grouped(2)]).await.unwrap();
    let head = claim_one(&bus, "w").await;
    bus.defer(&[head.fence()], "w", MINUTE, "circuit is open").await.unwrap();
    assert!(claim(&bus, "w", 2).await.is_empty(), "the second one does not overtake");
    delays_to_pass(&bus).await;
    let again = claim_one(&bus, "w").await;
    assert_eq!(again.id, head.id);
    assert!(bus.complete(&again.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(claim_one(&bus, "w").await.payload["number"], 2);
    assert_eq!(misplaced(&bus).await, 0);
}
