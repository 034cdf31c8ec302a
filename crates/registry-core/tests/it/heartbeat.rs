//! The heartbeat task against a database that answers, does not answer, or says that the run is over.

use std::time::Duration;

use cogo_registry_core::{Ended, Heartbeat, HeartbeatSettings, Member, Membership, Registration, Registry, Standing};
use cogo_test_support::database;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::fleet::{active, claimed_by, registration, state, status};

/// Between two looks of a test at the database.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Beats many times in a second. The times that end in a loss of contact are longer than a busy machine stands still, or
/// processes would fence themselves in tests that are about something else.
pub(crate) fn fast() -> HeartbeatSettings {
    HeartbeatSettings {
        interval: Duration::from_millis(125),
        retry: Duration::from_millis(25),
        deadline: Duration::from_secs(2),
        fence_after: Duration::from_secs(6),
        farewell: Duration::from_secs(60),
    }
}

/// A running heartbeat.
pub(crate) struct Running {
    pub(crate) member: Member,
    pub(crate) token: CancellationToken,
    pub(crate) task: JoinHandle<Ended>,
    standing: watch::Receiver<Standing>,
}

impl Running {
    pub(crate) fn start(registry: &Registry, name: &str, slot: u32) -> Self {
        Self::with(registry, registration(name, slot))
    }

    pub(crate) fn with(registry: &Registry, registration: Registration) -> Self {
        let (heartbeat, member) = Heartbeat::new(registry, registration, fast());
        let token = CancellationToken::new();
        let task = spawn(heartbeat.run(token.clone()));
        Self { standing: member.standing(), member, token, task }
    }

    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&Standing) -> bool) -> Standing {
        match timeout(Duration::from_secs(60), self.standing.wait_for(|standing| fits(standing))).await {
            Ok(standing) => standing.expect("the heartbeat runs").clone(),
            Err(_) => panic!("no standing that is {what}: {:?}", *self.member.standing().borrow()),
        }
    }

    pub(crate) async fn until_active(&mut self) -> Membership {
        let standing = self.until("active", |standing| standing.claiming().is_some()).await;
        standing.claiming().expect("it is active").clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no task tracker of a service")]
pub(crate) fn spawn<T: Send + 'static>(run: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(run)
}

#[tokio::test]
async fn a_process_joins_works_drains_and_leaves() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.vitals().set_ready(true);
    running.member.vitals().set_in_flight(3);
    running.until("registered", |standing| matches!(standing, Standing::Registered(_))).await;
    running.member.activate();
    let membership = running.until_active().await;
    // the beat after the activation tells of the version that it made
    let told = async {
        while running.member.registry_version() < 2 {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(30), told).await.expect("beats carry the version of the registry");
    let agent = registry.list().await.unwrap().remove(0);
    assert!(agent.ready && agent.in_flight == 3 && agent.memory_bytes > Some(0), "{agent:?}");

    let message = claimed_by(&database.pool, &membership.holder).await;
    running.member.drain();
    running.until("draining", |standing| matches!(standing, Standing::Draining(_))).await;
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
    assert_eq!(state(&database.pool, &membership).await, "terminated");
    assert_eq!(status(&database.pool, message).await, "queued");
}

#[tokio::test]
async fn a_process_without_contact_fences_itself_and_comes_back_as_the_same_run() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    let before = running.until_active().await;

    let mut pause = database.pool.begin().await.unwrap();
    sqlx::query("lock table registry.beats in access exclusive mode").execute(&mut *pause).await.unwrap();
    running.until("fenced", |standing| *standing == Standing::Fenced).await;
    let waiting: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert!(waiting <= 3, "beats that nobody waits for pile up in the server: {waiting}");
    pause.rollback().await.unwrap();

    assert_eq!(running.until_active().await, before, "nobody declared it dead, so it goes on");
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
}

#[tokio::test]
async fn a_process_that_was_declared_dead_joins_as_a_new_run() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    let before = running.until_active().await;
    let message = claimed_by(&database.pool, &before.holder).await;
    registry.deregister(before.instance_id, "dead").await.unwrap();

    let standing = running
        .until("another run", |standing| standing.claiming().is_some_and(|now| now.holder != before.holder))
        .await;
    let after = standing.claiming().unwrap();
    assert_eq!(after.epoch, 2);
    assert_ne!(after.instance_id, before.instance_id);
    assert_eq!(status(&database.pool, message).await, "queued");
    assert_eq!(registry.list().await.unwrap().len(), 1);
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
    assert!(registry.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_process_whose_slot_was_taken_stops_and_does_not_fight() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    running.until_active().await;
    let successor = active(&registry, "rag-embed", 0).await;
    assert_eq!(running.task.await.unwrap(), Ended::Superseded { by: successor.holder.clone() });
    assert_eq!(*running.standing.borrow(), Standing::Superseded { by: successor.holder.clone() });
    assert_eq!(state(&database.pool, &successor).await, "active");
}

#[tokio::test]
async fn a_process_hears_what_an_operator_asks() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    let membership = running.until_active().await;
    registry.suspend(membership.instance_id).await.unwrap();
    running.until("suspended", |standing| matches!(standing, Standing::Suspended(_))).await;
    registry.resume(membership.instance_id).await.unwrap();
    running.until_active().await;
    registry.drain(membership.instance_id).await.unwrap();
    running.until("draining", |standing| matches!(standing, Standing::Draining(_))).await;
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
}

#[tokio::test]
async fn a_process_that_is_leaving_does_not_join_again() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    running.until_active().await;
    running.member.drain();
    let standing = running.until("draining", |standing| matches!(standing, Standing::Draining(_))).await;
    registry.deregister(standing.membership().unwrap().instance_id, "dead").await.unwrap();
    running.until("fenced", |standing| *standing == Standing::Fenced).await;
    running.token.cancel();
    assert_eq!(running.task.await.unwrap(), Ended::Left);
    assert!(registry.list().await.unwrap().is_empty());
    assert_eq!(registry.ended(10).await.unwrap().len(), 1);
}
