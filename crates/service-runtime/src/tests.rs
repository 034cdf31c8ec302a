//! The worker loop against a real Postgres: what handlers do to it, and what happens to their messages.

mod batches;
mod children;
mod dependencies;
mod ends;
mod following;
mod health;
mod http;
mod live;
mod orders;
mod partials;
mod retries;
mod schemas;
mod silence;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cogo_bus_core::{Bus, NewEvent, WakeUps, record_event};
use cogo_contracts::{NewMessage, Route, Task, TaskStatus, Tenant};
use cogo_registry_core::{
    Heartbeat, HeartbeatSettings, Member, Registration, Registry, SchemaRegistry, detect_location,
};
use cogo_telemetry::BusMetrics;
use cogo_test_support::TestDatabase;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    Claim, Handler, HandlerError, Stop,
    live::Throttle,
    pulse::Pulses,
    worker::{Pace, Surroundings, Worker},
};

const ROUTE: Route = Route::constant("test", "work");
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Order {
    what: String,
}

/// Does what the message says; counts how often it was called.
#[derive(Clone, Default)]
struct Obedient {
    calls: Arc<AtomicU32>,
}

impl Handler for Obedient {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = Value;

    async fn handle(&self, order: Order, claim: &Claim) -> Result<Value, HandlerError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match order.what.as_str() {
            "answer" => Ok(json!({"answer": claim.tenant()})),
            "panic" => panic!("as ordered"),
            "stream" => {
                for number in 1..=250 {
                    claim.partials().write(&json!(number)).await?;
                }
                Ok(json!({}))
            }
            "stream and reject" => {
                claim.partials().write(&json!("so far")).await?;
                Err(HandlerError::rejected("as ordered"))
            }
            "stream and hang" => {
                claim.partials().write(&json!("so far")).await?;
                std::future::pending().await
            }
            "reject" => Err(HandlerError::rejected("as ordered")),
            "hang" => std::future::pending().await,
            "too large" => Ok(json!((0..400_000_u32).map(|n| n.wrapping_mul(2_654_435_761)).collect::<Vec<_>>())),
            "effect" => {
                let tenant = claim.tenant().to_owned();
                claim.within_completion(move |connection| {
                    let tenant = tenant.clone();
                    Box::pin(async move {
                        let event = NewEvent {
                            kind: "effect",
                            tenant: &tenant,
                            message_id: None,
                            root_id: None,
                            route: None,
                            actor: "test",
                            detail: json!({}),
                        };
                        record_event(connection, &event).await
                    })
                });
                claim.send(NewMessage::new(Route::constant("test", "next"), None, json!({})));
                Ok(json!({}))
            }
            "bad effect" => {
                claim.within_completion(|connection| {
                    Box::pin(async move {
                        sqlx::query("select no_such_column from public.agent_messages").execute(connection).await?;
                        Ok(())
                    })
                });
                Ok(json!({}))
            }
            _ => Err(HandlerError::retry(anyhow::anyhow!("as ordered"))),
        }
    }
}

struct Running {
    working: JoinHandle<()>,
    bus: Bus,
    handler: Obedient,
    stop: Stop,
    tasks: JoinSet<()>,
    leave: CancellationToken,
    database: TestDatabase,
}

impl Running {
    /// A worker with a poll so long that a test would fail if it depended on it, unless it says otherwise.
    async fn start(listening: bool, pace: Pace) -> Self {
        let database = cogo_test_support::database().await;
        let pool = database.pool.clone();
        Self::start_on(database, pool, listening, pace)
    }

    /// The worker reaches the database by `pool`, everything else by the database's own.
    fn start_on(database: TestDatabase, pool: PgPool, listening: bool, pace: Pace) -> Self {
        let handler = Obedient::default();
        let mut running = Self::start_with(database, pool, listening, pace, |_| handler.clone());
        running.handler = handler;
        running
    }

    /// The same with a handler of the test's own.
    fn start_with<H: Handler>(
        database: TestDatabase,
        pool: PgPool,
        listening: bool,
        pace: Pace,
        handler: impl FnOnce(&Stop) -> H,
    ) -> Self {
        let bus = Bus::new(database.pool.clone());
        let (stop, wakeups, leave) = (Stop::default(), WakeUps::default(), CancellationToken::new());
        let (heartbeat, member) = join(&bus);
        member.activate();
        let mut tasks = JoinSet::new();
        let until = leave.clone();
        tasks.spawn(async move {
            heartbeat.run(until).await;
        });
        if listening {
            tasks.spawn(wakeups.clone().run(bus.pool().clone(), leave.clone()));
        }
        let worker = Worker::new(handler(&stop), pace, surroundings(Bus::new(pool), wakeups, member, &stop));
        let working = TaskTracker::new().spawn(worker.run());
        Self { working, bus, handler: Obedient::default(), stop, tasks, leave, database }
    }

