//! The subscription: hints arrive, a broken one is reopened with a catch-up.

use cogo_bus_core::{Bus, Wake, WakeUps};
use cogo_contracts::{NewMessage, Route};
use serde_json::json;
use tokio::{sync::broadcast::Receiver, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{PATIENCE, bus, claim, claim_one, message, numbered, until_somebody_waits_for_a_lock};

/// What an open subscription tells.
struct Hints {
    received: Receiver<Wake>,
    stop: CancellationToken,
    listening: JoinHandle<()>,
}

impl Hints {
    async fn open(bus: &Bus) -> Self {
        let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
        let received = wakeups.subscribe();
        let listening = TaskTracker::new().spawn(wakeups.run(bus.pool().clone(), stop.clone()));
        let mut hints = Self { received, stop, listening };
        assert_eq!(hints.next().await, Wake::CatchUp);
        hints
    }

    async fn next(&mut self) -> Wake {
        timeout(PATIENCE, self.received.recv()).await.expect("no hint came").unwrap()
    }

    async fn close(self) {
        self.stop.cancel();
        self.listening.await.unwrap();
    }
}

#[tokio::test]
async fn sending_wakes_the_route_and_a_watched_task() {
    let (bus, _database) = bus().await;
    let mut hints = Hints::open(&bus).await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(hints.next().await, Wake::Ready("test/work/0".to_owned()));
    bus.watch(root, "test", PATIENCE).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    assert_eq!(hints.next().await, Wake::Task(root));
    bus.complete(&claimed.fence(), "w", &Default::default()).await.unwrap();
    assert_eq!(hints.next().await, Wake::Task(root));
    hints.close().await;
}

#[tokio::test]
async fn message_that_is_handed_back_is_told_to_those_who_watch_its_task() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let mut hints = Hints::open(&bus).await;
    bus.watch(root, "test", PATIENCE).await.unwrap();
    assert_eq!(bus.release(&[claimed.fence()], "w").await.unwrap(), 1);
    let other = NewMessage { route: Route::constant("test", "other"), ..message(json!({})) };
    bus.enqueue(&other).await.unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&Wake::Ready("test/other/0".to_owned())) {
        told.push(hints.next().await);
    }
    assert!(told.contains(&Wake::Task(root)), "{told:?}");
    hints.close().await;
}

#[tokio::test]
async fn a_large_plain_batch_wakes_its_route() {
    let (bus, _database) = bus().await;
    let mut hints = Hints::open(&bus).await;
    bus.enqueue_many(&numbered(500)).await.unwrap();
    assert_eq!(hints.next().await, Wake::Ready("test/work/0".to_owned()));
    hints.close().await;
}

#[tokio::test]
async fn commit_that_is_about_to_notify_speaks_for_others_of_its_route() {
    let (bus, _database) = bus().await;
    let mut hints = Hints::open(&bus).await;
    let mut first = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut first, &message(json!({}))).await.unwrap();
    // as a commit does before it writes to the disk
    sqlx::raw_sql("set constraints all immediate").execute(&mut *first).await.unwrap();
    bus.enqueue(&message(json!({}))).await.unwrap();
    first.commit().await.unwrap();
    let other = NewMessage { route: Route::constant("test", "other"), ..message(json!({})) };
    bus.enqueue(&other).await.unwrap();
    assert_eq!(hints.next().await, Wake::Ready("test/work/0".to_owned()));
    assert_eq!(hints.next().await, Wake::Ready("test/other/0".to_owned()), "one hint for both");
    assert_eq!(claim(&bus, "w", 10).await.len(), 2);
    hints.close().await;
}

#[tokio::test]
async fn only_a_message_that_is_due_before_all_others_is_told_of() {
    let (bus, _database) = bus().await;
    let mut hints = Hints::open(&bus).await;
    let later = |minutes: u64| NewMessage { delay_ms: Some(minutes * 60_000), ..message(json!({})) };
    for minutes in 10..40 {
        bus.enqueue(&later(minutes)).await.unwrap();
    }
    bus.enqueue_many(&[later(50), later(5), later(60)]).await.unwrap();
    let other = NewMessage { route: Route::constant("test", "other"), ..message(json!({})) };
    bus.enqueue(&other).await.unwrap();
    let mut told = Vec::new();
    loop {
        let hint = hints.next().await;
        if hint == Wake::Ready("test/other/0".to_owned()) {
            break;
        }
        told.push(hint);
    }
    let work = Wake::Ready("test/work/0".to_owned());
    assert_eq!(told, [work.clone(), work], "of the first one, and of the one before it");
    hints.close().await;
}

#[tokio::test]
async fn broken_subscription_is_reopened_with_a_catch_up() {
    let (bus, _database) = bus().await;
    let mut hints = Hints::open(&bus).await;
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    assert_eq!(hints.next().await, Wake::CatchUp);
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert_eq!(hints.next().await, Wake::Ready("test/work/0".to_owned()));
    hints.close().await;
}

#[tokio::test]
async fn completion_that_is_under_way_cannot_slip_past_a_new_watcher() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let mut transaction = bus.pool().begin().await.unwrap();
    let completion = cogo_bus_core::Completion::default();
    assert!(cogo_bus_core::Bus::complete_in(&mut transaction, &claimed.fence(), "w", &completion).await.unwrap());
    // it has looked for watchers already and will announce nothing; the watch must not return before it is visible
    let watching = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move {
            bus.watch(root, "test", PATIENCE).await.unwrap();
            bus.task(root).await.unwrap().unwrap().status
        }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.watch").await;
    transaction.commit().await.unwrap();
    assert_eq!(watching.await.unwrap(), cogo_contracts::TaskStatus::Done);
}

#[tokio::test]
async fn completion_that_waited_for_a_new_watcher_tells_him() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let mut hints = Hints::open(&bus).await;
    let mut watching = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.watch($1, 'test', 60000)").bind(root).execute(&mut *watching).await.unwrap();
    let completing = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.complete(&claimed.fence(), "w", &Default::default()).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.complete").await;
    watching.commit().await.unwrap();
    assert!(completing.await.unwrap());
    assert_eq!(hints.next().await, Wake::Task(root));
    hints.close().await;
}
