//! Agents of level 3 over real WebSockets: let in, cut off, back again, gone, turned away, and without their parent.

use std::{sync::atomic::Ordering, time::Duration};

use cogo_contracts::AgentState;
use cogo_registry_core::{AgentKey, Standing, Target};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::{
    PATIENCE,
    child_support::{CHILD, INSTANCE, Parent},
};
use crate::{Again, ChildEvent, Ended, ToChild};

#[tokio::test]
async fn child_stands_in_the_registry_through_its_parent_and_both_talk() {
    let mut parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let listed = parent.registry.list().await.unwrap();
    let own = listed.iter().find(|agent| agent.id.name == CHILD).unwrap();
    assert_eq!((own.level, own.parent.as_deref(), own.state), (3, Some("design-hub/0"), AgentState::Active));
    assert_eq!((own.id.domain.as_str(), own.id.version.to_string().as_str()), ("design", "2.0.1"));
    assert_eq!((own.id.instance_id, own.epoch, own.capabilities[0].as_str()), (child.run(), 1, "figma"));
    assert!(own.beat_age_ms.is_some(), "it rides on the parent's beat");
    assert_eq!(parent.children.connected(), [INSTANCE]);

    child.handle.parent.send(json!({"question": 1})).await.unwrap();
    let said = timeout(PATIENCE, parent.received.recv()).await.unwrap().unwrap();
    assert_eq!(
        (said.child.as_str(), said.body, said.membership.instance_id),
        (INSTANCE, json!({"question": 1}), child.run())
    );
    parent.children.send(INSTANCE, json!({"answer": 2})).await.unwrap();
    assert_eq!(timeout(PATIENCE, child.handle.messages.recv()).await.unwrap(), Some(json!({"answer": 2})));
    assert!(parent.children.send("figma-worker/1", json!({})).await.is_err());

    child.handle.in_flight.store(7, Ordering::Relaxed);
    let told = async {
        while !parent.registry.list().await.unwrap().iter().any(|agent| agent.id.name == CHILD && agent.in_flight == 7)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("its heartbeat tells of its work");
    child.stop.cancel();
    assert_eq!(child.ended().await, (Ended::Stopped, Vec::new()));
    parent.stop().await;
}

#[tokio::test]
async fn child_that_was_cut_off_comes_back_as_the_same_run() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child_with(&parent.key, |settings| settings.attempts = 1000);
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.cut_off(&mut child).await;
    assert!(parent.children.connected().is_empty());
    parent.let_back(&mut child).await;
    parent.until(run, "active").await;
    assert_eq!((child.run(), child.handle.seated.borrow().as_ref().unwrap().epoch), (run, 1));

    // an operator's pause outlasts the loss of a connection
    parent.registry.suspend(Target::run(run)).await.unwrap();
    parent.intact.send(false).unwrap();
    assert_eq!(child.next().await, ChildEvent::Disconnected);
    parent.let_back(&mut child).await;
    assert_eq!(parent.children.connected(), [INSTANCE]);
    parent.until(run, "suspended").await;
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_without_a_connection_for_too_long_is_gone() {
    let parent = Parent::start(|settings| settings.allowed_absence = Duration::from_millis(50)).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    parent.intact.send(false).unwrap();
    parent.until(run, "terminated").await;
    assert_eq!(parent.end_reason(run).await, "connection gone");
    let (ended, events) = child.ended().await;
    assert_eq!((ended, events), (Ended::GivenUp, vec![ChildEvent::Disconnected, ChildEvent::HeartbeatFailed]));

    parent.intact.send(true).unwrap();
    let mut again = parent.child();
    assert_eq!(again.next().await, ChildEvent::Connected);
    assert_eq!(again.handle.seated.borrow().as_ref().unwrap().epoch, 2, "it is another run");
    again.stop.cancel();
    again.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_that_falls_silent_is_noticed_without_a_cut() {
    let parent = Parent::start(|settings| {
        settings.silence = Duration::from_millis(100);
        settings.allowed_absence = Duration::from_millis(50);
    })
    .await;
    let mut child = parent.child_with(&parent.key, |settings| settings.heartbeat = Duration::from_secs(600));
    assert_eq!(child.next().await, ChildEvent::Connected);
    assert_eq!(child.next().await, ChildEvent::Disconnected);
    child.stop.cancel();
    parent.until(child.run(), "terminated").await;
    parent.stop().await;
}

/// Says hello by hand; answers what the parent says first.
async fn greeted(address: &str, hello: Value) -> ToChild {
    let (mut socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
    socket.send(Message::text(hello.to_string())).await.unwrap();
    let frame = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    serde_json::from_str(frame.to_text().unwrap()).unwrap_or_else(|error| panic!("{error}: {frame}"))
}

fn hello(credential: Value) -> Value {
    json!({"type": "hello", "name": CHILD, "version": "1.0.0", "credential": credential})
}

#[tokio::test]
async fn bad_keys_and_tokens_are_refused() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let forged = parent.member.token("design-hub/0").unwrap();
    let mut unknown = hello(json!({"key": AgentKey::generate().reveal()}));
    unknown["name"] = json!("nobody");
    for (said, expected) in [
        (hello(json!({"key": AgentKey::generate().reveal()})), Again::Never),
        (hello(json!({"key": "cogo_ak_short"})), Again::Never),
        // a name without keys, which could register by itself, is let in by none here
        (unknown, Again::Never),
        (hello(json!({"token": "a.b.c"})), Again::WithKey),
        // the parent's own token is that of another run
        (hello(json!({"token": forged})), Again::WithKey),
    ] {
        let answer = greeted(&parent.address, said.clone()).await;
        assert!(matches!(&answer, ToChild::Refused { again, .. } if *again == expected), "{said}: {answer:?}");
    }
    assert_eq!(parent.children.connected(), [INSTANCE], "the child stays");
    assert_eq!(parent.registry.list().await.unwrap().len(), 2, "nobody else came in");
    let stranger = parent.child_with(&AgentKey::generate(), |_| {});
    assert_eq!(stranger.ended().await, (Ended::Refused, Vec::new()));
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn frames_that_are_no_hello_end_the_connection() {
    let parent = Parent::start(|_| {}).await;
    for said in ["", "{}", "[1]", r#"{"type":"heartbeat","sequence":1}"#, r#"{"type":"hello","name":5}"#] {
        let (mut socket, _) = tokio_tungstenite::connect_async(&parent.address).await.unwrap();
        socket.send(Message::text(said)).await.unwrap();
        let frame = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert!(matches!(frame, Message::Close(Some(ref close)) if u16::from(close.code) == 1002), "{said}: {frame:?}");
    }
    parent.stop().await;
}

#[tokio::test]
async fn a_second_run_with_the_key_takes_the_place_and_the_first_does_not_fight() {
    let parent = Parent::start(|_| {}).await;
    let mut first = parent.child();
    assert_eq!(first.next().await, ChildEvent::Connected);
    let run = first.run();
    let mut second = parent.child();
    assert_eq!(second.next().await, ChildEvent::Connected);
    assert_eq!(first.ended().await, (Ended::Refused, vec![ChildEvent::Disconnected]));
    assert_eq!(parent.end_reason(run).await, "superseded");
    assert_eq!(second.handle.seated.borrow().as_ref().unwrap().epoch, 2);
    parent.until(second.run(), "active").await;
    second.stop.cancel();
    second.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_of_a_parent_that_was_declared_dead_comes_back_with_it() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child_with(&parent.key, |settings| settings.attempts = 1000);
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    let carrier = parent.member.standing().borrow().membership().cloned().unwrap();
    parent.registry.deregister(carrier.instance_id, "dead").await.unwrap();
    parent.until(run, "terminated").await;
    assert_eq!(parent.end_reason(run).await, "carrier ended: dead");
    assert_eq!(child.next().await, ChildEvent::Disconnected);
    assert_eq!(child.next().await, ChildEvent::Reconnected);
    parent.until(child.run(), "active").await;
    assert_eq!(child.handle.seated.borrow().as_ref().unwrap().epoch, 2);
    let other = parent.member.standing().borrow().membership().cloned().unwrap();
    assert_ne!(other.instance_id, carrier.instance_id);
    child.stop.cancel();
    child.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn child_gives_up_on_a_parent_that_speaks_no_tls() {
    let mut parent = Parent::start(|_| {}).await;
    parent.address = parent.address.replace("ws://", "wss://");
    let child = parent.child();
    assert_eq!(child.ended().await, (Ended::GivenUp, vec![ChildEvent::HeartbeatFailed]));
    parent.stop().await;
}

#[tokio::test]
async fn child_of_a_parent_that_ends_gives_up_after_its_tries() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let (run, registry) = (child.run(), parent.registry.clone());
    parent.leave.cancel();
    let mut standing = parent.member.standing();
    standing.wait_for(|now| matches!(now, Standing::Left)).await.unwrap();
    parent.stop.cancel();
    let (ended, events) = child.ended().await;
    assert_eq!((ended, events), (Ended::GivenUp, vec![ChildEvent::Disconnected, ChildEvent::HeartbeatFailed]));
    assert_eq!(parent.end_reason(run).await, "carrier ended: stopped");
    assert!(registry.list().await.unwrap().is_empty());
    parent.stop().await;
}
