//! Healing: leases, dead holders, retention; each safe to run twice and at once.

use std::time::Duration;

use cogo_bus_core::Completion;
use cogo_contracts::NewMessage;
use serde_json::json;

use crate::support::{
    bus, claim, claim_one, delays_to_pass, leases_to_pass, message, numbered, statuses, times_to_live_to_pass,
};

#[tokio::test]
async fn expired_claim_is_requeued_and_recorded() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    claim(&bus, "w", 1).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 0, "the lease is not over yet");
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    assert_eq!(bus.reclaim(10).await.unwrap(), 0);
    assert_eq!(claim_one(&bus, "v").await.attempt, 2);
    let events = cogo_bus_core::events_of_task(bus.pool(), id).await.unwrap();
    assert_eq!((events[0].kind.as_str(), &events[0].detail["holder"]), ("lease_expired", &json!("w")));
}

#[tokio::test]
async fn message_that_kills_every_worker_becomes_a_dead_letter() {
    let (bus, _database) = bus().await;
    let mut poison = message(json!({}));
    poison.max_attempts = Some(3);
    bus.enqueue(&poison).await.unwrap();
    for round in 1..=3 {
        claim_one(&bus, "w").await;
        leases_to_pass(&bus).await;
        bus.reclaim(10).await.unwrap();
        // at once after the first crash, later ones wait
        let waits = bus.next_due(&crate::support::ROUTE).await.unwrap().is_some_and(|wait| wait > Duration::ZERO);
        assert_eq!(waits, round == 2);
        delays_to_pass(&bus).await;
    }
    let dead = bus.dead_letters(1).await.unwrap();
    assert_eq!((dead[0].attempts, dead[0].error.as_str()), (3, "lease of w expired"));
}

#[tokio::test]
async fn reclaimers_at_once_requeue_each_message_once() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(100)).await.unwrap();
    claim(&bus, "w", 100).await;
    leases_to_pass(&bus).await;
    let sweeps = (0..6).map(|_| {
        let bus = bus.clone();
        async move {
            let mut mine = 0;
            loop {
                match bus.reclaim(9).await.unwrap() {
                    0 => return mine,
                    some => mine += some,
                }
            }
        }
    });
    let requeued: u64 = futures_util::future::join_all(sweeps).await.into_iter().sum();
    assert_eq!(requeued, 100);
}

#[tokio::test]
async fn everything_of_a_dead_holder_is_requeued() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    claim(&bus, "dead", 2).await;
    claim(&bus, "alive", 1).await;
    let requeued: i32 =
        sqlx::query_scalar("select bus.requeue_held('dead', 'died')").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(requeued, 2);
    assert_eq!(statuses(&bus).await, [("claimed".to_owned(), 1), ("queued".to_owned(), 2)]);
}

#[tokio::test]
async fn retention_removes_whole_finished_tasks_only() {
    let (bus, _database) = bus().await;
    let finished = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap();
    let half = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let child = cogo_contracts::NewMessage::new(crate::support::ROUTE, None, json!({}));
    let completion = Completion { follow_ups: vec![child], ..Completion::default() };
    bus.complete(&claimed.fence(), "w", &completion).await.unwrap();
    assert_eq!(bus.retain(Duration::from_secs(3600), 100).await.unwrap(), 0, "young tasks stay");
    assert_eq!(bus.retain(Duration::ZERO, 100).await.unwrap(), 1);
    assert!(bus.task(finished).await.unwrap().is_none());
    assert_eq!(bus.task(half).await.unwrap().unwrap().steps.len(), 2, "a step of an unfinished task stays");
    assert!(bus.retain_events(Duration::ZERO, 100).await.is_ok());
}

#[tokio::test]
async fn retention_never_cuts_through_a_task() {
    let (bus, _database) = bus().await;
    for _ in 0..3 {
        bus.enqueue(&message(json!({}))).await.unwrap();
        let claimed = claim_one(&bus, "w").await;
        let follow_ups = vec![cogo_contracts::NewMessage::new(crate::support::ROUTE, None, json!({})); 2];
        let completion = Completion { follow_ups, ..Completion::default() };
        bus.complete(&claimed.fence(), "w", &completion).await.unwrap();
        for child in claim(&bus, "w", 2).await {
            bus.complete(&child.fence(), "w", &Completion::default()).await.unwrap();
        }
    }
    assert_eq!(bus.retain(Duration::ZERO, 2).await.unwrap(), 6);
    assert_eq!(statuses(&bus).await, [("done".to_owned(), 3)]);
    assert_eq!(bus.retain(Duration::ZERO, 2).await.unwrap(), 3);
}

#[tokio::test]
async fn time_to_live_that_passed_in_hand_ends_what_is_handed_back() {
    let (bus, _database) = bus().await;
    bus.enqueue(&NewMessage { ttl_ms: Some(50), ..message(json!({})) }).await.unwrap();
    let held = claim_one(&bus, "w").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(bus.expire(10).await.unwrap(), 0, "its holder may still end it");
    assert_eq!(bus.release(&[held.fence()], "w").await.unwrap(), 1);
    times_to_live_to_pass(&bus).await;
    assert_eq!(bus.expire(10).await.unwrap(), 1, "looked at again when the lease would have ended");
    assert_eq!(statuses(&bus).await, [("failed".to_owned(), 1)]);

    bus.enqueue(&NewMessage { ttl_ms: Some(50), ..message(json!({})) }).await.unwrap();
    claim_one(&bus, "w").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    leases_to_pass(&bus).await;
    assert_eq!(bus.expire(10).await.unwrap(), 0, "it is the reclaimer's");
    let ahead = "select e.at > c.lease_until from bus.expiring e, bus.claims c";
    assert!(
        sqlx::query_scalar::<_, bool>(ahead).fetch_one(bus.pool()).await.unwrap(),
        "or every claim would look at it"
    );
}
