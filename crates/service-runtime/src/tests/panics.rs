//! Handlers that panic where one does not look for it: before their first step, when they are dropped, in their effects.

use cogo_bus_core::Error as BusError;
use futures_util::future::BoxFuture;
use sqlx::PgConnection;

use super::*;
use crate::{BatchHandler, BatchItem, Batching, UNANSWERED, batch::Batched, entry::caught};

#[derive(Default)]
struct Rash {
    /// How often its effects were called.
    calls: Arc<AtomicU32>,
}

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
            claim.within_completion(leave_trace);
            let calls = Arc::clone(&self.calls);
            claim.within_completion(move |_| {
                calls.fetch_add(1, Ordering::SeqCst);
                assert_ne!(order.what, "panic in an effect", "as ordered");
                Box::pin(async { panic!("as ordered, later") })
            });
            Ok(json!({}))
        }
    }
}

/// An effect that goes well.
fn leave_trace(connection: &mut PgConnection) -> BoxFuture<'_, Result<(), BusError>> {
    Box::pin(async move {
        sqlx::query("create table public.trace ()").execute(connection).await?;
        Ok(())
    })
}

#[derive(Default)]
struct RashBatch {
    /// How often it was asked for its batches.
    asked: AtomicU32,
}

impl BatchHandler for RashBatch {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    fn batching(&self) -> Batching {
        assert_eq!(self.asked.fetch_add(1, Ordering::SeqCst), 0, "as ordered");
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
    let running = start(|_| Rash::default()).await;
    fails_as_a_panic(&running).await;
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn batch_handler_that_panics_before_its_first_step_costs_its_batch_alone() {
    let tracker = TaskTracker::new();
    let running = start(|stop| Batched::start(RashBatch::default(), stop.hard().clone(), &tracker)).await;
    fails_as_a_panic(&running).await;
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn handler_that_panics_as_it_is_dropped_is_in_hand_no_more() {
    let running = start(|_| Rash::default()).await;
    let id = running.send("hang").await;
    running.until(id, |task| task.status == TaskStatus::Running).await;
    assert_eq!(running.bus.cancel(id).await.unwrap(), 1);
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn effect_that_panics_ends_its_attempt_as_its_handler_would() {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = Rash { calls: Arc::clone(&calls) };
    let running = start(|_| handler).await;
    for (number, (what, text)) in
        (1..).zip([("panic in an effect", "as ordered"), ("panic in an effect, later", "as ordered, later")])
    {
        let id = running.send_with(what, |message| message.max_attempts = Some(1)).await;
        let task = running.ended(id).await;
        let error = task.error.unwrap();
        assert!(error.starts_with("handler panicked: ") && error.contains(text), "{error}");
        assert_eq!(calls.load(Ordering::SeqCst), number, "it is called once");
    }
    let is_gone: bool =
        sqlx::query_scalar("select to_regclass('public.trace') is null").fetch_one(running.bus.pool()).await.unwrap();
    assert!(is_gone, "what was written before it stands");
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn batch_handler_that_panics_when_it_is_asked_again_is_asked_once() {
    let tracker = TaskTracker::new();
    let running = start(|stop| Batched::start(RashBatch::default(), stop.hard().clone(), &tracker)).await;
    let id = running.send_with("forget", |message| message.max_attempts = Some(1)).await;
    let error = running.ended(id).await.error.unwrap();
    assert!(error.starts_with(UNANSWERED), "{error}");
    has_nothing_in_hand(running).await;
}

#[tokio::test]
async fn panic_of_a_start_is_its_error() {
    let asked = AtomicU32::new(1);
    let start = async {
        // it panics in the call and not in a task
        drop(Batched::start(RashBatch { asked }, CancellationToken::new(), &TaskTracker::new()));
        Ok(())
    };
    let error = caught(start).await.unwrap_err().to_string();
    assert!(error.starts_with("It panicked: ") && error.contains("as ordered"), "{error}");
}
