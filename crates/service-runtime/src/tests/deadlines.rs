//! Time to live and lease are counted from when the claim was asked for, and what is late is not started.

use cogo_bus_core::Fence;
use tokio::sync::broadcast;

use super::*;
use crate::{BatchHandler, BatchItem, Batching, batch::Batched, worker::Turn};

/// Far more than lies between the times of two messages that were sent together.
const MARGIN: Duration = Duration::from_secs(1);
const STARTED_LATE: &str = "time to live passed before it was started";

/// Keeps the only thread of its test busy until the time of its message has passed, and with it that of its fellow.
#[derive(Clone, Default)]
struct Outlasting {
    calls: Arc<AtomicU32>,
}

impl Outlasting {
    fn outlast(&self, claim: &Claim) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let until = claim.deadline().unwrap() + MARGIN;
        std::thread::sleep(until.saturating_duration_since(tokio::time::Instant::now()));
    }
}

impl Handler for Outlasting {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _request: Value, claim: &Claim) -> Result<Value, HandlerError> {
        self.outlast(claim);
        Ok(json!({}))
    }
}

impl BatchHandler for Outlasting {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    fn batching(&self) -> Batching {
        Batching::new(1, Duration::ZERO)
    }

    async fn handle(&self, batch: Vec<BatchItem<Value, Value>>) -> Result<(), HandlerError> {
        for BatchItem { attempt, .. } in batch {
            self.outlast(attempt.claim());
            attempt.complete(json!({}));
        }
        Ok(())
    }
}

/// Sends two at once until one of them was begun, and answers how they ended.
async fn send_pairs(running: &Running, calls: &AtomicU32) -> Vec<Task> {
    let message = NewMessage {
        ttl_ms: Some(1_000),
        ..NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({"what": "any"}))
    };
    // on a machine that stands still the time of both may pass before anybody begins with them
    loop {
        let sent = running.bus.enqueue_many(&[message.clone(), message.clone()]).await.unwrap();
        let pair = vec![running.ended(sent[0].id).await, running.ended(sent[1].id).await];
        if calls.load(Ordering::SeqCst) > 0 {
            return pair;
        }
    }
}

#[tokio::test]
async fn message_whose_time_passes_while_it_waits_for_another_handler_is_not_started() {
    let database = cogo_test_support::database().await;
    let (pool, handler) = (database.pool.clone(), Outlasting::default());
    let running = Running::start_with(database, pool, true, pace(), |_| handler.clone());
    let pair = send_pairs(&running, &handler.calls).await;
    assert_eq!(handler.calls.load(Ordering::SeqCst), 1);
    assert!(pair.iter().any(|task| task.error.as_deref() == Some(STARTED_LATE)), "{pair:?}");
    drop(running.finish().await);
}

#[tokio::test]
async fn message_whose_time_passes_while_it_waits_for_another_batch_is_not_started() {
    let database = cogo_test_support::database().await;
    let (pool, handler) = (database.pool.clone(), Outlasting::default());
    let running = Running::start_with(database, pool, true, pace(), |stop| {
        Batched::start(handler.clone(), stop.hard().clone(), &TaskTracker::new())
    });
    let pair = send_pairs(&running, &handler.calls).await;
    assert_eq!(handler.calls.load(Ordering::SeqCst), 1);
    let late = |task: &Task| task.error.as_deref().is_some_and(|error| error.starts_with("time to live passed"));
    assert!(pair.iter().any(late), "{pair:?}");
    drop(running.finish().await);
}

#[tokio::test]
async fn lease_is_counted_from_when_its_claim_was_asked_for() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, (_heartbeat, member)) = (Stop::default(), join(&bus));
    let worker = Worker::new(Obedient::default(), pace(), surroundings(bus.clone(), WakeUps::default(), member, &stop));
    let message = NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({"what": "hang"}));
    let id = bus.enqueue(&message).await.unwrap().id;
    let mut blocker = database.pool.begin().await.unwrap();
    sqlx::query("lock table public.agent_messages").execute(&mut *blocker).await.unwrap();
    let waits = "select exists(select from pg_locks l join pg_database d on d.oid = l.database
                  where d.datname = current_database() and not l.granted)";
    let (_hints, mut heard) = broadcast::channel(4);
    let held_up = async {
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&database.pool).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seen = tokio::time::Instant::now();
        tokio::time::sleep(MARGIN).await;
        blocker.commit().await.unwrap();
        seen
    };
    let (turn, asked_before) = tokio::join!(worker.turn("worker/0#test", &mut heard), held_up);
    assert!(matches!(turn, Turn::Started));
    let until = worker.attempts.leases.owned_until(&Fence { id, attempt: 1 }).unwrap();
    assert!(until <= asked_before + pace().lease, "{:?} later", until - (asked_before + pace().lease));
    stop.hard().cancel();
}
