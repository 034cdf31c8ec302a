//! What an operator may order: suspended processes stay and claim nothing, drained ones finish and end.

use std::{sync::atomic::Ordering, time::Duration};

use cogo_contracts::TaskStatus;
use cogo_registry_core::{Registry, Target};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Obedient, PATIENCE, Running, join, pace, surroundings};
use crate::{Stop, entry::work, health::Health, worker::Worker};
use cogo_bus_core::{Bus, WakeUps};

fn slot() -> Target {
    Target::slot("test-work", 0)
}

#[tokio::test]
async fn suspended_process_stays_registered_and_claims_nothing_until_it_is_resumed() {
    let running = Running::start(true, pace()).await;
    let first = running.send("answer").await;
    running.ended(first).await;
    let registry = Registry::new(running.bus.pool().clone());
    let suspended = registry.suspend(slot().because("test")).await.unwrap();
    let second = running.send("answer").await;
    // two beats later it is still there, and so is the message
    let beats = "select b.seq from registry.beats b where b.instance_id = $1";
    let sequence = async || -> i64 {
        sqlx::query_scalar(beats).bind(suspended.membership.instance_id).fetch_one(running.bus.pool()).await.unwrap()
    };
    let from = sequence().await;
    let beating = async {
        while sequence().await < from + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, beating).await.expect("it goes on beating");
    assert_eq!(running.bus.task(second).await.unwrap().unwrap().status, TaskStatus::Queued);
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 1);
    assert_eq!(registry.list().await.unwrap()[0].state.as_str(), "suspended");

    registry.resume(slot()).await.unwrap();
    assert_eq!(running.ended(second).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn drained_process_finishes_what_it_has_and_ends() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, wakeups, leave, tracker) =
        (Stop::default(), WakeUps::default(), CancellationToken::new(), TaskTracker::new());
    let (heartbeat, member) = join(&bus);
    let beating = tracker.spawn(heartbeat.run(leave.clone()));
    member.activate();
    let worker = Worker::new(Obedient::default(), pace(), surroundings(bus.clone(), wakeups, member.clone(), &stop));
    let health = Health::default();
    let mut standing = member.standing();
    standing.wait_for(|now| now.claiming().is_some()).await.unwrap();
    let drained = async {
        Registry::new(bus.pool().clone()).drain(slot()).await.unwrap();
        member.ask_now();
    };
    let parts: Vec<futures_util::future::BoxFuture<'static, ()>> = vec![Box::pin(worker.run())];
    let ending = async { tokio::join!(work(parts, &member, &health, &stop), drained).0 };
    timeout(PATIENCE, ending).await.expect("it ends").unwrap();
    assert!(stop.soft().is_cancelled());
    leave.cancel();
    assert_eq!(beating.await.unwrap(), cogo_registry_core::Ended::Left);
    assert!(Registry::new(bus.pool().clone()).list().await.unwrap().is_empty());
}
