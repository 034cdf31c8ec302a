//! Whoever needs several groups or rows takes them in one order, or waits for none: no call ends by a deadlock.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, CountedBy, Failure, Limit};
use cogo_contracts::NewMessage;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{
    PATIENCE, ROUTE, bus, claim, claim_one, leases_to_pass, message, misplaced, statuses, times_to_live_to_pass,
    until_somebody_waits_for_a_lock,
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

/// Makes it time to look again at what could not be ended, and at what somebody holds.
async fn look_again(bus: &Bus) {
    times_to_live_to_pass(bus).await;
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
        look_again(&bus).await;
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

#[tokio::test]
async fn ends_of_many_take_those_that_await_them_in_their_order() {
    let (bus, _database) = bus().await;
    for fails in [false, true] {
        // the order of their ids; the database and a client do not agree on it within a millisecond
        let [awaited, waiting, last] = std::array::from_fn(|_| Uuid::now_v7());
        for (id, awaits) in [(awaited, vec![]), (waiting, vec![awaited]), (last, vec![])] {
            bus.enqueue(&NewMessage { id: Some(id), awaits, ..message(json!({})) }).await.unwrap();
        }
        let held = claim(&bus, "w", 2).await;
        let mut other = bus.pool().begin().await.unwrap();
        let lock = "select from public.agent_messages where id = $1 for update";
        sqlx::query(lock).bind(waiting).execute(&mut *other).await.unwrap();
        let ending = TaskTracker::new().spawn({
            let bus = bus.clone();
            let fences: Vec<_> = held.iter().map(|held| held.fence()).collect();
            async move {
                if fails {
                    let broken = || Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
                    let ends: Vec<_> = fences.into_iter().map(|fence| (fence, broken())).collect();
                    bus.fail_many(&ends, "w").await.unwrap().len()
                } else {
                    let ends: Vec<_> = fences.into_iter().map(|fence| (fence, Completion::default())).collect();
                    bus.complete_many(&ends, "w").await.unwrap().len()
                }
            }
        });
        until_somebody_waits_for_a_lock(&bus, if fails { "fail_many" } else { "complete_batch" }).await;
        sqlx::query(lock).bind(last).execute(&mut *other).await.unwrap();
        other.commit().await.unwrap();
        assert_eq!(ending.await.unwrap(), 2);
        let freed = claim_one(&bus, "w").await;
        assert_eq!(freed.id, waiting);
        assert!(bus.complete(&freed.fence(), "w", &Completion::default()).await.unwrap());
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn cancelling_what_awaits_an_end_in_a_group_that_somebody_has_is_no_deadlock() {
    let (bus, _database) = bus().await;
    let awaited = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    let waiting = NewMessage { awaits: vec![awaited], ..of_group("a") };
    let waiting = bus.enqueue(&waiting).await.unwrap().id;
    let mut sender = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut sender, &of_group("a")).await.unwrap();
    let completing = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.complete(&held.fence(), "w", &Completion::default()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.complete").await;
    let cancelling = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.cancel(waiting).await }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.cancel").await;
    sender.commit().await.unwrap();
    assert!(completing.await.unwrap().unwrap());
    assert_eq!(cancelling.await.unwrap().unwrap(), 1);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn replaying_to_two_groups_waits_in_their_order() {
    let (bus, _database) = bus().await;
    for group in ["b", "a"] {
        bus.enqueue(&of_group(group)).await.unwrap();
        let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        bus.fail(&claim_one(&bus, "w").await.fence(), "w", &failure).await.unwrap().unwrap();
    }
    let replayed: i64 = beside_a_sender_of_both(&bus, "replay_many", {
        let bus = bus.clone();
        let replay = "select count(*) from bus.replay_many()";
        async move { sqlx::query_scalar(replay).fetch_one(bus.pool()).await.unwrap() }
    })
    .await;
    assert_eq!(replayed, 2);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn completions_of_a_limited_claim_take_groups_first() {
    let (bus, _database) = bus().await;
    let limit =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: Some(10), per_second: None, burst: None };
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    for fails in [false, true] {
        bus.enqueue_many(&[of_group("first"), of_group("second")]).await.unwrap();
        let mut held = claim(&bus, "w", 2).await;
        held.sort_by_key(|held| held.payload["group"] == "second");
        let [first, second] = <[_; 2]>::try_from(held).unwrap();
        let mut sender = bus.pool().begin().await.unwrap();
        Bus::enqueue_in(&mut sender, &of_group("third")).await.unwrap();
        let tasks = TaskTracker::new();
        let sending = tasks.spawn({
            let bus = bus.clone();
            let follow_ups = vec![of_group("second"), of_group("third")];
            async move { bus.complete(&first.fence(), "w", &Completion { follow_ups, ..Completion::default() }).await }
        });
        until_somebody_waits_for_a_lock(&bus, "bus.complete(").await;
        let ending = tasks.spawn({
            let bus = bus.clone();
            let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
            async move {
                let ended = if fails {
                    bus.fail_many(&[(second.fence(), broken)], "w").await.map(|failed| failed.len())
                } else {
                    bus.complete_many(&[(second.fence(), Completion::default())], "w").await.map(|done| done.len())
                };
                ended.map(|ended| ended == 1)
            }
        });
        until_somebody_waits_for_a_lock(&bus, if fails { "bus.fail_many" } else { "bus.complete_batch" }).await;
        sender.commit().await.unwrap();
        assert!(sending.await.unwrap().unwrap());
        assert!(ending.await.unwrap().unwrap());
        for _ in 0..2 {
            for left in claim(&bus, "w", 10).await {
                assert!(bus.complete(&left.fence(), "w", &Completion::default()).await.unwrap());
            }
        }
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn completion_that_sends_under_a_key_takes_it_first_as_senders_do() {
    let (bus, _database) = bus().await;
    for settles in [false, true] {
        let keyed = NewMessage { idempotency_key: Some(format!("once-{settles}")), ..of_group("a") };
        bus.enqueue(&of_group("a")).await.unwrap();
        let held = claim_one(&bus, "w").await;
        let mut other = bus.pool().begin().await.unwrap();
        Bus::enqueue_in(&mut other, &of_group("a")).await.unwrap();
        let tasks = TaskTracker::new();
        let ending = tasks.spawn({
            let (bus, keyed) = (bus.clone(), keyed.clone());
            async move {
                if settles {
                    let endings =
                        json!({held.id.to_string(): {"attempt": held.attempt, "ending": {"follow_ups": [keyed]}}});
                    let settle = sqlx::query_scalar("select bus.settle_many('w', $1) ->> $2 = 'done'");
                    Ok(settle.bind(endings).bind(held.id.to_string()).fetch_one(bus.pool()).await?)
                } else {
                    let completion = Completion { follow_ups: vec![keyed], ..Completion::default() };
                    bus.complete(&held.fence(), "w", &completion).await
                }
            }
        });
        until_somebody_waits_for_a_lock(&bus, if settles { "settle_many" } else { "bus.complete(" }).await;
        let sending = tasks.spawn({
            let bus = bus.clone();
            async move { bus.enqueue(&keyed).await }
        });
        until_somebody_waits_for_a_lock(&bus, "enqueue_many").await;
        other.commit().await.unwrap();
        assert!(ending.await.unwrap().unwrap());
        assert!(sending.await.unwrap().unwrap().duplicate);
        for _ in 0..2 {
            let left = claim_one(&bus, "w").await;
            assert!(bus.complete(&left.fence(), "w", &Completion::default()).await.unwrap());
        }
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn ends_of_two_limited_claims_take_these_in_their_order() {
    let (bus, _database) = bus().await;
    let limit =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: Some(10), per_second: None, burst: None };
    bus.set_limit(&ROUTE, &limit, "test").await.unwrap();
    bus.enqueue_many(&[message(json!({})), message(json!({})), message(json!({})), message(json!({}))]).await.unwrap();
    let [first, second] = [claim(&bus, "w", 2).await, claim(&bus, "w", 2).await];
    let mut other = bus.pool().begin().await.unwrap();
    let lock = "select from bus.claims where $1 = any (ids) for update";
    sqlx::query(lock).bind(first[0].id).execute(&mut *other).await.unwrap();
    let tasks = TaskTracker::new();
    let completing = tasks.spawn({
        let bus = bus.clone();
        let ends = [&first[0], &second[0]].map(|held| (held.fence(), Completion::default()));
        async move { bus.complete_many(&ends, "w").await.map(|done| done.len()) }
    });
    until_somebody_waits_for_a_lock(&bus, "complete_batch").await;
    let settling = tasks.spawn({
        let bus = bus.clone();
        // what is done comes before what failed
        let endings = json!({
            second[1].id.to_string(): {"attempt": 1, "ending": {"result": 1}},
            first[1].id.to_string(): {"attempt": 1, "ending": {"error": "broken", "retriable": false}},
        });
        let settle = "select count(*) from jsonb_object_keys(bus.settle_many('w', $1))";
        async move { sqlx::query_scalar::<_, i64>(settle).bind(endings).fetch_one(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "settle_many").await;
    other.commit().await.unwrap();
    assert_eq!(completing.await.unwrap().unwrap(), 2);
    assert_eq!(settling.await.unwrap().unwrap(), 2);
}

#[tokio::test]
async fn completion_whose_follow_up_awaits_another_locks_that_before_groups() {
    let (bus, _database) = bus().await;
    let awaited = bus.enqueue(&of_group("a")).await.unwrap().id;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let held = claim(&bus, "w", 2).await;
    let [its, sends] =
        [true, false].map(|is_awaited| held.iter().find(|held| (held.id == awaited) == is_awaited).unwrap().fence());
    let mut other = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut other, &of_group("a")).await.unwrap();
    let tasks = TaskTracker::new();
    let sending = tasks.spawn({
        let bus = bus.clone();
        let follow_ups = vec![NewMessage { awaits: vec![awaited], ..of_group("a") }];
        async move { bus.complete(&sends, "w", &Completion { follow_ups, ..Completion::default() }).await }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.complete(").await;
    let ending = tasks.spawn({
        let bus = bus.clone();
        async move { bus.complete_many(&[(its, Completion::default())], "w").await }
    });
    until_somebody_waits_for_a_lock(&bus, "complete_batch").await;
    other.commit().await.unwrap();
    assert!(sending.await.unwrap().unwrap());
    assert_eq!(ending.await.unwrap().unwrap(), [awaited]);
    assert_eq!(misplaced(&bus).await, 0);
}
