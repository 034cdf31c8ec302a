//! What an operator ordered outlives the `cogo up` that was told, until it is taken back.

use cogo_registry_core::{NewOrder, Registry, StandingOrders, Subject};
use serde_json::Value;

use crate::{
    pause::{join, suspended},
    support::{Cogo, Ended, ended},
    tree::{node, tree},
};

const PROCESSES: [(&str, &str, &str); 3] = [
    ("a-one", "answering_process", "pool = { max = 2, start = 2 }"),
    ("a-two", "answering_process", ""),
    ("b-one", "answering_process", ""),
];

async fn up(cogo: &Cogo, list: &str) -> Ended {
    cogo.run(&["up", "--detach", "--processes", list]).await.expect(0)
}

/// Whether each instance runs, by its path.
fn running(tree: &Value) -> Vec<(String, bool)> {
    if tree["kind"] == "instance" {
        let is_drained = tree["drained"].as_bool().unwrap();
        let runs = tree["pid"].is_number();
        assert!(!(runs && is_drained), "{tree}");
        return vec![(tree["path"].as_str().unwrap().to_owned(), runs)];
    }
    tree["children"].as_array().unwrap().iter().flat_map(running).collect()
}

fn expected(states: [(&str, bool); 4]) -> Vec<(String, bool)> {
    states.map(|(path, runs)| (path.to_owned(), runs)).to_vec()
}

#[tokio::test]
async fn drained_parts_stay_down_when_the_fleet_is_started_anew_until_they_are_resumed() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list = cogo.list_of(&PROCESSES, "");
    up(&cogo, &list).await;
    cogo.run(&["drain", "a-two", "--because", "disk is full"]).await.expect(0);
    cogo.run(&["drain", "a-one/1"]).await.expect(0);
    cogo.run(&["drain", "b"]).await.expect(0);
    cogo.run(&["down"]).await.expect(0);

    let told = up(&cogo, &list).await.stdout;
    let line = told.lines().find(|line| line.starts_with("a-two: drained by ")).expect(&told);
    assert!(line.contains("UTC (disk is full)") && line.contains("`cogo resume a-two` starts it"), "{line}");
    assert!(told.contains("a-one/1: drained by ") && told.contains("b: drained by "), "{told}");
    let now = tree(&cogo).await;
    let down = expected([("a/a-one/0", true), ("a/a-one/1", false), ("a/a-two/0", false), ("b/b-one/0", false)]);
    assert_eq!(running(&now), down);
    assert_eq!(node(&now, "a/a-two")["order"]["reason"], "disk is full");
    assert_eq!(
        (&node(&now, "b")["order"]["kind"], &node(&now, "a/a-one/1")["order"]["slot"]),
        (&Value::from("domain"), &Value::from(1))
    );
    for command in ["tree", "agents"] {
        let shown = cogo.run(&[command]).await.expect(0).stdout;
        assert!(shown.contains("a-two: drained by ") && shown.contains("`cogo resume a-two`"), "{command}: {shown}");
    }
    // nothing of what is meant to run is missing
    cogo.run(&["status"]).await.expect(0);

    let part = cogo.run(&["resume", "b-one"]).await.expect(4);
    assert!(part.stderr.contains("`cogo resume b`"), "{part:?}");
    let resumed = cogo.run(&["resume", "a-two", "--json"]).await.expect(0).json();
    assert_eq!((&resumed[0]["agent"], &resumed[0]["before"]), (&Value::from("a-two/0"), &Value::from("drained")));
    assert_eq!(resumed[0]["state"], "running");
    // a restart by name takes an order back as well
    cogo.run(&["restart", "b"]).await.expect(0);
    cogo.run(&["down"]).await.expect(0);
    // also while nothing is up
    cogo.run(&["resume", "a-one/1"]).await.expect(0);
    let none = cogo.run(&["resume", "a-one/1"]).await.expect(3);
    assert!(none.stderr.contains("a-one/1"), "{none:?}");
    let told = up(&cogo, &list).await.stdout;
    assert!(!told.contains("drained"), "{told}");
    let all = expected([("a/a-one/0", true), ("a/a-one/1", true), ("a/a-two/0", true), ("b/b-one/0", true)]);
    assert_eq!(running(&tree(&cogo).await), all);
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn order_about_another_fleet_on_the_database_is_not_heeded() {
    let database = cogo_test_support::database().await;
    let orders = StandingOrders::new(database.pool.clone());
    let subject = Subject::Process { domain: "a".to_owned(), process: "a-one".to_owned() };
    let order = NewOrder { subject, fleet: Some(100), by: "ada@host".to_owned(), reason: None, known_version: 0 };
    assert!(orders.give(&order).await.unwrap().is_some());
    let cogo = Cogo::on(&database.url);
    let list = cogo.list_of(&[("a-one", "answering_process", "")], "");
    up(&cogo, &list).await;
    assert_eq!(running(&tree(&cogo).await), [("a/a-one/0".to_owned(), true)]);
    cogo.run(&["down"]).await.expect(0);
    let elsewhere = cogo.command(&["up", "--detach", "--processes", &list]).env("COGO_AGENT_SLOT", "100").output();
    assert!(elsewhere.await.unwrap().status.success());
    assert_eq!(running(&tree(&cogo).await), [("a/a-one/100".to_owned(), false)]);
    assert_eq!(cogo.run(&["resume", "a-one", "--json"]).await.expect(0).json()[0]["agent"], "a-one/100");
    assert!(orders.list().await.unwrap().is_empty());
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn suspended_process_is_suspended_in_each_later_run_and_not_waited_for() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let cogo = Cogo::on(&database.url);
    join(&registry, "a", "a-one", 0).await;
    cogo.run(&["suspend", "a-one", "--because", "index is rebuilt"]).await.expect(0);
    assert_eq!(suspended(&registry).await, ["a-one/0"]);
    join(&registry, "a", "a-one", 0).await;
    join(&registry, "a", "a-one", 5).await;
    assert_eq!(suspended(&registry).await, ["a-one/0", "a-one/5"], "those that come later are too");
    // again, by somebody who knows of it
    cogo.run(&["suspend", "a-one"]).await.expect(0);

    // a process that is suspended says that it is not ready
    let list = cogo.list_of(&[("a-one", "answering_process", "")], "");
    let mut up = cogo.command(&["up", "--detach", "--processes", &list]);
    let told = ended(up.env("ANSWER_STATUS", "503").output().await.unwrap()).expect(0).stdout;
    assert!(told.contains("a-one: suspended by ") && told.contains("`cogo resume a-one` lets it claim"), "{told}");
    let status = cogo.run(&["status", "--json"]).await.expect(0).json();
    assert_eq!(status["processes"][0]["state"], "suspended");

    let part = cogo.run(&["resume", "a-one/5"]).await.expect(4);
    assert!(part.stderr.contains("`cogo resume a-one`"), "{part:?}");
    cogo.run(&["resume", "a-one"]).await.expect(0);
    assert_eq!(suspended(&registry).await, Vec::<String>::new());
    assert_eq!(cogo.run(&["status"]).await.code, 7, "it is expected to be ready again");
    join(&registry, "a", "a-one", 0).await;
    assert_eq!(suspended(&registry).await, Vec::<String>::new());
    cogo.run(&["down"]).await.expect(0);
}