    async fn send(&self, what: &str) -> Uuid {
        self.send_with(what, |_| {}).await
    }

    async fn send_with(&self, what: &str, change: impl FnOnce(&mut NewMessage)) -> Uuid {
        let mut message = NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({"what": what}));
        change(&mut message);
        message.idempotency_key = Some(Uuid::now_v7().to_string());
        let started = Instant::now();
        loop {
            match self.bus.enqueue(&message).await {
                Ok(enqueued) => return enqueued.id,
                Err(error) => assert!(error.is_transient() && started.elapsed() < PATIENCE, "{error:?}"),
            }
        }
    }

    async fn until(&self, id: Uuid, reached: impl Fn(&Task) -> bool) -> Task {
        let started = Instant::now();
        loop {
            match self.bus.task(id).await {
                Ok(Some(task)) if reached(&task) => return task,
                Ok(Some(_)) => {}
                other => assert!(other.is_err_and(|error| error.is_transient()), "the task is gone"),
            }
            assert!(started.elapsed() < PATIENCE, "task {id} did not get there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ended(&self, id: Uuid) -> Task {
        self.until(id, |task| task.status.is_terminal()).await
    }

    /// Stops hard; the database lives as long as what is answered.
    async fn finish(mut self) -> TestDatabase {
        self.stop.hard().cancel();
        self.working.await.unwrap();
        self.leave.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.database
    }
}

fn surroundings(bus: Bus, wakeups: WakeUps, member: Member, stop: &Stop) -> Surroundings {
    let metrics = BusMetrics::unread();
    // nobody says otherwise any more
    let (_, able) = watch::channel(true);
    let (stop, pulses, throttle) = (stop.clone(), Pulses::default(), Throttle::default());
    let schemas = SchemaRegistry::new(&Registry::new(bus.pool().clone()));
    Surroundings { bus, schemas, metrics, wakeups, member, stop, pulses, throttle, able }
}

fn join(bus: &Bus) -> (Heartbeat, Member) {
    let registry = Registry::new(bus.pool().clone());
    let version = semver::Version::new(0, 1, 0);
    let registration = Registration::new("test", "test-work", 0, version, detect_location(|_| None)).unwrap();
    Heartbeat::new(&registry, registration, HeartbeatSettings::default())
}

fn pace() -> Pace {
    Pace {
        shard: 0,
        concurrency: 4,
        lease: Duration::from_secs(30),
        poll: Duration::from_secs(600),
        patience: Duration::from_secs(30),
        retry_rules: Vec::new(),
    }
}

#[tokio::test]
async fn message_is_handled_and_its_reply_recorded() {
    let running = Running::start(true, pace()).await;
    let id = running.send("answer").await;
    let task = running.ended(id).await;
    assert_eq!((task.status, task.result), (TaskStatus::Done, Some(json!({"answer": "acme"}))));
    assert!(task.steps[0].claimed_by.as_deref().unwrap().starts_with("test-work/0#"));
    drop(running.finish().await);
}

#[tokio::test]
async fn handler_that_panics_costs_its_message_and_not_the_worker() {
    let running = Running::start(true, pace()).await;
    let poison = running.send_with("panic", |message| message.max_attempts = Some(1)).await;
    assert_eq!(running.ended(poison).await.error.as_deref(), Some("handler panicked: as ordered"));
    let good = running.send("answer").await;
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn message_that_no_attempt_can_mend_is_a_dead_letter_at_once() {
    let running = Running::start(true, pace()).await;
    for (what, reason) in [("reject", "as ordered"), ("too large", "result at most 1 mib")] {
        let id = running.send(what).await;
        let task = running.ended(id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1));
        assert!(task.error.as_deref().unwrap().contains(reason), "{task:?}");
    }
    for (payload, reason) in [
        (json!({"whatt": 1}), "payload does not parse"),
        (json!({"what": "answer", "__assignment": {"ttl_ms": -1}}), "__assignment does not parse"),
        (json!({"what": "answer", "__assignment": {"budget": {"maxCostUsd": -0.1}}}), "maxCostUsd"),
    ] {
        let id = running.send_with("", |message| message.payload = payload).await;
        assert!(running.ended(id).await.error.as_deref().unwrap().contains(reason));
    }
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 2, "what does not parse reaches no handler");
    drop(running.finish().await);
}

