//! Whoever needs several groups or rows takes them in one order, or waits for none: no call ends by a deadlock.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, CountedBy, Error, Failure, Limit};
use cogo_contracts::NewMessage;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{
    PATIENCE, PAUSE, ROUTE, bus, claim, claim_one, leases_to_pass, message, misplaced, statuses,
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
    sqlx::query("update bus.expiring set at = clock_timestamp()").execute(bus.pool()).await.unwrap();
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
        until_somebody_waits_for_a_lock(&bus, if fails { "fail_many" } else { "complete_many" }).await;
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
async fn time_to_live_that_passed_in_hand_ends_what_is_handed_back() {
    let (bus, _database) = bus().await;
    bus.enqueue(&NewMessage { ttl_ms: Some(50), ..message(json!({})) }).await.unwrap();
    let held = claim_one(&bus, "w").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(bus.expire(10).await.unwrap(), 0, "its holder may still end it");
    assert_eq!(bus.release(&[held.fence()], "w").await.unwrap(), 1);
    look_again(&bus).await;
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
        until_somebody_waits_for_a_lock(&bus, if fails { "bus.fail_many" } else { "bus.complete_many" }).await;
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
async fn replaying_many_locks_rows_before_groups() {
    let (bus, _database) = bus().await;
    let broken = || Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    let dead = bus.enqueue(&of_group("a")).await.unwrap().id;
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken()).await.unwrap();
    let root = Uuid::now_v7();
    bus.enqueue(&NewMessage { id: Some(root), ..of_group("a") }).await.unwrap();
    let held = claim_one(&bus, "w").await;
    let insert = "insert into public.agent_messages (service, role, tenant, payload, parent_id)
                  values ('test', 'work', 'acme', '{}', $1)";
    sqlx::query(insert).bind(root).execute(bus.pool()).await.unwrap();
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken()).await.unwrap();
    let mut other = bus.pool().begin().await.unwrap();
    let lock = "select from public.agent_messages where id = $1 for update";
    sqlx::query(lock).bind(dead).execute(&mut *other).await.unwrap();
    let tasks = TaskTracker::new();
    let replaying = tasks.spawn({
        let bus = bus.clone();
        let replay = "select count(*) from bus.replay_many()";
        async move { sqlx::query_scalar::<_, i64>(replay).fetch_one(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "replay_many").await;
    let failing = tasks.spawn({
        let bus = bus.clone();
        async move { bus.fail(&held.fence(), "w", &broken()).await }
    });
    // it ends, or waits for the one who replays
    tokio::time::sleep(PAUSE * 20).await;
    other.commit().await.unwrap();
    assert_eq!(replaying.await.unwrap().unwrap(), 2);
    assert!(failing.await.unwrap().unwrap().is_some());
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn replaying_one_root_twice_at_once_replays_it_once() {
    let (bus, _database) = bus().await;
    let dead = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken).await.unwrap();
    let mut other = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = $1 for key share")
        .bind(dead)
        .execute(&mut *other)
        .await
        .unwrap();
    let tasks = TaskTracker::new();
    let replays = [(); 2].map(|()| {
        let bus = bus.clone();
        tasks.spawn(async move { bus.replay(dead).await })
    });
    until_somebody_waits_for_a_lock(&bus, "bus.replay").await;
    // both by then
    tokio::time::sleep(PAUSE * 20).await;
    other.commit().await.unwrap();
    let mut replayed = 0;
    for replay in replays {
        match replay.await.unwrap() {
            Ok(_) => replayed += 1,
            Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
        }
    }
    assert_eq!(replayed, 1);
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
async fn replaying_many_leaves_out_what_somebody_replayed_meanwhile() {
    let (bus, _database) = bus().await;
    let mut dead = Vec::new();
    for _ in 0..2 {
        let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        dead.push(bus.enqueue(&message(json!({}))).await.unwrap().id);
        bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken).await.unwrap();
    }
    let mut other = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.replay($1)").bind(dead[0]).execute(&mut *other).await.unwrap();
    let replaying = TaskTracker::new().spawn({
        let bus = bus.clone();
        let replay = "select dead_letter from bus.replay_many()";
        async move { sqlx::query_scalar::<_, Uuid>(replay).fetch_all(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "replay_many").await;
    other.commit().await.unwrap();
    assert_eq!(replaying.await.unwrap().unwrap(), dead[1..]);
}
