//! Each attempt of a message stays on record: who, from when until when, how it ended and why.

use std::time::Duration;

use cogo_bus_core::{Attempt, Bus, Completion, Failure};
use cogo_contracts::NewMessage;
use serde_json::json;

use crate::support::{bus, claim, claim_one, delays_to_pass, leases_to_pass, message, numbered};

fn told(history: &[Attempt]) -> Vec<(i16, &str, &str, Option<&str>)> {
    let attempt = |attempt: &'_ Attempt| attempt.attempt;
    history
        .iter()
        .map(|one| (attempt(one), one.holder.as_deref().unwrap_or("-"), one.outcome.as_str(), one.error.as_deref()))
        .collect()
}

async fn requeue_held(bus: &Bus, holder: &str, reason: &str) {
    sqlx::query("select bus.requeue_held($1, $2)").bind(holder).bind(reason).execute(bus.pool()).await.unwrap();
    delays_to_pass(bus).await;
}

#[tokio::test]
async fn history_tells_every_attempt_in_order() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&NewMessage { max_attempts: Some(9), ..message(json!({})) }).await.unwrap().id;
    assert!(bus.history(id).await.unwrap().is_empty(), "nobody has tried it");

    let first = claim_one(&bus, "fails").await;
    let boom = Failure { reason: "boom".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    bus.fail(&first.fence(), "fails", &boom).await.unwrap().unwrap();
    claim_one(&bus, "sleeps").await;
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    delays_to_pass(&bus).await;
    let third = claim_one(&bus, "hands back").await;
    assert_eq!(bus.release(&[third.fence()], "hands back").await.unwrap(), 1);
    claim_one(&bus, "dies").await;
    requeue_held(&bus, "dies", "no heartbeat for 30 s").await;
    let fifth = claim_one(&bus, "fails in a batch").await;
    bus.fail_many(&[(fifth.fence(), boom)], "fails in a batch").await.unwrap();
    let sixth = claim_one(&bus, "puts off").await;
    assert_eq!(bus.defer(&[sixth.fence()], "puts off", Duration::ZERO, "circuit is open").await.unwrap(), 1);
    delays_to_pass(&bus).await;
    let last = claim_one(&bus, "completes").await;
    assert_eq!(told(&bus.history(id).await.unwrap()).last(), Some(&(7, "completes", "running", None)));
    assert!(bus.complete(&last.fence(), "completes", &Completion::default()).await.unwrap());

    let history = bus.history(id).await.unwrap();
    assert_eq!(
        told(&history),
        [
            (1, "fails", "failed", Some("boom")),
            (2, "sleeps", "lease_expired", Some("lease of sleeps expired")),
            (3, "hands back", "released", Some("handed back")),
            (4, "dies", "holder_gone", Some("no heartbeat for 30 s")),
            (5, "fails in a batch", "failed", Some("boom")),
            (6, "puts off", "released", Some("circuit is open")),
            (7, "completes", "completed", None),
        ]
    );
    let times: Vec<_> = history.iter().flat_map(|one| [one.started_at.unwrap(), one.ended_at.unwrap()]).collect();
    assert!(times.is_sorted(), "{times:?}");
    let row = bus.message(id).await.unwrap().unwrap();
    let sent_at: chrono::DateTime<chrono::Utc> = row["created_at"].as_str().unwrap().parse().unwrap();
    assert!(sent_at <= times[0], "no attempt before it was sent");
}

#[tokio::test]
async fn attempts_of_a_claim_of_many_are_told_message_by_message() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(100)).await.unwrap();
    // more than 64 are not marked in their rows, so that only the claim knows of them
    let many = claim(&bus, "w", 100).await;
    assert_eq!(many.len(), 100);
    let fences: Vec<_> = many.iter().map(cogo_bus_core::Claimed::fence).collect();
    assert_eq!(told(&bus.history(many[7].id).await.unwrap()), [(1, "w", "running", None)]);
    assert_eq!(bus.release(&fences[..50], "w").await.unwrap(), 50);
    requeue_held(&bus, "w", "died").await;
    let ids: Vec<_> = many.iter().map(|one| one.id).collect();
    let histories = bus.histories(&ids).await.unwrap();
    assert_eq!(histories.len(), 100);
    for (number, id) in ids.iter().enumerate() {
        let expected = if number < 50 { ("released", "handed back") } else { ("holder_gone", "died") };
        assert_eq!(told(&histories[id]), [(1, "w", expected.0, Some(expected.1))]);
        assert!(histories[id][0].started_at.is_some());
    }
}

#[tokio::test]
async fn history_of_what_was_cancelled_or_given_up_ends_with_its_last_attempt() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let [cancelled, dead] = [claim_one(&bus, "w").await, claim_one(&bus, "w").await];
    assert_eq!(bus.cancel(cancelled.id).await.unwrap(), 1);
    let rejected = Failure { reason: "bad input".to_owned(), retriable: false, retry_after: None };
    bus.fail(&dead.fence(), "w", &rejected).await.unwrap().unwrap();
    assert_eq!(told(&bus.history(cancelled.id).await.unwrap()), [(1, "w", "cancelled", None)]);
    assert_eq!(told(&bus.history(dead.id).await.unwrap()), [(1, "w", "failed", Some("bad input"))]);
    // a replay is a message of its own
    let replay = bus.replay(dead.id).await.unwrap();
    assert!(bus.history(replay).await.unwrap().is_empty());
}
