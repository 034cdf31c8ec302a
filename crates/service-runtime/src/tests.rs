//! The frame against a real Postgres, and what its tests share.

mod batches;
mod certificates;
mod child_access;
mod child_ends;
mod child_orders;
mod child_support;
mod child_tls;
mod child_work;
mod children;
mod completions;
mod conflicts;
mod deadlines;
mod dependencies;
mod ends;
mod failures;
mod following;
mod health;
mod http;
mod leases;
mod live;
mod orders;
mod panics;
mod partials;
mod retries;
mod rows;
mod schemas;
mod silence;
mod wire;
mod worker_loop;

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
const PATIENCE: Duration = Duration::from_secs(60);

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
            tokio::time::sleep(Duration::from_millis(10)).await;
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
    // a machine that stands still while it says goodbye is no reason to leave without
    let settings = HeartbeatSettings { farewell: PATIENCE, ..HeartbeatSettings::default() };
    Heartbeat::new(&registry, registration, settings)
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
