//! What operators want of agents of level 3: told over the connection, obeyed and reported; and the ends of runs.

use std::time::Duration;

use cogo_contracts::AgentState;
use cogo_registry_core::{NewOrder, Registration, StandingOrders, Subject, Target, detect_location};
use serde_json::json;
use tokio::time::timeout;

use super::{
    PATIENCE,
    child_support::{CHILD, INSTANCE, Parent},
};
use crate::{ChildEvent, Ended, Order};

#[tokio::test]
async fn child_is_told_to_pause_and_to_work_again_and_says_that_it_obeys() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    parent.obeyed(Order::Work).await;
    parent.registry.suspend(Target::slot(CHILD, 0)).await.unwrap();
    child.told(Order::Pause).await;
    parent.obeyed(Order::Pause).await;
    parent.registry.resume(Target::slot(CHILD, 0)).await.unwrap();
    child.told(Order::Work).await;
    parent.obeyed(Order::Work).await;
    // none of it cost the connection
    child.handle.parent.send(json!("still here")).await.unwrap();
    child.stop.cancel();
    assert_eq!(child.ended().await, (Ended::Stopped, Vec::new()));
    parent.stop().await;
}

#[tokio::test]
async fn drained_child_leaves_once_it_is_finished_and_does_not_come_back() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.registry.drain(Target::slot(CHILD, 0).because("its machine goes")).await.unwrap();
    parent.obeyed(Order::Leave).await;
    parent.until(run, "draining").await;
    child.handle.finished.cancel();
    let (ended, events) = child.ended().await;
    assert_eq!((ended, events), (Ended::Drained, vec![ChildEvent::Disconnected]));
    assert_eq!(parent.end_reason(run).await, "drained");
    assert_eq!(parent.children.obeys(INSTANCE), None);
    parent.stop().await;
}

#[tokio::test]
async fn order_that_was_given_while_the_child_was_away_reaches_it_on_its_return() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child_with(&parent.key, |settings| settings.attempts = 1000);
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.obeyed(Order::Work).await;
    parent.cut_off(&mut child).await;
    // that the parent has suspended it for its absence is not told to it when it is back
    parent.let_back(&mut child).await;
    parent.obeyed(Order::Work).await;
    assert_eq!(*child.handle.orders.borrow(), Order::Work);

    parent.cut_off(&mut child).await;
    parent.registry.drain(Target::run(run)).await.unwrap();
    parent.let_back(&mut child).await;
    child.told(Order::Leave).await;
    child.handle.finished.cancel();
    assert_eq!(child.ended().await.0, Ended::Drained);
    assert_eq!(parent.end_reason(run).await, "drained");
    parent.stop().await;
}

#[tokio::test]
async fn child_that_was_ordered_to_pause_while_it_was_away_pauses_on_its_return() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child_with(&parent.key, |settings| settings.attempts = 1000);
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.cut_off(&mut child).await;
    // `cogo suspend` leaves an order, which tells its suspension from that by the parent
    let subject = Subject::Process { domain: "design".to_owned(), process: CHILD.to_owned() };
    let order = NewOrder { subject, fleet: None, by: "test".to_owned(), reason: None, known_version: 0 };
    StandingOrders::new(parent.database.pool.clone()).give(&order).await.unwrap().unwrap();
    parent.let_back(&mut child).await;
    parent.obeyed(Order::Pause).await;
    parent.until(run, "suspended").await;
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_that_stops_leaves_the_registry_at_once() {
    let parent = Parent::start(|settings| settings.allowed_absence = Duration::from_secs(3600)).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    child.stop.cancel();
    assert_eq!(child.ended().await.0, Ended::Stopped);
    assert_eq!(parent.end_reason(run).await, "stopped");
    parent.stop().await;
}

#[tokio::test]
async fn child_whose_run_was_ended_comes_back_as_another_run() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child_with(&parent.key, |settings| settings.attempts = 1000);
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.obeyed(Order::Work).await;
    parent.registry.suspend(Target::run(run)).await.unwrap();
    child.told(Order::Pause).await;
    parent.registry.deregister(run, "removed by hand").await.unwrap();
    assert_eq!(child.next().await, ChildEvent::Disconnected);
    assert_eq!(child.next().await, ChildEvent::Reconnected);
    assert_ne!(child.run(), run);
    // what was wanted of the old run is nothing to the new one
    parent.obeyed(Order::Work).await;
    child.told(Order::Work).await;
    assert_eq!(parent.end_reason(run).await, "removed by hand");
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_whose_place_was_taken_elsewhere_gives_way() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    parent.obeyed(Order::Work).await;
    let version = semver::Version::new(3, 0, 0);
    let elsewhere = Registration::new("design", CHILD, 0, version, detect_location(|_| None)).unwrap();
    let other = parent.registry.register(&elsewhere.key(&parent.key)).await.unwrap();
    assert_eq!(child.ended().await, (Ended::Refused, vec![ChildEvent::Disconnected]));
    let listed = parent.registry.list().await.unwrap();
    let owner = listed.iter().find(|agent| agent.id.name == CHILD).unwrap();
    assert_eq!((owner.id.instance_id, owner.state), (other.instance_id, AgentState::Registered));
    parent.stop().await;
}

#[tokio::test]
async fn orders_of_a_fleet_that_changes_much_reach_every_child_in_order() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    for _ in 0..20 {
        parent.registry.suspend(Target::slot(CHILD, 0)).await.unwrap();
        parent.registry.resume(Target::slot(CHILD, 0)).await.unwrap();
    }
    parent.registry.suspend(Target::slot(CHILD, 0)).await.unwrap();
    // some in between may be left out, the last one never is
    parent.obeyed(Order::Pause).await;
    let settled = timeout(PATIENCE, async {
        while *child.handle.orders.borrow() != Order::Pause {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    settled.await.expect("the last order stands");
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}
