//! Claims of many messages, whose attempts are run in rows.

use std::{collections::HashSet, sync::Mutex};

use tokio::{sync::Barrier, task};

use super::*;

/// More than are started one by one.
const MANY: usize = 320;

/// Every message waits for all the others.
struct Together(Barrier);

impl Handler for Together {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _request: Value, _claim: &Claim) -> Result<Value, HandlerError> {
        self.0.wait().await;
        Ok(json!({}))
    }
}

/// Notes which task each message was handled in; the slow ones hold up their thread.
#[derive(Clone, Default)]
struct Noting {
    tasks: Arc<Mutex<Vec<task::Id>>>,
    is_slow: bool,
}

impl Handler for Noting {
    const ROUTE: Route = ROUTE;
    type Request = Value;
    type Reply = Value;

    async fn handle(&self, _request: Value, _claim: &Claim) -> Result<Value, HandlerError> {
        self.tasks.lock().unwrap().push(task::id());
        if self.is_slow {
            std::thread::sleep(Duration::from_millis(4));
        }
        Ok(json!({}))
    }
}

/// Panics when it is read from a payload that says so.
struct Explosive {
    reply: Fragile,
}

/// Panics when it is written, if it is broken.
struct Fragile {
    is_broken: bool,
}

impl serde::Serialize for Fragile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.is_broken, "as ordered");
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Explosive {
    fn deserialize<D: serde::Deserializer<'de>>(payload: D) -> Result<Self, D::Error> {
        let payload = Value::deserialize(payload)?;
        assert!(payload["explode"].is_null(), "as ordered");
        Ok(Self { reply: Fragile { is_broken: !payload["break"].is_null() } })
    }
}

struct Reading;

impl Handler for Reading {
    const ROUTE: Route = ROUTE;
    type Request = Explosive;
    type Reply = Fragile;

    async fn handle(&self, request: Explosive, _claim: &Claim) -> Result<Fragile, HandlerError> {
        Ok(request.reply)
    }
}

/// Has messages handled that one claim takes, after `before` others.
async fn handle_many(before: usize, handler: impl Handler) {
    let database = cogo_test_support::database().await;
    let (bus, pool) = (Bus::new(database.pool.clone()), database.pool.clone());
    let pace = Pace { concurrency: 1000, poll: Duration::from_millis(20), ..pace() };
    let running = Running::start_with(database, pool, false, pace, |_| handler);
    let message = NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({}));
    let done = "select count(*) = $1 from public.agent_messages where status = 'done' and attempts = 1";
    let started = Instant::now();
    for (count, total) in [(before, before), (MANY, before + MANY)] {
        bus.enqueue_many(&vec![message.clone(); count]).await.unwrap();
        let total = i64::try_from(total).unwrap();
        while !sqlx::query_scalar::<_, bool>(done).bind(total).fetch_one(bus.pool()).await.unwrap() {
            assert!(started.elapsed() < PATIENCE, "not all are done");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    drop(running.finish().await);
}

#[tokio::test]
async fn messages_that_wait_wait_beside_each_other() {
    handle_many(0, Together(Barrier::new(MANY))).await;
}

#[tokio::test]
async fn quick_messages_share_tasks_and_slow_ones_have_their_own() {
    // the first one waits for what is known of its route's schemas
    let quick = Noting::default();
    handle_many(1, quick.clone()).await;
    let slow = Noting { is_slow: true, ..Noting::default() };
    handle_many(1, slow.clone()).await;
    let tasks = |handler: &Noting| handler.tasks.lock().unwrap().iter().copied().collect::<HashSet<task::Id>>().len();
    assert!(tasks(&quick) <= MANY, "{} tasks", tasks(&quick));
    assert_eq!(tasks(&slow), 1 + MANY, "only the first of a row may run in its task");
}

#[tokio::test]
async fn payloads_and_replies_that_panic_are_dead_letters_and_the_rest_of_their_row_is_done() {
    let database = cogo_test_support::database().await;
    let (bus, pool) = (Bus::new(database.pool.clone()), database.pool.clone());
    let mut messages = vec![NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), json!({})); 100];
    messages[0].payload = json!({"explode": true});
    messages[1].payload = json!({"break": true});
    bus.enqueue_many(&messages).await.unwrap();
    let running = Running::start_with(database, pool, false, Pace { concurrency: 1000, ..pace() }, |_| Reading);
    let ended = "select count(*) filter (where status = 'done'), count(*) filter (where status = 'failed') from public.agent_messages";
    let started = Instant::now();
    while sqlx::query_as::<_, (i64, i64)>(ended).fetch_one(bus.pool()).await.unwrap() != (98, 2) {
        assert!(started.elapsed() < PATIENCE, "not all have ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(running.finish().await);
}
