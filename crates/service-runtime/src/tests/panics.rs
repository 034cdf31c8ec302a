//! Handlers that panic where one does not look for it: before their first step, when they are dropped, in their effects.

use super::*;
use crate::{BatchHandler, BatchItem, Batching, batch::Batched};

struct Rash;

/// Panics when it is dropped.
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("as ordered");
    }
}

impl Handler for Rash {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    fn handle(&self, order: Order, claim: &Claim) -> impl Future<Output = Result<Value, HandlerError>> + Send {
        assert_ne!(order.what, "panic at once", "as ordered");
        async move {
            if order.what == "hang" {
                let _explosive = Explosive;
                std::future::pending::<()>().await;
            }
            claim.within_completion(|_| panic!("as ordered"));
            Ok(json!({}))
        }
    }
}

struct RashBatch;

impl BatchHandler for RashBatch {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    fn batching(&self) -> Batching {
        Batching::new(1, Duration::ZERO)
    }

    fn handle(&self, batch: Vec<BatchItem<Order, Value>>) -> impl Future<Output = Result<(), HandlerError>> + Send {
        assert_ne!(batch[0].request.what, "panic at once", "as ordered");
        async move { Ok(()) }
    }
}

async fn start<H: Handler>(handler: impl FnOnce(&Stop) -> H) -> Running {
    let database = cogo_test_support::database().await;
    let pool = database.pool.clone();
    Running::start_with(database, pool, true, pace(), handler)
}

async fn fails_as_a_panic(running: &Running) {
    let id = running.send_with("panic at once", |message| message.max_attempts = Some(1)).await;
    let error = running.ended(id).await.error.unwrap();
    assert!(error.starts_with("handler panicked: "), "{error}");
}

/// A worker that has something in hand for ever does not end at a soft stop.
async fn has_nothing_in_hand(running: Running) {
    running.stop.soft().cancel();
    let Running { working, leave, mut tasks, database, .. } = running;
    tokio::time::timeout(PATIENCE, working).await.expect("something is in hand for ever").unwrap();
    leave.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    drop(database);
}

#[tokio::test]
async fn handler_that_panics_before_its_first_step_costs_its_message_alone() {
    let running = start(|_| Rash).await;
    fails_as_a_panic(&running).await;
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn batch_handler_that_panics_before_its_first_step_costs_its_batch_alone() {
    let tracker = TaskTracker::new();
    let running = start(|stop| Batched::start(RashBatch, stop.hard().clone(), &tracker)).await;
    fails_as_a_panic(&running).await;
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn handler_that_panics_as_it_is_dropped_is_in_hand_no_more() {
    let running = start(|_| Rash).await;
    let id = running.send("hang").await;
    running.until(id, |task| task.status == TaskStatus::Running).await;
    assert_eq!(running.bus.cancel(id).await.unwrap(), 1);
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn effect_that_panics_leaves_its_message_to_its_lease() {
    let running = start(|_| Rash).await;
    let id = running.send("effect").await;
    running.until(id, |task| task.status == TaskStatus::Running).await;
    has_nothing_in_hand(running).await;
}
