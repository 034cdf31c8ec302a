//! Messages that wait for others to end, and idempotency keys that end.

use std::time::Duration;

use cogo_bus_core::{Bus, Claimed, Completion, Error, Failure};
use cogo_contracts::NewMessage;
use serde_json::json;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{
    LEASE, PATIENCE, PAUSE, bus, claim, claim_for, claim_one, delays_to_pass, leases_to_pass, message, misplaced,
    numbered, until_somebody_waits_for_a_lock,
};

fn waiting_for(awaits: &[Uuid]) -> NewMessage {
    NewMessage { awaits: awaits.to_vec(), ..message(json!({"joins": true})) }
}

async fn sent(bus: &Bus, count: u32) -> Vec<Uuid> {
    bus.enqueue_many(&numbered(count)).await.unwrap().into_iter().map(|sent| sent.id).collect()
}

async fn complete(bus: &Bus, claimed: &Claimed) {
    let completion = Completion { result: Some(json!({"of": claimed.id})), ..Completion::default() };
    assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
}

#[tokio::test]
async fn message_starts_once_both_that_it_awaits_have_ended_however_they_did() {
    let (bus, _database) = bus().await;
    let children = sent(&bus, 3).await;
    let held = claim(&bus, "w", 3).await;
    let join = bus.enqueue(&waiting_for(&children)).await.unwrap().id;
    assert!(claim(&bus, "w", 5).await.is_empty(), "it waits");

    complete(&bus, &held[0]).await;
    assert!(claim(&bus, "w", 5).await.is_empty(), "for all three");
    let failure = Failure { reason: "broken".to_owned(), retriable: true, retry_after: None };
    bus.fail(&held[1].fence(), "w", &failure).await.unwrap();
    assert!(claim(&bus, "w", 5).await.is_empty(), "what is tried again has not ended");
    delays_to_pass(&bus).await;
    let again = claim_one(&bus, "w").await;
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&again.fence(), "w", &failure).await.unwrap();
    assert!(claim(&bus, "w", 5).await.is_empty());
    assert_eq!(bus.cancel(held[2].id).await.unwrap(), 1);

    assert_eq!(claim_one(&bus, "w").await.id, join);
    let outcomes = bus.results(&children).await.unwrap();
    let mut told: Vec<_> = outcomes.iter().map(|outcome| outcome.status.as_str()).collect();
    assert_eq!(outcomes.iter().map(|outcome| outcome.id).collect::<Vec<_>>(), children, "in the order asked for");
    told.sort_unstable();
    assert_eq!(told, ["cancelled", "done", "failed"]);
    let done = outcomes.iter().find(|outcome| outcome.status == "done").unwrap();
    assert_eq!(done.result, Some(json!({"of": done.id})));
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn message_that_awaits_what_has_ended_starts_at_once() {
    let (bus, _database) = bus().await;
    let children = sent(&bus, 2).await;
    for held in claim(&bus, "w", 2).await {
        complete(&bus, &held).await;
    }
    let join = bus.enqueue(&waiting_for(&children)).await.unwrap().id;
    assert_eq!(claim_one(&bus, "w").await.id, join);
}

#[tokio::test]
async fn siblings_of_one_batch_may_be_awaited() {
    let (bus, _database) = bus().await;
    let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    let child = |id| NewMessage { id: Some(id), ..message(json!({})) };
    let join = NewMessage { id: Some(ids[2]), ..waiting_for(&ids[..2]) };
    bus.enqueue_many(&[child(ids[0]), child(ids[1]), join]).await.unwrap();
    let held = claim(&bus, "w", 5).await;
    assert_eq!(held.iter().map(|claimed| claimed.id).collect::<Vec<_>>(), ids[..2]);
    for claimed in &held {
        assert!(claim(&bus, "w", 5).await.is_empty());
        complete(&bus, claimed).await;
    }
    assert_eq!(claim_one(&bus, "w").await.id, ids[2]);
}

