//! The autoscaler on a real Postgres and a fleet that only counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use cogo_bus_core::{Bus, ClaimRequest, Completion};
use cogo_contracts::Route;
use cogo_registry_core::ScalingDecision;
use cogo_test_support::{TestDatabase, database};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::*;
use crate::fleet::ProcessList;

/// A count that stands for a process that is drained.
const DRAINED: u32 = u32::MAX;

/// Remembers how many instances each process has.
#[derive(Clone)]
struct Counting {
    counts: Arc<Mutex<HashMap<String, u32>>>,
    asked: Arc<Mutex<Option<u32>>>,
    told: watch::Sender<Vec<u32>>,
}

impl Counting {
    fn new() -> Self {
        Self { counts: Arc::default(), asked: Arc::default(), told: watch::channel(Vec::new()).0 }
    }

    fn steer(&self, count: u32) {
        self.counts.lock().expect("nobody panics with it").insert("rag-embed".to_owned(), count);
    }

    fn ask(&self, count: u32) {
        *self.asked.lock().expect("nobody panics with it") = Some(count);
        self.steer(count);
    }

    /// Waits until the autoscaler asked for this.
    async fn asked_for(&self, counts: &[u32]) {
        let mut told = self.told.subscribe();
        told.wait_for(|told| told == counts).await.expect("the sender lives as long as the fleet");
    }
}

impl Scales for Counting {
    async fn set_desired(&self, process: &str, count: u32) -> Result<(), Failure> {
        self.counts.lock().expect("nobody panics with it").insert(process.to_owned(), count);
        self.told.send_modify(|told| told.push(count));
        Ok(())
    }

    fn count(&self, process: &str) -> Option<u32> {
        let count = self.counts.lock().expect("nobody panics with it").get(process).copied().unwrap_or(1);
        (count != DRAINED).then_some(count)
    }

    fn asked(&self, _process: &str) -> Option<u32> {
        *self.asked.lock().expect("nobody panics with it")
    }

    fn adopt(&self, _process: &str, count: u32) {
        let mut asked = self.asked.lock().expect("nobody panics with it");
        assert_eq!(asked.take(), Some(count));
    }
}

const FAST: Pace = Pace {
    every: Duration::from_millis(20),
    quiet: Duration::from_millis(20),
    lease: Duration::from_secs(60),
    rate_window: Duration::from_secs(3),
    retry_after: Duration::from_millis(20),
};

fn embed() -> ScaledPool {
    let settings = Settings { min: 1, max: 4, hold_up: Duration::ZERO, ..Settings::default() };
    ScaledPool {
        process: "rag-embed".to_owned(),
        service: "rag".to_owned(),
        role: "embed".to_owned(),
        shard: 0,
        start: 1,
        settings,
    }
}

async fn send(database: &TestDatabase, messages: i32) {
    sqlx::query("select bus.enqueue('rag', 'embed', 'acme', '{}') from generate_series(1, $1)")
        .bind(messages)
        .execute(&database.pool)
        .await
        .expect("messages are sent");
}

struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn start(database: &TestDatabase, fleet: &Counting, pace: Pace) -> Running {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(run(database.url.clone(), vec![embed()], fleet.clone(), pace, stop.clone()));
    tasks.close();
    Running { stop, tasks }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Waits for the first row about the pool.
async fn first_decision(database: &TestDatabase) -> ScalingDecision {
    let pools = Pools::new(database.pool.clone());
    loop {
        let decisions = pools.decisions("rag-embed", 1).await.expect("the table is there");
        if let Some(decision) = decisions.into_iter().next() {
            return decision;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_pool_of_the_list_is_scaled_within_its_bounds() {
    let list = ProcessList::read(None).expect("the built-in list");
    let process = list.process("rag-embed").expect("it is listed");
    let claimed = process.route.as_ref().expect("it claims");
    let scaled = ScaledPool::new(process, claimed, None);
    let (pool, settings) = (process.pool(), &scaled.settings);
    assert_eq!((settings.min, settings.max, scaled.start), (pool.min, pool.max, process.first_instances()));
    assert_eq!((settings.per_worker, ScaledPool::new(process, claimed, Some(3)).settings.per_worker), (8, 3));
    assert!(settings.min < settings.max && settings.validate().is_ok());
}

#[test]
fn looks_come_at_even_times_and_never_rarely() {
    let pause = |took_ms: u64| pause_after(Duration::from_millis(took_ms), Duration::from_secs(1)).as_millis();
    assert_eq!([pause(0), pause(20), pause(100), pause(200)], [1000, 980, 900, 1800]);
    // also after one that waited for a connection until it had enough
    assert_eq!([pause(2000), pause(7000), pause(60_000)], [3000, 3000, 3000]);
}

#[tokio::test]
async fn a_queue_that_grows_gets_more_instances_and_a_row_says_why() {
    let database = database().await;
    let fleet = Counting::new();
    let running = start(&database, &fleet, FAST);
    fleet.asked_for(&[1]).await;
    send(&database, 500).await;
    fleet.asked_for(&[1, 4]).await;
    running.end().await;
    let decisions = Pools::new(database.pool.clone()).decisions("rag-embed", 10).await.expect("the table is there");
    let grown = decisions.iter().find(|decision| decision.to_count == 4 && decision.from_count == 1);
    let grown = grown.unwrap_or_else(|| panic!("{decisions:?}"));
    assert!(grown.sentence.starts_with("From 1 to 4: "), "{}", grown.sentence);
    assert_eq!(grown.inputs["queued"], 500);
}

#[tokio::test]
async fn one_of_two_fleets_scales_and_the_other_takes_over_when_it_stops() {
    let database = database().await;
    let (first, second) = (Counting::new(), Counting::new());
    let owner = start(&database, &first, FAST);
    first.asked_for(&[1]).await;
    let impatient = Pace { lease: Duration::from_secs(1), ..FAST };
    let other = start(&database, &second, impatient);
    send(&database, 500).await;
    first.asked_for(&[1, 4]).await;
    assert!(second.told.borrow().is_empty(), "it decides about nothing");
    owner.end().await;
    second.asked_for(&[4]).await;
    other.end().await;
    let [pool] = Pools::new(database.pool.clone()).list().await.expect("the table is there").try_into().expect("one");
    assert_eq!((pool.epoch, pool.owner, pool.desired), (2, None, 4));
}

#[tokio::test]
async fn what_an_operator_did_is_adopted_and_written_down() {
    let database = database().await;
    let fleet = Counting::new();
    let running = start(&database, &fleet, FAST);
    fleet.asked_for(&[1]).await;
    fleet.ask(3);
    let adopted = first_decision(&database).await;
    running.end().await;
    assert_eq!((adopted.from_count, adopted.to_count), (1, 3));
    assert!(adopted.sentence.contains("operator"), "{}", adopted.sentence);
    assert_eq!(*fleet.told.borrow(), [1], "what is there already is not asked for");
}

#[tokio::test]
async fn what_an_operator_asks_for_before_anybody_decides_is_not_set_back() {
    let database = database().await;
    let fleet = Counting::new();
    fleet.ask(3);
    let running = start(&database, &fleet, FAST);
    let adopted = first_decision(&database).await;
    running.end().await;
    assert_eq!((adopted.from_count, adopted.to_count), (1, 3));
    assert!(adopted.sentence.contains("operator"), "{}", adopted.sentence);
    assert!(fleet.told.borrow().is_empty(), "what is there already is not asked for");
}

#[tokio::test]
async fn the_time_of_work_is_what_the_database_measured() {
    let database = database().await;
    let fleet = Counting::new();
    send(&database, 500).await;
    let bus = Bus::new(database.pool.clone());
    let route = Route::constant("rag", "embed");
    let holder = "rag-embed/0#1";
    let lease = Duration::from_secs(60);
    let request = ClaimRequest { route: &route, holder, instance: None, max_messages: 4, lease };
    let claimed = bus.claim(&request).await.expect("there is work");
    sqlx::query("select pg_sleep(0.2)").execute(&database.pool).await.expect("it works on it");
    for message in &claimed {
        assert!(bus.complete(&message.fence(), holder, &Completion::default()).await.expect("it is done"));
    }
    let measured = "select avg(extract(epoch from done_at - claimed_at) * 1000)::float8 from public.agent_messages where status = 'done'";
    let measured: f64 = sqlx::query_scalar(measured).fetch_one(&database.pool).await.expect("four are done");
    // however long the test takes, the four ends are within
    let running = start(&database, &fleet, Pace { rate_window: Duration::from_secs(300), ..FAST });
    fleet.asked_for(&[4]).await;
    running.end().await;
    let decisions = Pools::new(database.pool.clone()).decisions("rag-embed", 10).await.expect("the table is there");
    let service_ms = decisions[0].inputs["service_ms"].as_f64().expect("a number");
    // what was assumed, 1000 ms, weighs a tenth of the first measurement
    let of_assumption = (1000.0 - measured).abs() / 11.0;
    assert!((service_ms - measured).abs() <= of_assumption + 1.0, "{service_ms} decided, {measured} measured");
}

#[tokio::test]
async fn a_drained_pool_is_left_alone_until_it_is_back() {
    let database = database().await;
    let fleet = Counting::new();
    fleet.steer(DRAINED);
    let running = start(&database, &fleet, FAST);
    send(&database, 500).await;
    let pools = Pools::new(database.pool.clone());
    // it is owned, and then looked at many times
    while pools.list().await.expect("the table is there").iter().all(|pool| pool.owner.is_none()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..20 {
        assert_eq!(pools.decisions("rag-embed", 1).await.expect("the table is there"), []);
        assert!(fleet.told.borrow().is_empty());
    }
    fleet.steer(1);
    fleet.asked_for(&[4]).await;
    running.end().await;
}
