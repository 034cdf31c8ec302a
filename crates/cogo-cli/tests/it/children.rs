//! `cogo child`: an agent of level 3 as a process, below a parent in the test.

use std::{net::SocketAddr, time::Duration};

use cogo_bus_core::Bus;
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_registry_core::{
    Follower, Heartbeat, HeartbeatSettings, Registration, Registry, ViewSettings, detect_location,
};
use cogo_service_runtime::{Children, ChildrenSettings, Order};
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{Cogo, PATIENCE, eventually};

const ROUTE: Route = Route::constant("figma", "export");

/// A process with children.
struct Parent {
    database: TestDatabase,
    children: Children,
    address: String,
    key: String,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Parent {
    async fn start() -> Self {
        let database = cogo_test_support::database().await;
        let registry = Registry::new(database.pool.clone());
        let (_, key) = registry.issue_key("figma-worker", "test").await.unwrap();
        let version = "0.1.0".parse().unwrap();
        let registration = Registration::new("sandbox", "hub", 0, version, detect_location(|_| None)).unwrap();
        let often = HeartbeatSettings { interval: Duration::from_millis(100), ..HeartbeatSettings::default() };
        let (heartbeat, member) = Heartbeat::new(&registry, registration, often);
        let (follower, view) = Follower::new(&registry, ViewSettings::default());
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        tracker.spawn(heartbeat.run(stop.clone()));
        tracker.spawn(follower.run(stop.clone()));
        member.activate();
        member.standing().wait_for(|now| now.claiming().is_some()).await.unwrap();
        let settings =
            ChildrenSettings { allowed_absence: Duration::from_millis(100), ..ChildrenSettings::of_domain("sandbox") };
        let (children, _) = Children::new(database.pool.clone(), member, view, settings, stop.clone(), tracker.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("ws://{}/children", listener.local_addr().unwrap());
        let router = children.router().into_make_service_with_connect_info::<SocketAddr>();
        let ending = stop.clone().cancelled_owned();
        tracker.spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(ending).await.unwrap();
        });
        Self { database, children, address, key: key.reveal().to_owned(), stop, tracker }
    }

    fn child(&self, cogo: &Cogo, more: &[&str]) -> Agent {
        let mut arguments = vec!["child", "--json", "--parent", &self.address, "--name", "figma-worker"];
        arguments.extend(["--capability", "figma-export", "--tag", "zone:a"]);
        arguments.extend(more);
        // what is added behind a program is one more argument of it, which it does not mind
        let mut command = cogo.command(&arguments);
        let mut process = command.env("COGO_AGENT_KEY", &self.key).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Agent { process, lines }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(PATIENCE, self.tracker.wait()).await.expect("everything ends");
    }
}

/// A running `cogo child`.
struct Agent {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line comes").unwrap();
        serde_json::from_str(&line.expect("it has not ended")).unwrap()
    }

    async fn ended(mut self) -> i32 {
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it ends").unwrap();
        ended.code().unwrap_or(-1)
    }
}

async fn listed(cogo: &Cogo) -> Option<Value> {
    let agents = cogo.run(&["agents", "--json"]).await.expect(0).json();
    agents.as_array().unwrap().iter().find(|agent| agent["name"] == "figma-worker").cloned()
}

