//! Partial results of a handler: all of them stand before its message ends, or it does not end as done.

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

/// Streams more than may stand, or what the database cannot store, and answers as if all were well.
struct Overflowing {
    pool: PgPool,
}

impl Handler for Overflowing {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    async fn handle(&self, order: Order, claim: &Claim) -> Result<Value, HandlerError> {
        let partials = claim.partials();
        partials.write(&json!("so far")).await?;
        partials.flush().await?;
        let spoilt = match order.what.as_str() {
            // room for small parts only
            "too large" => "update bus.partials set total_bytes = 8388608 - 1000",
            "too many" => "update bus.partials set seq = 100000",
            _ => "alter function bus.emit rename to hidden",
        };
        sqlx::raw_sql(spoilt).execute(&self.pool).await?;
        let part = json!("x".repeat(1_000));
        partials.write(&part).await?;
        if order.what == "too many" {
            // under the number of one that stands it would not be stored again
            partials.flush().await?;
            partials.write(&part).await?;
        }
        Ok(json!({}))
    }
}

#[tokio::test]
async fn reply_of_a_handler_whose_parts_are_refused_is_not_recorded() {
    let database = cogo_test_support::database().await;
    let pool = database.pool.clone();
    let handler = Overflowing { pool: pool.clone() };
    let running = Running::start_with(database, pool, true, pace(), |_| handler);
    for (what, limit) in [("too large", "partials at most 8 mib"), ("too many", "partials at most 100000")] {
        let id = running.send(what).await;
        let task = running.ended(id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1), "{task:?}");
        assert!(task.error.as_deref().unwrap().contains(limit), "{task:?}");
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn attempt_whose_parts_cannot_be_stored_ends_and_may_be_made_again() {
    let database = cogo_test_support::database().await;
    let pool = database.pool.clone();
    let handler = Overflowing { pool: pool.clone() };
    let running = Running::start_with(database, pool, true, pace(), |_| handler);
    let id = running.send_with("not to be stored", |message| message.max_attempts = Some(100)).await;
    let tried = running.until(id, |task| task.status.is_terminal() || task.steps[0].error.is_some()).await;
    assert!(!tried.status.is_terminal(), "{tried:?}");
    assert!(tried.steps[0].error.as_deref().unwrap().contains("bus.emit"), "{tried:?}");
    drop(running.finish().await);
}
