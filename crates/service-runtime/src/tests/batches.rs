//! Batch handlers: how batches form, and that each message of one ends by itself.

use std::sync::Mutex;

use tokio::sync::Semaphore;

use super::*;
use crate::{BatchAttempt, BatchHandler, BatchItem, Batching, Retry, RetryPolicy, batch::Batched};

/// Longer than a test takes: only full batches are handled.
const FULL_ONLY: Duration = Duration::from_secs(600);

/// What a batch handler saw.
#[derive(Clone)]
struct Seen {
    batching: Batching,
    /// Of each batch, what its messages say.
    batches: Arc<Mutex<Vec<Vec<String>>>>,
    tenants: Arc<Mutex<Vec<Vec<String>>>>,
    /// What a message that waits waits for.
    gate: Arc<Semaphore>,
    dropped: Arc<AtomicU32>,
}

struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Seen {
    fn new(batching: Batching) -> Self {
        let (batches, tenants, dropped) = (Arc::default(), Arc::default(), Arc::default());
        Self { batching, batches, tenants, gate: Arc::new(Semaphore::new(0)), dropped }
    }

    fn sizes(&self) -> Vec<usize> {
        self.batches.lock().unwrap().iter().map(Vec::len).collect()
    }

    /// A worker whose hands hold whole batches.
    async fn start(&self) -> Running {
        self.start_with(pace()).await
    }

    async fn start_with(&self, pace: Pace) -> Running {
        let database = cogo_test_support::database().await;
        let pool = database.pool.clone();
        let pace = Pace { concurrency: self.batching.in_hand(pace.concurrency), ..pace };
        let handler = self.clone();
        Running::start_with(database, pool, true, pace, |stop| {
            Batched::start(handler, stop.hard().clone(), &TaskTracker::new())
        })
    }
}

impl BatchHandler for Seen {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    fn batching(&self) -> Batching {
        self.batching
    }

    fn retry_policy(&self) -> RetryPolicy {
        let quickly = Retry::after(Duration::from_millis(1));
        RetryPolicy::default().on("flaky", quickly.at_most(2)).otherwise(quickly)
    }

