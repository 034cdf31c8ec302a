//! The process itself as a parent: agents of level 3 stand in the registry through it, hear what is wanted of them, and
//! find it again after it was killed.

use std::{net::SocketAddr, time::Duration};

use cogo_contracts::AgentState;
use cogo_registry_core::{AgentKey, Registry, Target, detect_location};
use cogo_service_runtime::{
    ChildClient, ChildEvent, ChildHandle, ChildIntroduction, ConnectionSettings, Ended, Order, TroubleKind,
};
use cogo_test_support::TestDatabase;
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Far longer than anything here takes, so that only a hang runs into it.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "figma-worker";

fn process(database: &TestDatabase, address: SocketAddr, children: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cogo-sandbox-manager"));
    command.env("DATABASE_URL", &database.url).env("COGO_PORT", address.port().to_string());
    command.env("COGO_CHILDREN", children).env("COGO_CHILD_ABSENCE_MS", "1000").env("RUST_LOG", "warn");
    command.kill_on_drop(true).spawn().unwrap()
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], cogo_test_support::free_port()))
}

/// An agent of level 3 that tries often and for long.
fn agent(address: SocketAddr, key: AgentKey, tracker: &TaskTracker) -> (ChildHandle, JoinHandle<Ended>) {
    let introduction = ChildIntroduction {
        name: NAME.to_owned(),
        slot: 0,
        version: "1.2.3".parse().unwrap(),
        capabilities: vec!["figma-export".to_owned()],
        tags: Vec::new(),
        location: Some(detect_location(|_| None)),
    };
    let settings = ConnectionSettings {
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        attempts: 10_000,
        ..ConnectionSettings::default()
    };
    let parent = format!("ws://{address}/children");
    let (client, handle) = ChildClient::new(&parent, introduction, key, settings).unwrap();
    (handle, tracker.spawn(client.run(CancellationToken::new())))
}

async fn next(handle: &mut ChildHandle) -> ChildEvent {
    timeout(PATIENCE, handle.events.recv()).await.expect("an event comes").expect("the agent runs")
}

async fn told(handle: &ChildHandle, order: Order) {
    let mut orders = handle.orders.clone();
    timeout(PATIENCE, orders.wait_for(|now| *now == order)).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn agent_of_level_3_stands_below_the_process_and_outlives_it() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let (_, key) = registry.issue_key(NAME, "test").await.unwrap();
    let address = free_address();
    let mut parent = process(&database, address, "local");
    let (mut handle, task) = agent(address, key, &TaskTracker::new());
    assert_eq!(next(&mut handle).await, ChildEvent::Connected);
    let listed = registry.list().await.unwrap();
    let own = listed.iter().find(|agent| agent.id.name == NAME).unwrap();
    assert_eq!((own.level, own.parent.as_deref()), (3, Some("sandbox-manager/0")));
    assert_eq!((own.id.domain.as_str(), own.state), ("sandbox", AgentState::Active));

    registry.suspend(Target::slot(NAME, 0)).await.unwrap();
    told(&handle, Order::Pause).await;
    registry.resume(Target::slot(NAME, 0)).await.unwrap();
    told(&handle, Order::Work).await;

    parent.kill().await.unwrap();
    assert_eq!(next(&mut handle).await, ChildEvent::Disconnected);
    let _parent = process(&database, address, "local");
    assert_eq!(next(&mut handle).await, ChildEvent::Reconnected);
    assert_eq!(handle.seated.borrow().as_ref().unwrap().epoch, 2, "it is another run, as its parent is");

    registry.drain(Target::slot(NAME, 0)).await.unwrap();
    told(&handle, Order::Leave).await;
    handle.finished.cancel();
    assert_eq!(timeout(PATIENCE, task).await.expect("it is let go").unwrap(), Ended::Drained);
    let ended = registry.ended(5).await.unwrap();
    let last = ended.iter().find(|agent| agent.id.name == NAME).unwrap();
    assert_eq!(last.end_reason.as_deref(), Some("drained"));
}

#[tokio::test]
async fn process_that_owns_no_children_lets_none_in() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let (_, key) = registry.issue_key(NAME, "test").await.unwrap();
    let address = free_address();
    let _parent = process(&database, address, "off");
    let (handle, _task) = agent(address, key, &TaskTracker::new());
    let mut trouble = handle.trouble.clone();
    let refused = trouble.wait_for(|now| now.as_ref().is_some_and(|trouble| trouble.reason.contains("404")));
    let told = timeout(PATIENCE, refused).await.expect("nothing answers there").unwrap().clone().unwrap();
    assert_eq!(told.kind, TroubleKind::Unreachable);
    assert!(registry.list().await.unwrap().iter().all(|agent| agent.id.name != NAME));
}
