//! The subscription: hints arrive, a broken one is reopened with a catch-up.

use std::time::Duration;

use cogo_bus_core::{Wake, WakeUps};
use serde_json::json;
use tokio::{sync::broadcast::Receiver, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{bus, claim_one, message};

const PATIENCE: Duration = Duration::from_secs(20);

async fn next(hints: &mut Receiver<Wake>) -> Wake {
    timeout(PATIENCE, hints.recv()).await.expect("no hint came").unwrap()
}

#[tokio::test]
async fn sending_wakes_the_route_and_a_watched_task() {
    let (bus, _database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.run(bus.pool().clone(), stop.clone()));
    assert_eq!(next(&mut hints).await, Wake::CatchUp);
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(next(&mut hints).await, Wake::Ready("test/work/0".to_owned()));
    bus.watch(root, "test", PATIENCE).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    assert_eq!(next(&mut hints).await, Wake::Task(root));
    bus.complete(&claimed.fence(), "w", &Default::default()).await.unwrap();
    assert_eq!(next(&mut hints).await, Wake::Task(root));
    stop.cancel();
    listening.await.unwrap();
}

#[tokio::test]
async fn broken_subscription_is_reopened_with_a_catch_up() {
    let (bus, _database) = bus().await;
    let (wakeups, stop) = (WakeUps::default(), CancellationToken::new());
    let mut hints = wakeups.subscribe();
    let listening = TaskTracker::new().spawn(wakeups.run(bus.pool().clone(), stop.clone()));
    assert_eq!(next(&mut hints).await, Wake::CatchUp);
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    assert_eq!(next(&mut hints).await, Wake::CatchUp);
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert_eq!(next(&mut hints).await, Wake::Ready("test/work/0".to_owned()));
    stop.cancel();
    listening.await.unwrap();
}
