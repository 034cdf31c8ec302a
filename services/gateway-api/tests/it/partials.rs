//! Parts of results on the stream of a task: in order, once, from where a reader was cut off.

use std::time::Duration;

use cogo_bus_core::{Claimed, Failure};
use cogo_contracts::{NewMessage, routes};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    streams::Events,
    support::{Door, HOLDER, door},
};

const LEASE: Duration = Duration::from_secs(60);

async fn emit(door: &Door, claimed: &Claimed, first_seq: i32, contents: &[Value]) {
    let contents: Vec<String> = contents.iter().map(Value::to_string).collect();
    door.bus.emit(&claimed.fence(), HOLDER, first_seq, &contents, LEASE).await.unwrap().unwrap();
}

/// The next part, passing over steps.
async fn part(events: &mut Events) -> (Uuid, i64, i64, Value) {
    loop {
        let (name, frame) = events.next().await.expect("the stream ends before its parts");
        if name == "partial" {
            let number = |field: &str| frame[field].as_i64().unwrap();
            let id = frame["message_id"].as_str().unwrap().parse().unwrap();
            return (id, number("attempt"), number("seq"), frame["content"].clone());
        }
        assert_ne!(name, "end", "{frame}");
    }
}

#[tokio::test]
async fn parts_arrive_as_they_are_stored_and_before_the_end() {
    let door = door().await;
    let id = door.submit().await;
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    assert_eq!(events.next().await.unwrap().0, "snapshot");
    let decide = door.claim(&routes::DECIDE).await;
    emit(&door, &decide, 1, &[json!("a"), json!({"b": 2})]).await;
    assert_eq!(part(&mut events).await, (id, 1, 1, json!("a")));
    assert_eq!(part(&mut events).await, (id, 1, 2, json!({"b": 2})));
    emit(&door, &decide, 3, &[json!("c")]).await;
    assert_eq!(part(&mut events).await, (id, 1, 3, json!("c")));
    emit(&door, &decide, 4, &[json!("last")]).await;
    door.complete(&decide, json!({"whole": true}), Vec::new()).await;
    assert_eq!(part(&mut events).await, (id, 1, 4, json!("last")));
    loop {
        let (name, frame) = events.next().await.unwrap();
        if name == "end" {
            assert_eq!(frame["result"], json!({"whole": true}));
            break;
        }
    }
    assert_eq!(events.next().await, None);
    // who comes when all is over gets all of it
    let mut late = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    for seq in 1..=4 {
        assert_eq!(part(&mut late).await.2, seq);
    }
}

#[tokio::test]
async fn reader_that_was_cut_off_goes_on_where_it_was() {
    let door = door().await;
    let id = door.submit().await;
    let decide = door.claim(&routes::DECIDE).await;
    emit(&door, &decide, 1, &[json!(1), json!(2), json!(3)]).await;
    let path = format!("/tasks/{id}/stream");
    let mut events = Events::open(&door, &path).await;
    part(&mut events).await;
    assert_eq!(part(&mut events).await.2, 2);
    let last_id = events.last_id.clone().unwrap();
    drop(events);
    // two steps at once, each with a place of its own
    let follow_ups = [(); 2].map(|()| NewMessage::new(routes::CHAT, None, json!({}))).to_vec();
    door.complete(&decide, json!({}), follow_ups).await;
    let (one, other) = (door.claim(&routes::CHAT).await, door.claim(&routes::CHAT).await);
    emit(&door, &one, 1, &[json!("one")]).await;
    emit(&door, &other, 1, &[json!("other")]).await;
    let mut events = Events::open_after(&door, &path, Some(&last_id)).await;
    let mut parts = [part(&mut events).await, part(&mut events).await, part(&mut events).await];
    parts.sort_by_key(|(message_id, ..)| (*message_id != id, *message_id == other.id));
    assert_eq!(parts, [(id, 1, 3, json!(3)), (one.id, 1, 1, json!("one")), (other.id, 1, 1, json!("other"))]);
    let last_id = events.last_id.clone().unwrap();
    drop(events);
    emit(&door, &one, 2, &[json!("more")]).await;
    let mut events = Events::open_after(&door, &path, Some(&last_id)).await;
    assert_eq!(part(&mut events).await, (one.id, 1, 2, json!("more")));
    // an id that this server never gave stands for the start
    let mut events = Events::open_after(&door, &path, Some("17; drop table")).await;
    assert_eq!(part(&mut events).await, (id, 1, 1, json!(1)));
}

#[tokio::test]
async fn new_attempt_is_seen_as_one() {
    let door = door().await;
    let id = door.submit().await;
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    let first = door.claim(&routes::DECIDE).await;
    emit(&door, &first, 1, &[json!("void"), json!("void")]).await;
    assert_eq!((part(&mut events).await.1, part(&mut events).await.2), (1, 2));
    let failure = Failure { reason: "boom".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    door.bus.fail(&first.fence(), HOLDER, &failure).await.unwrap().unwrap();
    let second = door.claim(&routes::DECIDE).await;
    emit(&door, &second, 1, &[json!("counts")]).await;
    assert_eq!(part(&mut events).await, (id, 2, 1, json!("counts")));
}

#[tokio::test]
async fn long_streams_come_whole_and_in_order() {
    let door = door().await;
    let id = door.submit().await;
    let decide = door.claim(&routes::DECIDE).await;
    let numbers: Vec<Value> = (1..=500).map(|number| json!(number)).collect();
    emit(&door, &decide, 1, &numbers).await;
    door.complete(&decide, json!({}), Vec::new()).await;
    let mut events = Events::open(&door, &format!("/tasks/{id}/stream")).await;
    for number in 1..=500 {
        assert_eq!(part(&mut events).await, (id, 1, number, json!(number)));
    }
    assert_eq!(events.next().await.unwrap().0, "end");
}