#[tokio::test]
async fn ttl_ends_what_is_running_and_what_is_late_is_not_started() {
    let running = Running::start(true, pace()).await;
    let late = running.send_with("answer", |message| message.ttl_ms = Some(0)).await;
    let hanging = running.send_with("hang", |message| message.ttl_ms = Some(300)).await;
    let reason = |task: Task| task.error.unwrap();
    assert_eq!(reason(running.ended(hanging).await), "time to live passed while it was worked on");
    assert_eq!(reason(running.ended(late).await), "time to live passed before it was started");
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), 1);
    drop(running.finish().await);
}

#[tokio::test]
async fn lost_notification_costs_a_poll_and_not_the_message() {
    let running = Running::start(false, Pace { poll: Duration::from_millis(200), ..pace() }).await;
    // nothing wakes it but its poll: with a longer one nobody would wait for the end
    let id = running.send("answer").await;
    assert_eq!(running.ended(id).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn cancelled_message_frees_the_worker() {
    let running = Running::start(true, Pace { concurrency: 1, ..pace() }).await;
    let hanging = running.send("hang").await;
    running.until(hanging, |task| task.status == TaskStatus::Running).await;
    assert_eq!(running.bus.cancel(hanging).await.unwrap(), 1);
    let next = running.send("answer").await;
    assert_eq!(running.ended(next).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn worker_never_holds_more_than_its_concurrency() {
    let running = Running::start(true, Pace { concurrency: 2, ..pace() }).await;
    let first = running.send("hang").await;
    for _ in 0..5 {
        running.send("hang").await;
    }
    running.until(first, |task| task.status == TaskStatus::Running).await;
    let held = "select count(*) from public.agent_messages where status = 'claimed'";
    let started = Instant::now();
    loop {
        let count: i64 = sqlx::query_scalar(held).fetch_one(running.bus.pool()).await.unwrap();
        assert!(count <= 2, "{count} held");
        if count == 2 && started.elapsed() > Duration::from_millis(300) {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn shutdown_hands_back_what_is_not_finished() {
    let running = Running::start(true, pace()).await;
    let id = running.send("hang").await;
    running.until(id, |task| task.status == TaskStatus::Running).await;
    let bus = running.bus.clone();
    let database = running.finish().await;
    let (status, attempts, released): (String, i16, i16) =
        sqlx::query_as("select status, attempts, released from public.agent_messages")
            .fetch_one(bus.pool())
            .await
            .unwrap();
    // a claim that was under way at the stop may have taken it once more
    assert_eq!((status.as_str(), released), ("queued", attempts));
    assert!(attempts >= 1);
    drop(database);
}

#[tokio::test]
async fn effects_and_follow_ups_stand_with_the_completion() {
    let running = Running::start(true, pace()).await;
    let id = running.send("effect").await;
    let task = running.until(id, |task| task.steps.len() == 2).await;
    assert_eq!(task.steps[1].parent_id, Some(id));
    let effects: i64 = sqlx::query_scalar("select count(*) from public.bus_events where kind = 'effect'")
        .fetch_one(running.bus.pool())
        .await
        .unwrap();
    assert_eq!(effects, 1);
    drop(running.finish().await);
}

#[tokio::test]
async fn broken_connections_in_the_middle_lose_nothing() {
    let running = Running::start(true, Pace { poll: Duration::from_millis(500), ..pace() }).await;
    let mut ids = Vec::new();
    for round in 0..20 {
        ids.push(running.send("answer").await);
        if round % 5 == 0 {
            let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                        where datname = current_database() and pid <> pg_backend_pid()";
            // the cut may also hit this very pool
            let _ = sqlx::query(cut).execute(running.bus.pool()).await;
        }
    }
    for id in ids {
        let task = running.ended(id).await;
        assert_eq!(task.status, TaskStatus::Done);
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn many_messages_at_once_are_each_completed_once() {
    let running = Running::start(true, Pace { concurrency: 64, ..pace() }).await;
    let tenant = Tenant::new("acme").unwrap();
    let mut messages: Vec<NewMessage> =
        (0..500).map(|_| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"what": "answer"}))).collect();
    // one whose completion is refused among those that are gathered with it
    messages[250].payload = json!({"what": "too large"});
    let ids: Vec<Uuid> = running.bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect();
    for (number, id) in ids.iter().enumerate() {
        let expected = if number == 250 { TaskStatus::Failed } else { TaskStatus::Done };
        let task = running.ended(*id).await;
        assert_eq!((task.status, task.steps[0].attempts), (expected, 1));
    }
    drop(running.finish().await);
}
