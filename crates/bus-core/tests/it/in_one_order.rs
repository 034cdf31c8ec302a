//! Whoever needs several groups or rows takes them in one order, or waits for none: no call ends by a deadlock.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, Failure};
use cogo_contracts::NewMessage;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{
    PATIENCE, bus, claim, claim_one, leases_to_pass, message, misplaced, statuses, until_somebody_waits_for_a_lock,
};

fn of_group(group: &str) -> NewMessage {
    NewMessage { group_key: Some(group.to_owned()), ..message(json!({"group": group})) }
}

/// While one transaction has the first group and then wants the second, something else wants both.
async fn beside_a_sender_of_both<T: Send + 'static>(
    bus: &Bus,
    words: &str,
    other: impl Future<Output = T> + Send + 'static,
) -> T {
    let mut sender = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut sender, &of_group("a")).await.unwrap();
    let other: JoinHandle<T> = TaskTracker::new().spawn(other);
    until_somebody_waits_for_a_lock(bus, words).await;
    Bus::enqueue_in(&mut sender, &of_group("b")).await.unwrap();
    sender.commit().await.unwrap();
    tokio::time::timeout(PATIENCE, other).await.expect("it waits no more").unwrap()
}

/// The same, and the other does not wait.
async fn although_a_sender_has_the_first<T>(bus: &Bus, other: impl Future<Output = T>) -> T {
    let mut sender = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut sender, &of_group("a")).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, other).await.expect("it waits for the sender");
    Bus::enqueue_in(&mut sender, &of_group("b")).await.unwrap();
    sender.commit().await.unwrap();
    answer
}

#[tokio::test]
async fn cancelling_a_task_of_two_groups_waits_in_their_order() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    // rows are locked in the order of their ids
    let [first, second] = ["b", "a"].map(|group| NewMessage { id: Some(Uuid::now_v7()), ..of_group(group) });
    let completion = Completion { follow_ups: vec![first, second], ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &completion).await.unwrap());
    let cancelled = beside_a_sender_of_both(&bus, "bus.cancel", {
        let bus = bus.clone();
        async move { bus.cancel(root).await.unwrap() }
    })
    .await;
    assert_eq!(cancelled, 2);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn completion_that_sends_to_another_group_waits_in_their_order() {
    let (bus, _database) = bus().await;
    for settles in [false, true] {
        bus.enqueue(&of_group("b")).await.unwrap();
        let held = claim_one(&bus, "w").await;
        let ended = beside_a_sender_of_both(&bus, if settles { "settle_many" } else { "bus.complete" }, {
            let bus = bus.clone();
            async move {
                if settles {
                    let follow_up = json!({"service": "test", "role": "work", "group_key": "a"});
                    let endings =
                        json!({held.id.to_string(): {"attempt": held.attempt, "ending": {"follow_ups": [follow_up]}}});
                    let settle = sqlx::query_scalar("select bus.settle_many('w', $1) ->> $2 = 'done'");
                    settle.bind(endings).bind(held.id.to_string()).fetch_one(bus.pool()).await.unwrap()
                } else {
                    let completion = Completion { follow_ups: vec![of_group("a")], ..Completion::default() };
                    bus.complete(&held.fence(), "w", &completion).await.unwrap()
                }
            }
        })
        .await;
        assert!(ended);
        for _ in 0..2 {
            for left in claim(&bus, "w", 10).await {
                assert!(bus.complete(&left.fence(), "w", &Completion::default()).await.unwrap());
            }
        }
        assert_eq!(statuses(&bus).await.len(), 1, "all are done");
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn leases_that_end_wait_for_no_group() {
    let (bus, _database) = bus().await;
    let last = |group| NewMessage { max_attempts: Some(1), ..of_group(group) };
    bus.enqueue_many(&[last("b"), last("a")]).await.unwrap();
    assert_eq!(claim(&bus, "w", 2).await.len(), 2);
    leases_to_pass(&bus).await;
    assert_eq!(although_a_sender_has_the_first(&bus, bus.reclaim(10)).await.unwrap(), 1);
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn times_to_live_that_pass_wait_for_no_group() {
    let (bus, _database) = bus().await;
    for by_a_claim in [false, true] {
        let short = |group| NewMessage { ttl_ms: Some(1), ..of_group(group) };
        bus.enqueue_many(&[short("b"), short("a")]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        if by_a_claim {
            assert!(although_a_sender_has_the_first(&bus, claim(&bus, "w", 10)).await.is_empty());
            leases_to_pass(&bus).await;
            bus.reclaim(10).await.unwrap();
        } else {
            assert_eq!(although_a_sender_has_the_first(&bus, bus.expire(10)).await.unwrap(), 1);
        }
        bus.expire(10).await.unwrap();
        for left in claim(&bus, "w", 10).await {
            assert!(bus.complete(&left.fence(), "w", &Completion::default()).await.unwrap());
        }
    }
    assert_eq!(statuses(&bus).await, [("done".to_owned(), 4), ("failed".to_owned(), 4)]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn cancelling_what_awaits_an_end_that_is_under_way_is_no_deadlock() {
    let (bus, _database) = bus().await;
    let awaited = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let waiting = NewMessage { awaits: vec![awaited], ..message(json!({})) };
    let waiting: Uuid = bus.enqueue(&waiting).await.unwrap().id;
    let mut cancelling = bus.pool().begin().await.unwrap();
    let lock = "select from public.agent_messages where id = $1 for update";
    sqlx::query(lock).bind(waiting).execute(&mut *cancelling).await.unwrap();
    let failing = TaskTracker::new().spawn({
        let bus = bus.clone();
        let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        async move { bus.fail(&held.fence(), "w", &failure).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.fail").await;
    let cancel = "select bus.cancel($1)";
    let cancelled: i32 = sqlx::query_scalar(cancel).bind(waiting).fetch_one(&mut *cancelling).await.unwrap();
    assert_eq!(cancelled, 1);
    cancelling.commit().await.unwrap();
    assert!(failing.await.unwrap().is_some());
    assert_eq!(misplaced(&bus).await, 0);
}
