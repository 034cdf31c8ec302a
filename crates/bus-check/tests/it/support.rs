//! What the checks share: a database with clients around it, and the verdict at the end.

use std::time::Duration;

use cogo_bus_check::{
    Fault, Handling, How, KeeperSettings, Point, ProducerSettings, ROUTE, RecordedBus, Report, Rest, Role, Rows, Scene,
    Start, WorkerSettings, check,
};
use cogo_bus_core::{ClaimRequest, Claimed};
use cogo_contracts::{NewMessage, Tenant};
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};
use sqlx::PgPool;

pub(crate) const LEASE: Duration = Duration::from_millis(800);
/// Shortest lease that the database grants.
pub(crate) const SHORT_LEASE: Duration = Duration::from_millis(100);
/// Longest time until everything has ended, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The seed of this run; `COGO_CHECK_SEED` sets another.
#[expect(clippy::disallowed_methods, reason = "a test has no settings, and a seed must come from outside")]
pub(crate) fn seed() -> u64 {
    std::env::var("COGO_CHECK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121)
}

/// A scene and the database that it plays on.
pub(crate) struct Stage {
    pub(crate) scene: Scene,
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    _database: Option<TestDatabase>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let database = cogo_test_support::database().await;
        Self { _database: None, ..Self::on(database.pool.clone(), database.url.clone()) }.keeping(database)
    }

    /// On a database that the test keeps.
    pub(crate) fn on(pool: PgPool, url: String) -> Self {
        let program = env!("CARGO_BIN_EXE_cogo-bus-check").into();
        let scene = Scene::new(program, &[], &url, seed()).unwrap();
        Self { scene, pool, url, _database: None }
    }

    fn keeping(mut self, database: TestDatabase) -> Self {
        self._database = Some(database);
        self
    }

    pub(crate) fn local(&mut self, name: &str) -> RecordedBus {
        self.scene.local(name, self.pool.clone())
    }

    pub(crate) async fn start(&mut self, start: Start) -> String {
        self.scene.start(start).await.unwrap()
    }

    pub(crate) async fn workers(&mut self, count: usize) {
        // claims of few and of many are kept differently by some layouts
        for batch in [8, 150].into_iter().cycle().take(count) {
            self.start(Start::new(worker_of(batch))).await;
        }
    }

    pub(crate) async fn keepers(&mut self, count: usize) {
        for _ in 0..count {
            self.start(Start::new(keeper())).await;
        }
    }

    /// Sends this many, a few at a time, while the test goes on.
    pub(crate) async fn trickle(&mut self, messages: u64, pause_ms: u64) -> String {
        let slowly = ProducerSettings { messages, batch: 8, plain: false, pause_ms };
        self.start(Start::new(Role::Producer(slowly))).await
    }

    /// Sends this many and waits until they are sent.
    pub(crate) async fn produce(&mut self, messages: u64) {
        let names = [
            self.start(Start::new(producer(messages / 2))).await,
            self.start(Start::new(producer(messages / 2))).await,
        ];
        for name in names {
            self.scene.ended(&name).await.unwrap();
        }
    }

    /// Waits until everything has ended by those who take part, stops everybody and judges.
    pub(crate) async fn verdict(&mut self) -> Report {
        self.all_ended().await;
        self.scene.verdict(&self.pool, Rest::Drained).await.unwrap()
    }

    /// Everything must end without the finisher of the verdict, which would do what workers and keepers never did.
    pub(crate) async fn all_ended(&mut self) {
        if self.scene.drained(&self.pool, PATIENCE).await.is_none() {
            self.scene.stop().await.unwrap();
            let rows = Rows::load(&self.pool).await.unwrap();
            let report = check(&self.scene.history().unwrap(), &rows, Rest::Drained);
            panic!("seed {}: not everything has ended after {PATIENCE:?}: {report}", seed());
        }
    }

    /// Nothing may be broken.
    pub(crate) async fn holds(&mut self) -> Report {
        let report = self.verdict().await;
        assert!(report.violations.is_empty(), "seed {}: {report}", seed());
        assert!(report.messages > 0, "nothing happened");
        report
    }
}

pub(crate) fn worker() -> Role {
    worker_of(8)
}

/// One that claims up to this many at once.
pub(crate) fn worker_of(batch: u16) -> Role {
    worker_that(batch, Handling::OneByOne)
}

/// One that works on all of a claim at once.
pub(crate) fn batch_worker(batch: u16) -> Role {
    worker_that(batch, Handling::Batch { work_ms: 20 })
}

/// The same with a lease of its own.
pub(crate) fn batch_worker_for(batch: u16, lease: Duration) -> Role {
    worker_with(batch, Handling::Batch { work_ms: 20 }, lease)
}

fn worker_that(batch: u16, handling: Handling) -> Role {
    worker_with(batch, handling, LEASE)
}

fn worker_with(batch: u16, handling: Handling, lease: Duration) -> Role {
    let lease_ms = u64::try_from(lease.as_millis()).unwrap();
    Role::Worker(WorkerSettings { lease_ms, batch, poll_ms: 50, listens: true, handling })
}

pub(crate) fn keeper() -> Role {
    Role::Keeper(KeeperSettings { every_ms: 40, replays: 3, keep_ms: None })
}

pub(crate) fn producer(messages: u64) -> Role {
    Role::Producer(ProducerSettings { messages, batch: 8, plain: false, pause_ms: 0 })
}

pub(crate) fn kill_at(point: Point, nth: u32) -> Fault {
    Fault { point, nth, how: How::Kill }
}

pub(crate) fn message(payload: Value) -> NewMessage {
    NewMessage { max_attempts: Some(3), ..NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), payload) }
}

pub(crate) fn plain(count: usize) -> Vec<NewMessage> {
    vec![message(json!({"act": "plain"})); count]
}

pub(crate) async fn claim(bus: &RecordedBus, holder: &str, max_messages: u16, lease: Duration) -> Vec<Claimed> {
    let request = ClaimRequest { route: &ROUTE, holder, instance: None, max_messages, lease };
    bus.claim(&request).await.unwrap()
}
