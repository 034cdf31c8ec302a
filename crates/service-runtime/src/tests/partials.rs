//! Partial results of a handler: all of them stand before its message ends.

use cogo_bus_core::{Partial, PartialPlace};

use super::*;

async fn parts(bus: &Bus, id: Uuid) -> Vec<(i16, i32, Value)> {
    let parts = bus.partials_after(id, PartialPlace::default(), 1_000).await.unwrap();
    parts.into_iter().map(|Partial { attempt, seq, content, .. }| (attempt, seq, content)).collect()
}

#[tokio::test]
async fn parts_of_a_handler_stand_before_its_message_ends() {
    let running = Running::start(true, pace()).await;
    let id = running.send("stream").await;
    assert_eq!(running.ended(id).await.status, TaskStatus::Done);
    let expected: Vec<_> = (1..=250).map(|number| (1, number, json!(number))).collect();
    assert_eq!(parts(&running.bus, id).await, expected);
    drop(running.finish().await);
}

#[tokio::test]
async fn parts_of_an_attempt_that_fails_stand_too() {
    let running = Running::start(true, pace()).await;
    let id = running.send("stream and reject").await;
    assert_eq!(running.ended(id).await.status, TaskStatus::Failed);
    assert_eq!(parts(&running.bus, id).await, [(1, 1, json!("so far"))]);
    drop(running.finish().await);
}

#[tokio::test]
async fn stream_of_a_hanging_handler_ends_with_the_worker() {
    let running = Running::start(true, pace()).await;
    let id = running.send("stream and hang").await;
    tokio::time::timeout(PATIENCE, async {
        while parts(&running.bus, id).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    running.bus.cancel(id).await.unwrap();
    let good = running.send("answer").await;
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    drop(running.finish().await);
}
