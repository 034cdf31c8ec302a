//! A process with children, and a child of it, over a wire that can be cut.

use std::{net::SocketAddr, time::Duration};

use cogo_registry_core::{
    AgentKey, Ended as BeatEnded, Follower, Heartbeat, HeartbeatSettings, Member, Registration, Registry, ViewSettings,
    detect_location,
};
use cogo_test_support::TestDatabase;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{PATIENCE, ROUTE, wire::carry};
use crate::{
    ChildClient, ChildEvent, ChildHandle, ChildIntroduction, Children, ChildrenSettings, ConnectionSettings, Ended,
    FromChild, Order, Trust,
};

pub(super) const CHILD: &str = "figma-worker";
pub(super) const INSTANCE: &str = "figma-worker/0";

/// A process with children, and the wire to it, which can be cut.
pub(super) struct Parent {
    pub(super) registry: Registry,
    pub(super) member: Member,
    pub(super) children: Children,
    pub(super) received: mpsc::Receiver<FromChild>,
    pub(super) key: AgentKey,
    pub(super) address: String,
    pub(super) intact: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
    pub(super) leave: CancellationToken,
    pub(super) beating: JoinHandle<BeatEnded>,
    pub(super) tracker: TaskTracker,
    // dropped last, as it removes the database
    pub(super) database: TestDatabase,
}

impl Parent {
    pub(super) async fn start(change: impl FnOnce(&mut ChildrenSettings)) -> Self {
        let database = cogo_test_support::database().await;
        let registry = Registry::new(database.pool.clone());
        let (_, key) = registry.issue_key(CHILD, "test").await.unwrap();
        let version = semver::Version::new(0, 1, 0);
        let registration = Registration::new("design", "design-hub", 0, version, detect_location(|_| None)).unwrap();
        let interval = Duration::from_millis(50);
        let often = HeartbeatSettings { interval, farewell: PATIENCE, ..HeartbeatSettings::default() };
        let (heartbeat, member) = Heartbeat::new(&registry, registration, often);
        let (stop, leave, tracker) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let beating = tracker.spawn(heartbeat.run(leave.clone()));
        member.activate();
        member.standing().wait_for(|now| now.claiming().is_some()).await.unwrap();

        let mut settings = ChildrenSettings::of_domain("design");
        change(&mut settings);
        let (follower, view) = Follower::new(&registry, ViewSettings::default());
        tracker.spawn(follower.run(stop.clone()));
        let (children, received) =
            Children::new(database.pool.clone(), member.clone(), view, settings, stop.clone(), tracker.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = listener.local_addr().unwrap();
        let (router, ending) = (children.router(), stop.clone());
        tracker.spawn(async move {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, service).with_graceful_shutdown(ending.cancelled_owned()).await.unwrap();
        });
        let (intact, wire) = watch::channel(true);
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("ws://{}/children", front.local_addr().unwrap());
        tracker.spawn(carry(front, behind, wire, stop.clone()));
        Self { registry, member, children, received, key, address, intact, stop, leave, beating, tracker, database }
    }

    pub(super) fn child(&self) -> Child {
        self.child_with(&self.key, |_| {})
    }

    pub(super) fn child_with(&self, key: &AgentKey, change: impl FnOnce(&mut ConnectionSettings)) -> Child {
        self.child_at(&self.address, Trust::default(), key, change)
    }

    pub(super) fn child_at(
        &self,
        address: &str,
        trust: Trust,
        key: &AgentKey,
        change: impl FnOnce(&mut ConnectionSettings),
    ) -> Child {
        let mut settings = ConnectionSettings {
            heartbeat: Duration::from_millis(40),
            pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(100),
            ..ConnectionSettings::default()
        };
        change(&mut settings);
        let introduction = ChildIntroduction {
            name: CHILD.to_owned(),
            slot: 0,
            version: semver::Version::new(2, 0, 1),
            capabilities: vec!["figma".to_owned(), format!("route:{ROUTE}")],
            tags: vec!["zone:a".to_owned()],
            location: None,
        };
        let (client, handle) = ChildClient::new(address, introduction, key.clone(), settings).unwrap();
        let stop = CancellationToken::new();
        let task = self.tracker.spawn(client.trusting(trust).run(stop.clone()));
        Child { handle, stop, task }
    }

    /// Breaks the connection, until the parent has missed the child.
    pub(super) async fn cut_off(&self, child: &mut Child) {
        let run = child.run();
        self.intact.send(false).unwrap();
        assert_eq!(child.next().await, ChildEvent::Disconnected);
        self.until(run, "suspended").await;
    }

    /// Mends the connection, until the child is back.
    pub(super) async fn let_back(&self, child: &mut Child) {
        self.intact.send(true).unwrap();
        assert_eq!(child.next().await, ChildEvent::Reconnected);
    }

    /// State of the run in the registry, once it is this one.
    pub(super) async fn until(&self, run: uuid::Uuid, expected: &str) {
        let state = "select a.state from registry.agents a where a.instance_id = $1";
        let reached = async {
            loop {
                let now: String = sqlx::query_scalar(state).bind(run).fetch_one(&self.database.pool).await.unwrap();
                if now == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("the child does not become {expected}"));
    }

    /// Waits until the child has said that it does so.
    pub(super) async fn obeyed(&self, order: Order) {
        let obeyed = async {
            while self.children.obeys(INSTANCE) != Some(order) {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        timeout(PATIENCE, obeyed).await.unwrap_or_else(|_| panic!("the child does not say that it obeys: {order}"));
    }

    pub(super) async fn end_reason(&self, run: uuid::Uuid) -> String {
        sqlx::query_scalar("select a.end_reason from registry.agents a where a.instance_id = $1")
            .bind(run)
            .fetch_one(&self.database.pool)
            .await
            .unwrap()
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.leave.cancel();
        self.beating.await.unwrap();
        self.tracker.close();
        timeout(PATIENCE, self.tracker.wait()).await.expect("everything ends");
    }
}

pub(super) struct Child {
    pub(super) handle: ChildHandle,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<Ended>,
}

impl Child {
    pub(super) async fn next(&mut self) -> ChildEvent {
        timeout(PATIENCE, self.handle.events.recv()).await.expect("an event comes").expect("the child runs")
    }

    /// Waits until it is told this.
    pub(super) async fn told(&self, order: Order) {
        let mut orders = self.handle.orders.clone();
        let told = timeout(PATIENCE, orders.wait_for(|now| *now == order)).await;
        told.unwrap_or_else(|_| panic!("it is not told to {order}")).expect("the child runs");
    }

    pub(super) fn run(&self) -> uuid::Uuid {
        self.handle.seated.borrow().as_ref().unwrap().instance_id
    }

    pub(super) async fn ended(self) -> (Ended, Vec<ChildEvent>) {
        let ended = timeout(PATIENCE, self.task).await.expect("it ends").unwrap();
        let mut events = self.handle.events;
        let mut rest = Vec::new();
        while let Some(event) = events.recv().await {
            rest.push(event);
        }
        (ended, rest)
    }
}