#[tokio::test]
async fn two_that_end_at_the_same_moment_start_the_one_that_awaits_them_once() {
    let (bus, _database) = bus().await;
    for round in 0..50 {
        let children = sent(&bus, 2).await;
        let held = claim(&bus, "w", 2).await;
        let join = bus.enqueue(&waiting_for(&children)).await.unwrap().id;
        // each in a transaction of its own, and both commits at once
        let mut transactions = Vec::new();
        for claimed in held {
            let mut transaction = bus.pool().begin().await.unwrap();
            transactions.push(TaskTracker::new().spawn(async move {
                let completion = Completion::default();
                let recorded = Bus::complete_in(&mut transaction, &claimed.fence(), "w", &completion).await.unwrap();
                transaction.commit().await.unwrap();
                recorded
            }));
        }
        for transaction in transactions {
            assert!(tokio::time::timeout(PATIENCE, transaction).await.unwrap().unwrap(), "round {round}");
        }
        let started = claim_one(&bus, "w").await;
        assert_eq!(started.id, join, "round {round}");
        assert!(claim(&bus, "w", 5).await.is_empty(), "round {round}");
        complete(&bus, &started).await;
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn end_that_is_under_way_while_it_is_awaited_counts() {
    let (bus, _database) = bus().await;
    let child = sent(&bus, 1).await;
    let held = claim_one(&bus, "w").await;
    let mut ending = bus.pool().begin().await.unwrap();
    assert!(Bus::complete_in(&mut ending, &held.fence(), "w", &Completion::default()).await.unwrap());
    let sender = TaskTracker::new().spawn({
        let (bus, join) = (bus.clone(), waiting_for(&child));
        async move { bus.enqueue(&join).await.unwrap().id }
    });
    until_somebody_waits_for_a_lock(&bus, "enqueue_many").await;
    ending.commit().await.unwrap();
    let join = sender.await.unwrap();
    assert_eq!(claim_one(&bus, "w").await.id, join);
}

#[tokio::test]
async fn completion_that_waited_for_who_awaits_it_counts() {
    let (bus, _database) = bus().await;
    for size in [1, 2, 70] {
        let children = sent(&bus, u32::from(size)).await;
        let held = claim(&bus, "w", size).await;
        let mut sending = bus.pool().begin().await.unwrap();
        let join = Bus::enqueue_in(&mut sending, &waiting_for(&children[..1])).await.unwrap().id;
        let ending = TaskTracker::new().spawn({
            let bus = bus.clone();
            let ends: Vec<_> = held.iter().map(|one| (one.fence(), Completion::default())).collect();
            async move { bus.complete_many(&ends, "w").await.unwrap().len() }
        });
        until_somebody_waits_for_a_lock(&bus, "complete_batch").await;
        sending.commit().await.unwrap();
        assert_eq!(ending.await.unwrap(), usize::from(size));
        let started = claim_one(&bus, "w").await;
        assert_eq!(started.id, join, "{size} at once");
        complete(&bus, &started).await;
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn one_that_waits_can_be_cancelled_and_outlive_its_time() {
    let (bus, _database) = bus().await;
    let children = sent(&bus, 1).await;
    let held = claim_one(&bus, "w").await;
    let cancelled = bus.enqueue(&waiting_for(&children)).await.unwrap().id;
    let late = NewMessage { ttl_ms: Some(1), ..waiting_for(&children) };
    let late = bus.enqueue(&late).await.unwrap().id;
    assert_eq!(bus.cancel(cancelled).await.unwrap(), 1);
    while bus.expire(10).await.unwrap() == 0 {
        tokio::time::sleep(PAUSE).await;
    }
    complete(&bus, &held).await;
    assert!(claim(&bus, "w", 5).await.is_empty());
    let statuses: Vec<_> =
        bus.results(&[cancelled, late]).await.unwrap().into_iter().map(|outcome| outcome.status).collect();
    assert_eq!(statuses, ["cancelled", "failed"]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn message_behind_another_of_its_group_waits_for_both_reasons() {
    let (bus, _database) = bus().await;
    for group_goes_first in [true, false] {
        let child = sent(&bus, 1).await;
        let awaited = claim_one(&bus, "w").await;
        let grouped = |message: NewMessage| NewMessage { group_key: Some("g".to_owned()), ..message };
        bus.enqueue(&grouped(message(json!({})))).await.unwrap();
        let join = bus.enqueue(&grouped(waiting_for(&child))).await.unwrap().id;
        let first = claim_one(&bus, "w").await;
        let mut ends = [first, awaited];
        if !group_goes_first {
            ends.reverse();
        }
        for end in &ends {
            assert!(claim(&bus, "w", 5).await.is_empty());
            complete(&bus, end).await;
        }
        let started = claim_one(&bus, "w").await;
        assert_eq!(started.id, join);
        complete(&bus, &started).await;
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn both_reasons_that_end_at_the_same_moment_leave_nothing_behind() {
    let (bus, _database) = bus().await;
    for round in 0..20 {
        let child = sent(&bus, 1).await;
        let awaited = claim_one(&bus, "w").await;
        let grouped = |message: NewMessage| NewMessage { group_key: Some("g".to_owned()), ..message };
        bus.enqueue(&grouped(message(json!({})))).await.unwrap();
        let join = bus.enqueue(&grouped(waiting_for(&child))).await.unwrap().id;
        let first = claim_one(&bus, "w").await;
        // neither commits before the other has looked, unless one waits for the other
        let mut ending = bus.pool().begin().await.unwrap();
        let (one, other) = if round % 2 == 0 { (first, awaited) } else { (awaited, first) };
        assert!(Bus::complete_in(&mut ending, &one.fence(), "w", &Completion::default()).await.unwrap());
        let second = TaskTracker::new().spawn({
            let bus = bus.clone();
            async move { bus.complete(&other.fence(), "w", &Completion::default()).await.unwrap() }
        });
        tokio::select! {
            () = until_somebody_waits_for_a_lock(&bus, "bus.complete(") => {}
            () = async { while !second.is_finished() { tokio::time::sleep(PAUSE).await } } => {}
        }
        ending.commit().await.unwrap();
        assert!(second.await.unwrap());
        let started = claim_one(&bus, "w").await;
        assert_eq!(started.id, join, "round {round}");
        complete(&bus, &started).await;
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn what_could_never_end_cannot_be_awaited() {
    let (bus, _database) = bus().await;
    let refused = |sent: Result<Vec<_>, Error>, why: &str| assert!(matches!(sent, Err(Error::Refused { .. })), "{why}");
    refused(bus.enqueue_many(&[waiting_for(&[Uuid::now_v7()])]).await, "a stranger");
    let ids = [Uuid::now_v7(), Uuid::now_v7()];
    let named = |id, awaits: &[Uuid]| NewMessage { id: Some(id), ..waiting_for(awaits) };
    refused(bus.enqueue_many(&[named(ids[0], &ids[..1])]).await, "itself");
    refused(bus.enqueue_many(&[named(ids[0], &ids[1..]), named(ids[1], &ids[..1])]).await, "each other");

    let keyed = |id| NewMessage { id: Some(id), idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    bus.enqueue(&keyed(ids[0])).await.unwrap();
    let again = Uuid::now_v7();
    let sent = bus.enqueue_many(&[keyed(again), waiting_for(&[again])]).await.unwrap();
    assert!(sent[0].duplicate, "{sent:?}");
    complete(&bus, &claim_one(&bus, "w").await).await;
    assert_eq!(claim_one(&bus, "w").await.id, sent[1].id, "it awaits the message that was sent under the key before");
}

#[tokio::test]
async fn dead_holder_delays_the_one_that_waits_and_no_more() {
    let (bus, _database) = bus().await;
    let children = sent(&bus, 100).await;
    let join = bus.enqueue(&waiting_for(&children)).await.unwrap().id;
    assert_eq!(claim_for(&bus, "dead", 100, LEASE).await.len(), 100);
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(1000).await.unwrap(), 100);
    let held = claim(&bus, "w", 200).await;
    assert_eq!(held.len(), 100, "the one that waits is not among them");
    let ended: Vec<_> = held.iter().map(|claimed| (claimed.fence(), Completion::default())).collect();
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 100);
    assert_eq!(claim_one(&bus, "w").await.id, join);
}

#[tokio::test]
async fn duplicate_of_what_is_gone_counts_as_ended() {
    let (bus, _database) = bus().await;
    let keyed = |id| NewMessage { id: Some(id), idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    let first = Uuid::now_v7();
    bus.enqueue(&keyed(first)).await.unwrap();
    complete(&bus, &claim_one(&bus, "w").await).await;
    sqlx::query("delete from public.agent_messages where id = $1").bind(first).execute(bus.pool()).await.unwrap();
    let again = Uuid::now_v7();
    let sent = bus.enqueue_many(&[keyed(again), waiting_for(&[again])]).await.unwrap();
    assert!(sent[0].duplicate);
    assert_eq!(claim_one(&bus, "w").await.id, sent[1].id);
}

#[tokio::test]
async fn idempotency_key_counts_once_in_a_batch_however_short_its_window() {
    let (bus, _database) = bus().await;
    let keyed = |idempotency_ms| NewMessage {
        idempotency_key: Some("twice".to_owned()),
        idempotency_ms: Some(idempotency_ms),
        ..message(json!({}))
    };
    for refused in [0, 315_576_000_001] {
        let refused = bus.enqueue(&keyed(refused)).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
    let mut batch = numbered(2000);
    batch.splice(0..0, [keyed(1), keyed(1)]);
    let sent = bus.enqueue_many(&batch).await.unwrap();
    assert_eq!((sent[0].id, sent[0].duplicate, sent[1].duplicate), (sent[1].id, false, true));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(!bus.enqueue(&keyed(1)).await.unwrap().duplicate, "it was kept for a millisecond, not for 30 days");
    tokio::time::sleep(Duration::from_millis(2)).await;
    let alike = NewMessage { id: Some(Uuid::now_v7()), ..keyed(3_600_000) };
    let sent = bus.enqueue_many(&[alike.clone(), alike]).await.unwrap();
    assert_eq!((sent[0].duplicate, sent[1].duplicate), (false, true));
}

#[tokio::test]
async fn idempotency_key_is_free_again_after_its_window() {
    let (bus, _database) = bus().await;
    let keyed = NewMessage {
        idempotency_key: Some("hourly".to_owned()),
        idempotency_ms: Some(3_600_000),
        ..message(json!({}))
    };
    let first = bus.enqueue(&keyed).await.unwrap();
    assert!(bus.enqueue(&keyed).await.unwrap().duplicate);
    let window: bool = sqlx::query_scalar(
        "select until between clock_timestamp() + interval '59 minutes' and clock_timestamp() + interval '1 hour'
           from bus.keys",
    )
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert!(window);
    sqlx::query("update bus.keys set until = clock_timestamp()").execute(bus.pool()).await.unwrap();
    let second = bus.enqueue(&keyed).await.unwrap();
    assert!(!second.duplicate && second.id != first.id);
    assert_eq!(bus.enqueue(&keyed).await.unwrap().id, second.id, "and in use by the second");
}

#[tokio::test]
async fn duplicate_within_a_batch_is_awaited_through_the_first() {
    let (bus, _database) = bus().await;
    let keyed = |id| NewMessage { id: Some(id), idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    let [first, second] = [Uuid::now_v7(), Uuid::now_v7()];
    let sent = bus.enqueue_many(&[keyed(first), keyed(second), waiting_for(&[second])]).await.unwrap();
    assert_eq!((sent[1].id, sent[1].duplicate), (first, true));
    let held = claim(&bus, "w", 10).await;
    assert_eq!(held.iter().map(|held| held.id).collect::<Vec<_>>(), [first]);
    complete(&bus, &held[0]).await;
    assert_eq!(claim_one(&bus, "w").await.id, sent[2].id);
}

#[tokio::test]
async fn message_sent_again_under_its_id_and_key_is_a_duplicate() {
    let (bus, _database) = bus().await;
    let id = Uuid::now_v7();
    let keyed = NewMessage { id: Some(id), idempotency_key: Some("once".to_owned()), ..message(json!({})) };
    for again in [false, true, true] {
        let sent = bus.enqueue(&keyed).await.unwrap();
        assert_eq!((sent.id, sent.duplicate), (id, again));
    }
}

#[tokio::test]
async fn awaited_rows_of_a_batch_are_locked_in_their_order() {
    let (bus, _database) = bus().await;
    let [first, second] = [Uuid::now_v7(), Uuid::now_v7()];
    bus.enqueue_many(&[first, second].map(|id| NewMessage { id: Some(id), ..message(json!({})) })).await.unwrap();
    let held = claim(&bus, "w", 2).await;
    let mut other = bus.pool().begin().await.unwrap();
    let lock = "select from public.agent_messages where id = $1 for update";
    sqlx::query(lock).bind(first).execute(&mut *other).await.unwrap();
    let tasks = TaskTracker::new();
    let sending = tasks.spawn({
        let bus = bus.clone();
        // in the order of their own ids, which is not that of what they await
        let waiting = [second, first].map(|on| NewMessage { id: Some(Uuid::now_v7()), ..waiting_for(&[on]) });
        async move { bus.enqueue_many(&waiting).await }
    });
    until_somebody_waits_for_a_lock(&bus, "enqueue_many").await;
    let ends: Vec<_> = held.iter().map(|held| (held.fence(), Completion::default())).collect();
    sqlx::query(lock).bind(second).execute(&mut *other).await.unwrap();
    other.commit().await.unwrap();
    assert_eq!(bus.complete_many(&ends, "w").await.unwrap().len(), 2);
    assert_eq!(sending.await.unwrap().unwrap().len(), 2);
    assert_eq!(claim(&bus, "w", 10).await.len(), 2);
    assert_eq!(misplaced(&bus).await, 0);
}
