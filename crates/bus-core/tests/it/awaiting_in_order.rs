//! Calls that meet over messages which await others wait in one order too, and none ends by a deadlock.

use cogo_bus_core::{Bus, Completion};
use cogo_contracts::NewMessage;
use serde_json::json;
use tokio_util::task::TaskTracker;

use crate::support::{ROUTE, bus, claim, message, misplaced, until_somebody_waits_for_a_lock};

fn of_group() -> NewMessage {
    NewMessage { group_key: Some("g".to_owned()), ..message(json!({})) }
}

#[tokio::test]
async fn whoever_comes_to_await_what_is_being_cancelled_is_locked_before_its_group() {
    let (bus, _database) = bus().await;
    let awaited = bus.enqueue(&of_group()).await.unwrap().id;
    let mut of_the_group = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut of_the_group, &of_group()).await.unwrap();
    let mut awaiting = bus.pool().begin().await.unwrap();
    let new = NewMessage { awaits: vec![awaited], ..message(json!({})) };
    let waiter = Bus::enqueue_in(&mut awaiting, &new).await.unwrap().id;
    let tasks = TaskTracker::new();
    let cancelling = tasks.spawn({
        let bus = bus.clone();
        async move { bus.cancel(awaited).await }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.cancel").await;
    awaiting.commit().await.unwrap();
    // it has all rows by now, and waits for the group alone
    let has_gone_on = "select exists (select from pg_locks where locktype = 'advisory' and not granted)";
    while !sqlx::query_scalar::<_, bool>(has_gone_on).fetch_one(bus.pool()).await.unwrap() {
        tokio::time::sleep(crate::support::PAUSE).await;
    }
    let sending = tasks.spawn({
        let bus = bus.clone();
        async move { bus.enqueue(&NewMessage { awaits: vec![waiter], ..of_group() }).await }
    });
    until_somebody_waits_for_a_lock(&bus, "enqueue").await;
    of_the_group.commit().await.unwrap();
    assert_eq!(cancelling.await.unwrap().unwrap(), 1);
    sending.await.unwrap().unwrap();
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn two_that_send_again_what_the_other_was_end_one_after_the_other() {
    let (bus, _database) = bus().await;
    let keyed = |key: &str| NewMessage { idempotency_key: Some(key.to_owned()), ..message(json!({})) };
    let first = bus.enqueue(&keyed("first")).await.unwrap().id;
    let second = bus.enqueue(&keyed("second")).await.unwrap().id;
    let awaited = [0, 1].map(|_| message(json!({})));
    let awaited: Vec<_> = bus.enqueue_many(&awaited).await.unwrap().iter().map(|sent| sent.id).collect();
    let held = claim(&bus, "w", 4).await;
    let fence = |id| held.iter().find(|one| one.id == id).unwrap().fence();
    let mut ending = bus.pool().begin().await.unwrap();
    assert!(Bus::complete_in(&mut ending, &fence(awaited[1]), "w", &Completion::default()).await.unwrap());
    let complete = |id, key: &'static str, awaits| {
        let (bus, fence) = (bus.clone(), fence(id));
        async move {
            let again = NewMessage { idempotency_key: Some(key.to_owned()), ..NewMessage::new(ROUTE, None, json!({})) };
            let join = NewMessage { awaits: vec![awaits], ..NewMessage::new(ROUTE, None, json!({})) };
            let completion = Completion { follow_ups: vec![again, join], ..Completion::default() };
            bus.complete(&fence, "w", &completion).await
        }
    };
    let tasks = TaskTracker::new();
    let one = tasks.spawn(complete(second, "first", awaited[1]));
    until_somebody_waits_for_a_lock(&bus, "bus.complete").await;
    let other = tasks.spawn(complete(first, "second", awaited[0]));
    let waiting = "select count(*) from pg_stat_activity
                    where datname = current_database() and wait_event_type = 'Lock' and query like '%bus.complete%'";
    while !other.is_finished() && sqlx::query_scalar::<_, i64>(waiting).fetch_one(bus.pool()).await.unwrap() < 2 {
        tokio::time::sleep(crate::support::PAUSE).await;
    }
    ending.commit().await.unwrap();
    assert!(one.await.unwrap().unwrap() && other.await.unwrap().unwrap());
    assert_eq!(misplaced(&bus).await, 0);
}
