//! Agents of level 3 at work: they claim their own route from the bus, under the name that their parent got for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cogo_bus_core::{Bus, Claimed};
use cogo_contracts::{NewMessage, Tenant};
use cogo_registry_core::{Follower, Query, Target, ViewSettings};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    PATIENCE, ROUTE,
    child_support::{CHILD, Child, INSTANCE, Parent},
};
use crate::{ChildEvent, ChildWorker, Ended, HandlerError, Order, children::Pace};

/// A child that answers what it may; each answer takes a permit.
pub(super) struct Workshop {
    pub(super) bus: Bus,
    pub(super) permits: Arc<Semaphore>,
    /// How often the work was begun, and how often it was dropped or had ended.
    pub(super) begun: Arc<AtomicU32>,
    pub(super) gone: Arc<AtomicU32>,
    pub(super) stop: CancellationToken,
    work: JoinHandle<()>,
}

struct Gone(Arc<AtomicU32>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Workshop {
    fn open(parent: &Parent, child: &Child) -> Self {
        Self::open_at(parent, child, Pace { lease: PATIENCE, patience: PATIENCE })
    }

    pub(super) fn open_at(parent: &Parent, child: &Child, pace: Pace) -> Self {
        let bus = Bus::new(parent.database.pool.clone());
        let permits = Arc::new(Semaphore::new(0));
        let (begun, gone) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (waiting, stop) = (Arc::clone(&permits), CancellationToken::new());
        let (calls, ends) = (Arc::clone(&begun), Arc::clone(&gone));
        let work = move |message: Claimed| {
            calls.fetch_add(1, Ordering::SeqCst);
            assert_ne!(message.payload["what"], "panic at once", "as ordered");
            if message.payload["what"] == "outlast" {
                // on the only thread of the test, so that the time of its fellow passes as well
                let left = message.remaining_ms.unwrap().max(0).unsigned_abs();
                std::thread::sleep(Duration::from_millis(left + 1_000));
            }
            let (waiting, gone) = (Arc::clone(&waiting), Gone(Arc::clone(&ends)));
            async move {
                let _gone = gone;
                waiting.acquire().await.expect("it is never closed").forget();
                match message.payload["what"].as_str() {
                    Some("reject") => Err(HandlerError::rejected("as ordered")),
                    Some("panic") => panic!("as ordered"),
                    Some("too large") => Ok(json!("x".repeat(2 << 20))),
                    Some("not to be stored") => Ok(json!("\0")),
                    _ => Ok(json!({"by": CHILD})),
                }
            }
        };
        let mut worker = ChildWorker::new(bus.clone(), ROUTE, INSTANCE, &child.handle).at_once(2);
        worker.pace = pace;
        let work = parent.tracker.spawn(worker.run(work, stop.clone()));
        Self { bus, permits, begun, gone, stop, work }
    }

    pub(super) async fn send(&self, payload: Value) -> Uuid {
        let tenant = Tenant::new("default").unwrap();
        self.bus.enqueue(&NewMessage::new(ROUTE, Some(tenant), payload)).await.unwrap().id
    }

    async fn status(&self, id: Uuid) -> String {
        let status = "select m.status from public.agent_messages m where m.id = $1";
        sqlx::query_scalar(status).bind(id).fetch_one(self.bus.pool()).await.unwrap()
    }

    pub(super) async fn until(&self, id: Uuid, status: &str) {
        let reached = async {
            while self.status(id).await != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("the message does not become {status}"));
    }

    async fn claimed_by(&self) -> Vec<String> {
        let holders = "select holder from bus.claims order by holder";
        sqlx::query_scalar(holders).fetch_all(self.bus.pool()).await.unwrap()
    }

    pub(super) async fn ended(self) {
        timeout(PATIENCE, self.work).await.expect("it ends").unwrap();
    }
}

#[tokio::test]
async fn child_is_found_by_its_capability_and_does_the_work_of_its_route() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let (follower, view) = Follower::new(&parent.registry, ViewSettings::default());
    parent.tracker.spawn(follower.run(parent.stop.clone()));
    view.wait_for(1).await;
    let run = child.run();
    let found = async {
        loop {
            let found = view.discover(&Query::capability("figma")).unwrap().value;
            if let Some(entry) = found.first() {
                return Arc::clone(entry);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let entry = timeout(PATIENCE, found).await.expect("others find it");
    assert_eq!((entry.id.instance_id, entry.level), (run, 3));
    assert_eq!(entry.routes().collect::<Vec<_>>(), [ROUTE]);

    let shop = Workshop::open(&parent, &child);
    let good = shop.send(json!({})).await;
    let (bad, worse) = (shop.send(json!({"what": "reject"})).await, shop.send(json!({"what": "panic"})).await);
    shop.permits.add_permits(100);
    shop.until(good, "done").await;
    assert_eq!(shop.bus.task(good).await.unwrap().unwrap().result, Some(json!({"by": CHILD})));
    shop.until(bad, "failed").await;
    // a panic is an attempt that may do better
    let again = "select attempts from public.agent_messages where id = $1";
    let tried = async {
        while sqlx::query_scalar::<_, i16>(again).bind(worse).fetch_one(shop.bus.pool()).await.unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, tried).await.expect("it is tried again");
    shop.stop.cancel();
    shop.ended().await;
    assert_eq!(child.ended().await.0, Ended::Drained, "one that has ended its work leaves in good order");
    assert_eq!(parent.end_reason(run).await, "stopped");
    parent.stop().await;
}

#[tokio::test]
async fn paused_child_finishes_what_it_has_and_takes_nothing_new() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let shop = Workshop::open(&parent, &child);
    let first = shop.send(json!({})).await;
    shop.until(first, "claimed").await;
    let holder = child.handle.seated.borrow().as_ref().unwrap().holder.clone();
    assert_eq!(shop.claimed_by().await, [holder]);
    parent.registry.suspend(Target::slot(CHILD, 0)).await.unwrap();
    parent.obeyed(Order::Pause).await;
    let second = shop.send(json!({})).await;
    shop.permits.add_permits(100);
    shop.until(first, "done").await;
    // both have been seen by a claim, if there is one: the second is the only one left
    assert_eq!(shop.status(second).await, "queued");
    parent.registry.resume(Target::slot(CHILD, 0)).await.unwrap();
    shop.until(second, "done").await;
    shop.stop.cancel();
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn drained_child_finishes_what_it_has_before_it_leaves() {
    let parent = Parent::start(|_| {}).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    let shop = Workshop::open(&parent, &child);
    let first = shop.send(json!({})).await;
    shop.until(first, "claimed").await;
    parent.registry.drain(Target::slot(CHILD, 0)).await.unwrap();
    parent.obeyed(Order::Leave).await;
    parent.until(run, "draining").await;
    let second = shop.send(json!({})).await;
    shop.permits.add_permits(100);
    shop.until(first, "done").await;
    assert_eq!(child.ended().await.0, Ended::Drained);
    assert_eq!(parent.end_reason(run).await, "drained");
    assert_eq!(shop.status(second).await, "queued");
    shop.ended().await;
    parent.stop().await;
}

#[tokio::test]
async fn work_of_a_child_that_vanishes_is_queued_again_once_it_is_gone() {
    let parent = Parent::start(|settings| settings.allowed_absence = Duration::from_millis(50)).await;
    let mut child = parent.child();
    assert_eq!(child.next().await, ChildEvent::Connected);
    let run = child.run();
    let shop = Workshop::open(&parent, &child);
    let message = shop.send(json!({})).await;
    shop.until(message, "claimed").await;
    // as kill -9 does it: no goodbye, no end of the work
    child.task.abort();
    shop.work.abort();
    parent.until(run, "terminated").await;
    assert_eq!(parent.end_reason(run).await, "connection gone");
    shop.until(message, "queued").await;
    assert!(shop.claimed_by().await.is_empty());
    parent.stop().await;
}
