//! The autoscaler on a real Postgres and a fleet that only counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use cogo_test_support::{TestDatabase, database};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::*;
use crate::fleet::ProcessList;

/// Remembers how many instances each process has.
#[derive(Clone)]
struct Counting {
    counts: Arc<Mutex<HashMap<String, u32>>>,
    told: watch::Sender<Vec<u32>>,
}

impl Counting {
    fn new() -> Self {
        Self { counts: Arc::default(), told: watch::channel(Vec::new()).0 }
    }

    fn steer(&self, count: u32) {
        self.counts.lock().expect("nobody panics with it").insert("rag-embed".to_owned(), count);
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

    fn count(&self, process: &str) -> u32 {
        self.counts.lock().expect("nobody panics with it").get(process).copied().unwrap_or(1)
    }
}

const FAST: Pace = Pace {
    every: Duration::from_millis(20),
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

#[test]
fn a_pool_of_the_list_is_scaled_within_its_bounds() {
    let list = ProcessList::read(None).expect("the built-in list");
    let process = list.process("rag-embed").expect("it is listed");
    let scaled = ScaledPool::new(process, "rag", "embed", 0);
    let (pool, settings) = (process.pool(), &scaled.settings);
    assert_eq!((settings.min, settings.max, scaled.start), (pool.min, pool.max, process.first_instances()));
    assert!(settings.min < settings.max && settings.validate().is_ok());
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
    fleet.steer(3);
    let pools = Pools::new(database.pool.clone());
    let adopted = async {
        loop {
            let decisions = pools.decisions("rag-embed", 1).await.expect("the table is there");
            if let Some(decision) = decisions.into_iter().next() {
                return decision;
            }
            tokio::task::yield_now().await;
        }
    };
    let adopted = adopted.await;
    running.end().await;
    assert_eq!((adopted.from_count, adopted.to_count), (1, 3));
    assert!(adopted.sentence.contains("operator"), "{}", adopted.sentence);
    assert_eq!(*fleet.told.borrow(), [1], "what is there already is not asked for");
}