    async fn handle(&self, batch: Vec<BatchItem<Order, Value>>) -> Result<(), HandlerError> {
        let _dropped = Dropped(Arc::clone(&self.dropped));
        self.batches.lock().unwrap().push(batch.iter().map(|item| item.request.what.clone()).collect());
        let tenants = batch.iter().map(|item| item.attempt.claim().tenant().to_owned()).collect();
        self.tenants.lock().unwrap().push(tenants);
        let mut kept: Vec<BatchAttempt<Value>> = Vec::new();
        for BatchItem { request, attempt } in batch {
            match request.what.as_str() {
                "answer" => attempt.complete(json!({"answer": request.what})),
                "reject" => attempt.fail(HandlerError::rejected("as ordered")),
                "flaky" => attempt.fail(HandlerError::of_kind("flaky", anyhow::anyhow!("as ordered"))),
                "stream and send" => {
                    attempt.claim().partials().write(&json!("part")).await?;
                    attempt.claim().send(NewMessage::new(Route::constant("test", "next"), None, json!({})));
                    attempt.claim().result_at("/artifacts/x");
                    attempt.complete(json!({}));
                }
                "forget" => drop(attempt),
                "fail all" => return Err(HandlerError::of_kind("flaky", anyhow::anyhow!("all of them"))),
                "panic" => panic!("as ordered"),
                "wait" => {
                    self.gate.acquire().await.unwrap().forget();
                    attempt.complete(json!({}));
                }
                "keep" => kept.push(attempt),
                _ => std::future::pending().await,
            }
        }
        if !kept.is_empty() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

async fn send_all(running: &Running, orders: &[&str]) -> Vec<Uuid> {
    let message = |order: &&str| {
        let (what, tenant) = order.split_once('@').unwrap_or((order, "acme"));
        let tenant = Tenant::new(tenant).unwrap();
        NewMessage { max_attempts: Some(3), ..NewMessage::new(ROUTE, Some(tenant), json!({"what": what})) }
    };
    let messages: Vec<NewMessage> = orders.iter().map(message).collect();
    running.bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect()
}

/// How each of them ended, and after how many attempts.
async fn ends(running: &Running, ids: &[Uuid]) -> Vec<(TaskStatus, i16)> {
    let mut ends = Vec::new();
    for id in ids {
        let task = running.ended(*id).await;
        ends.push((task.status, task.steps[0].attempts));
    }
    ends
}

#[tokio::test]
async fn batch_goes_when_it_is_full() {
    let seen = Seen::new(Batching::new(4, FULL_ONLY));
    let running = seen.start().await;
    let ids = send_all(&running, &["answer"; 12]).await;
    assert!(ends(&running, &ids).await.iter().all(|end| *end == (TaskStatus::Done, 1)));
    assert_eq!(seen.sizes(), [4, 4, 4]);
    drop(running.finish().await);
}

#[tokio::test]
async fn batch_that_does_not_fill_goes_after_its_linger() {
    let seen = Seen::new(Batching::new(100, Duration::from_millis(50)));
    let running = seen.start().await;
    let ids = send_all(&running, &["answer"; 3]).await;
    assert_eq!(ends(&running, &ids).await, [(TaskStatus::Done, 1); 3]);
    assert_eq!(seen.sizes().iter().sum::<usize>(), 3);
    drop(running.finish().await);
}

#[tokio::test]
async fn each_message_of_a_batch_ends_by_itself() {
    let seen = Seen::new(Batching::new(4, Duration::from_millis(50)));
    let running = seen.start().await;
    let ids = send_all(&running, &["answer", "reject", "flaky", "answer"]).await;
    let expected = [(TaskStatus::Done, 1), (TaskStatus::Failed, 1), (TaskStatus::Failed, 2), (TaskStatus::Done, 1)];
    assert_eq!(ends(&running, &ids).await, expected);
    let error = running.ended(ids[2]).await.error.unwrap();
    assert_eq!(error, "flaky: as ordered (given up: 2 attempts ended by flaky)");
    drop(running.finish().await);
}

#[tokio::test]
async fn error_of_the_batch_fails_what_has_no_outcome() {
    let seen = Seen::new(Batching::new(3, Duration::from_millis(50)));
    let running = seen.start().await;
    // what was answered before the error stands
    let ids = send_all(&running, &["answer", "fail all", "fail all"]).await;
    let ends = ends(&running, &ids).await;
    assert_eq!(ends, [(TaskStatus::Done, 1), (TaskStatus::Failed, 2), (TaskStatus::Failed, 2)]);
    assert!(running.ended(ids[1]).await.error.unwrap().starts_with("flaky: all of them (given up"));
    drop(running.finish().await);
}

#[tokio::test]
async fn panic_of_the_batch_costs_each_one_attempt_and_not_the_worker() {
    let seen = Seen::new(Batching::new(2, Duration::from_millis(50)));
    let running = seen.start().await;
    let ids = send_all(&running, &["answer", "panic"]).await;
    assert_eq!(ends(&running, &ids).await, [(TaskStatus::Done, 1), (TaskStatus::Failed, 3)]);
    assert_eq!(running.ended(ids[1]).await.error.as_deref(), Some("handler panicked: as ordered"));
    let forgotten = send_all(&running, &["forget"]).await;
    assert_eq!(ends(&running, &forgotten).await, [(TaskStatus::Failed, 3)]);
    let reason = running.ended(forgotten[0]).await.error.unwrap();
    assert_eq!(reason, "unanswered: the batch handler gave this message no outcome");
    drop(running.finish().await);
}

#[tokio::test]
async fn payload_that_does_not_parse_never_joins_a_batch() {
    let seen = Seen::new(Batching::new(2, Duration::from_millis(50)));
    let running = seen.start().await;
    let bad = running.send_with("", |message| message.payload = json!({"whatt": 1})).await;
    let good = running.send("answer").await;
    assert!(running.ended(bad).await.error.unwrap().contains("payload does not parse"));
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    assert_eq!(seen.sizes(), [1]);
    drop(running.finish().await);
}

#[tokio::test]
async fn batches_by_tenant_hold_messages_of_one_tenant() {
    let seen = Seen::new(Batching::new(2, FULL_ONLY).by_tenant());
    let running = seen.start_with(Pace { concurrency: 8, ..pace() }).await;
    let ids = send_all(&running, &["answer@acme", "answer@other", "answer@other", "answer@acme"]).await;
    assert_eq!(ends(&running, &ids).await, [(TaskStatus::Done, 1); 4]);
    let mut tenants = seen.tenants.lock().unwrap().clone();
    tenants.sort();
    assert_eq!(tenants, [["acme", "acme"], ["other", "other"]]);
    drop(running.finish().await);
}

#[tokio::test]
async fn parts_follow_ups_and_artifacts_belong_to_their_message() {
    let seen = Seen::new(Batching::new(2, Duration::from_millis(50)));
    let running = seen.start().await;
    let ids = send_all(&running, &["stream and send", "answer"]).await;
    let task = running.until(ids[0], |task| task.steps.len() == 2).await;
    assert_eq!(task.steps[1].parent_id, Some(ids[0]));
    let url: Option<String> = sqlx::query_scalar("select result_url from public.agent_messages where id = $1")
        .bind(ids[0])
        .fetch_one(running.bus.pool())
        .await
        .unwrap();
    assert_eq!(url.as_deref(), Some("/artifacts/x"));
    let place = cogo_bus_core::PartialPlace::default();
    let parts = running.bus.partials_after(ids[0], place, 10).await.unwrap();
    assert_eq!(parts.iter().map(|part| &part.content).collect::<Vec<_>>(), [&json!("part")]);
    let other = running.ended(ids[1]).await;
    assert_eq!((other.status, other.steps.len()), (TaskStatus::Done, 1));
    drop(running.finish().await);
}

#[tokio::test]
async fn cancelled_message_leaves_its_batch_which_goes_on() {
    let seen = Seen::new(Batching::new(2, FULL_ONLY));
    let running = seen.start().await;
    let ids = send_all(&running, &["keep", "wait"]).await;
    running.until(ids[0], |task| task.status == TaskStatus::Running).await;
    assert_eq!(running.bus.cancel(ids[0]).await.unwrap(), 1);
    seen.gate.add_permits(1);
    assert_eq!(running.ended(ids[1]).await.status, TaskStatus::Done);
    // nobody waits for the rest any more
    let dropped = async {
        while seen.dropped.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("the batch hangs on for nobody");
    // and the worker's hands are free
    let next = send_all(&running, &["answer"; 2]).await;
    assert_eq!(ends(&running, &next).await, [(TaskStatus::Done, 1); 2]);
    drop(running.finish().await);
}

#[tokio::test]
async fn leases_of_a_slow_batch_are_kept() {
    let seen = Seen::new(Batching::new(3, FULL_ONLY));
    let lease = Duration::from_secs(15);
    let running = seen.start_with(Pace { lease, ..pace() }).await;
    let ids = send_all(&running, &["wait"; 3]).await;
    running.until(ids[2], |task| task.status == TaskStatus::Running).await;
    let first: f64 = lease_ends(&running).await;
    // until each of them has been renewed
    let started = Instant::now();
    while lease_ends(&running).await < first + 1.0 {
        assert!(started.elapsed() < PATIENCE, "leases are not kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    seen.gate.add_permits(3);
    assert_eq!(ends(&running, &ids).await, [(TaskStatus::Done, 1); 3]);
    drop(running.finish().await);
}

/// The earliest end of a lease, in seconds by the database's clock.
async fn lease_ends(running: &Running) -> f64 {
    sqlx::query_scalar("select coalesce(min(extract(epoch from c.lease_until)), 0)::float8 from bus.claims c")
        .fetch_one(running.bus.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn hard_stop_hands_a_batch_back() {
    let seen = Seen::new(Batching::new(2, FULL_ONLY));
    let running = seen.start().await;
    let ids = send_all(&running, &["keep"; 2]).await;
    running.until(ids[1], |task| task.status == TaskStatus::Running).await;
    let bus = running.bus.clone();
    let database = running.finish().await;
    let count: i64 = sqlx::query_scalar(
        "select count(*) from public.agent_messages where status = 'queued' and released = attempts and released > 0",
    )
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert_eq!(count, 2);
    drop(database);
}

#[tokio::test]
async fn message_of_a_batch_dropped_by_the_hard_stop_has_not_failed_before_its_own_token_fires() {
    let database = cogo_test_support::database().await;
    let (bus, pool) = (Bus::new(database.pool.clone()), database.pool.clone());
    let (seen, of_batches) = (Seen::new(Batching::new(2, FULL_ONLY)), CancellationToken::new());
    // the batches hear of the stop, and the tokens of the claims do not yet
    let running = Running::start_with(database, pool, true, pace(), |_| {
        Batched::start(seen.clone(), of_batches.clone(), &TaskTracker::new())
    });
    let ids = send_all(&running, &["keep"; 2]).await;
    while seen.sizes() != [2] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    of_batches.cancel();
    while seen.dropped.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for id in ids {
        let task = bus.task(id).await.unwrap().unwrap();
        assert_eq!((task.status, task.steps[0].error.as_deref()), (TaskStatus::Running, None));
    }
    let database = running.finish().await;
    let handed_back = "select count(*) from public.agent_messages where status = 'queued' and released = attempts";
    let handed_back: i64 = sqlx::query_scalar(handed_back).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(handed_back, 2);
    drop(database);
}