#[tokio::test]
async fn child_is_listed_works_on_its_route_and_leaves_when_it_is_drained() {
    let parent = Parent::start().await;
    let cogo = Cogo::on(&parent.database.url);
    let program = cogo.file("export.sh", "#!/bin/sh\nprintf '{\"given\": %s}' \"$(cat)\"\n");
    let program = program.to_str().unwrap();
    let mut child = parent.child(&cogo, &["--route", "figma/export", "--", "sh", program]);
    let connected = child.next().await;
    assert_eq!(
        (&connected["event"], &connected["agent"], &connected["epoch"]),
        (&json!("connected"), &json!("figma-worker/0"), &json!(1))
    );
    let agent = listed(&cogo).await.expect("it is in the registry");
    assert_eq!((&agent["level"], &agent["parent"], &agent["domain"]), (&json!(3), &json!("hub/0"), &json!("sandbox")));
    assert_eq!(agent["capabilities"], json!(["figma-export", "route:figma/export/0"]));
    assert_eq!(agent["location"]["pid"], child.process.id().unwrap(), "it tells where it runs itself");
    let table = cogo.run(&["agents"]).await.expect(0).stdout;
    assert!(table.contains("3 of hub/0"), "{table}");

    let bus = Bus::new(parent.database.pool.clone());
    let message = NewMessage::new(ROUTE, Some(Tenant::new("default").unwrap()), json!({"file": "a.fig"}));
    let sent = bus.enqueue(&message).await.unwrap().id;
    eventually("the work is done", async || {
        let task = bus.task(sent).await.unwrap().unwrap();
        task.result == Some(json!({"given": {"file": "a.fig"}}))
    })
    .await;

    cogo.run(&["suspend", "figma-worker"]).await.expect(0);
    assert_eq!(child.next().await["order"], "pause");
    eventually("it says that it obeys", async || parent.children.obeys("figma-worker/0") == Some(Order::Pause)).await;
    cogo.run(&["resume", "figma-worker"]).await.expect(0);
    assert_eq!(child.next().await["order"], "work");
    let drained = cogo.run(&["drain", "figma-worker", "--json"]).await.expect(0).json();
    assert_eq!((&drained[0]["agent"], &drained[0]["state"]), (&json!("figma-worker/0"), &json!("draining")));
    assert_eq!(child.next().await["order"], "leave");
    assert_eq!(child.next().await["event"], "disconnected");
    assert_eq!(child.ended().await, 0);
    assert_eq!(listed(&cogo).await, None);
    let ended = cogo.run(&["agents", "--ended", "1", "--json"]).await.expect(0).json();
    assert_eq!(ended[0]["end_reason"], "drained");
    // neither a part of a tree nor an agent of level 3 any more
    cogo.run(&["drain", "figma-worker"]).await.expect(7);
    parent.stop().await;
}

#[tokio::test]
async fn killed_child_is_gone_from_the_registry_and_comes_back_as_another_run() {
    let parent = Parent::start().await;
    let cogo = Cogo::on(&parent.database.url);
    let mut first = parent.child(&cogo, &[]);
    assert_eq!(first.next().await["event"], "connected");
    first.process.kill().await.unwrap();
    eventually("it is gone", async || listed(&cogo).await.is_none()).await;
    let ended = cogo.run(&["agents", "--ended", "1", "--json"]).await.expect(0).json();
    assert_eq!((&ended[0]["name"], &ended[0]["end_reason"]), (&json!("figma-worker"), &json!("connection gone")));
    let mut second = parent.child(&cogo, &[]);
    let connected = second.next().await;
    assert_eq!((&connected["event"], &connected["epoch"]), (&json!("connected"), &json!(2)));
    // one that is interrupted leaves at once and in good order
    let pid = second.process.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
    assert_eq!(second.ended().await, 0);
    assert_eq!(listed(&cogo).await, None);
    let ended = cogo.run(&["agents", "--ended", "1", "--json"]).await.expect(0).json();
    assert_eq!(ended[0]["end_reason"], "stopped");
    parent.stop().await;
}

#[tokio::test]
async fn child_that_is_not_wanted_says_why() {
    let mut parent = Parent::start().await;
    let cogo = Cogo::on(&parent.database.url);
    parent.key = cogo_registry_core::AgentKey::generate().reveal().to_owned();
    let mut refused = parent.child(&cogo, &[]);
    assert_eq!(refused.next().await["trouble"], "turned-away");
    assert_eq!(refused.ended().await, 5);
    for (arguments, what) in [
        (&["child", "--name", "a", "--key", "rubbish"][..], "agent key"),
        (&["child", "--name", "a", "--key", &parent.key, "--parent", "ws://parent.example/children"], "wss://"),
        (&["child", "--name", "a", "--key", &parent.key, "--agent-version", "new"], "--agent-version"),
        (&["child", "--name", "a", "--key", &parent.key, "--route", "a/b"], "PROGRAM"),
        (&["child", "--name", "a"], "cogo key issue a"),
    ] {
        let ended = cogo.run(arguments).await.expect(2);
        assert!(ended.stderr.contains(what), "{ended:?}");
    }
    parent.stop().await;
}
