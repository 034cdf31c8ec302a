//! The supervision tree of a fleet of stand-ins: its order, its picture, and what one crash does.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    fleet::{kill, lives},
    support::{Cogo, PATIENCE, eventually},
};

const THREE: [(&str, &str, &str); 3] =
    [("a-one", "answering_process", ""), ("a-two", "answering_process", ""), ("b-one", "answering_process", "")];

pub(crate) async fn up(cogo: &Cogo, list: &str) {
    cogo.run(&["up", "--detach", "--processes", list, "--json"]).await.expect(0);
}

pub(crate) async fn tree(cogo: &Cogo) -> Value {
    cogo.run(&["tree", "--json"]).await.expect(0).json()
}

/// The node at a path of a tree.
pub(crate) fn node<'a>(tree: &'a Value, path: &str) -> &'a Value {
    path.split('/').filter(|_| !path.is_empty()).fold(tree, |node, name| {
        let children = node["children"].as_array().unwrap();
        children.iter().find(|child| child["name"] == name).unwrap_or_else(|| panic!("no {name} in {node}"))
    })
}

/// Path and number of each instance that runs.
fn pids(tree: &Value) -> Vec<(String, Value)> {
    if tree["kind"] == "instance" {
        return vec![(tree["path"].as_str().unwrap().to_owned(), tree["pid"].clone())];
    }
    tree["children"].as_array().unwrap().iter().flat_map(pids).collect()
}

/// Paths of the instances in the order in which the log of the fleet tells of this event.
fn told(log: &str, event: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = lines.filter(|line| line["event"] == event);
    let paths = lines.filter_map(|line| line["agent"].as_str().map(str::to_owned));
    paths.filter(|path| path.matches('/').count() == 2).collect()
}

#[tokio::test]
async fn a_killed_process_is_back_and_nobody_else_is_restarted() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    up(&cogo, &cogo.list_of(&THREE, "")).await;
    let before = tree(&cogo).await;
    assert_eq!((&before["kind"], &before["strategy"]), (&Value::from("root"), &Value::from("one_for_all")));
    assert_eq!(node(&before, "a")["strategy"], "rest_for_one");
    let victim = node(&before, "a/a-one/0")["pid"].clone();

    kill(&victim, Signal::KILL);
    eventually("the process runs again", async || {
        let now = tree(&cogo).await;
        let node = node(&now, "a/a-one/0");
        node["state"] == "running" && node["restarts"] == 1
    })
    .await;

    let after = tree(&cogo).await;
    let back = node(&after, "a/a-one/0");
    assert!(back["pid"] != victim && lives(&back["pid"]) && !lives(&victim), "{back}");
    assert_eq!((&back["last_exit"]["kind"], &back["last_exit"]["reason"]), (&"abnormal".into(), &"signal 9".into()));
    assert!(back["uptime_s"].as_f64().unwrap() < after["uptime_s"].as_f64().unwrap(), "{back}");
    assert_eq!(pids(&after)[1..], pids(&before)[1..]);
    for path in ["", "a", "a/a-one", "a/a-two", "a/a-two/0", "b", "b/b-one/0"] {
        assert_eq!(node(&after, path)["restarts"], 0, "{path}");
    }
    let table = cogo.run(&["tree"]).await.expect(0).stdout;
    assert!(table.contains("a-one/0") && table.contains("signal 9") && table.contains("fleet"), "{table}");
    assert_eq!(watched(&cogo, 2).await, ["root", "root"]);
    cogo.run(&["down"]).await.expect(0);
    let log = fs::read_to_string(cogo.data_dir().join("logs/up.log")).unwrap();
    for event in ["crash", "restart_planned", "restart"] {
        assert_eq!(told(&log, event), ["a/a-one/0"], "{event}");
    }
}

/// The kinds of the first objects of `cogo tree --watch`, which then ends at an interrupt.
async fn watched(cogo: &Cogo, count: usize) -> Vec<String> {
    let mut child = cogo.command(&["tree", "--watch", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut kinds = Vec::new();
    while kinds.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let tree: Value = serde_json::from_str(&line).unwrap();
        kinds.push(tree["kind"].as_str().unwrap().to_owned());
    }
    kill(&Value::from(child.id().unwrap()), Signal::INT);
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
    kinds
}

#[tokio::test]
async fn processes_start_in_order_and_stop_in_reverse() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    // the domain of the first process comes first, with all that stands in it
    let list = [THREE[0], THREE[2], THREE[1]];
    up(&cogo, &cogo.list_of(&list, "")).await;
    cogo.run(&["down"]).await.expect(0);
    let log = fs::read_to_string(cogo.data_dir().join("logs/up.log")).unwrap();
    let order = ["a/a-one/0", "a/a-two/0", "b/b-one/0"];
    assert_eq!(told(&log, "spawn"), order);
    // each is gone before the next is told
    let ends: Vec<String> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["event"] == "stopping" || line["event"] == "terminate")
        .filter(|line| line["agent"].as_str().is_some_and(|agent| agent.matches('/').count() == 2))
        .map(|line| format!("{} {}", line["event"].as_str().unwrap(), line["agent"].as_str().unwrap()))
        .collect();
    let expected: Vec<String> =
        order.iter().rev().flat_map(|path| [format!("stopping {path}"), format!("terminate {path}")]).collect();
    assert_eq!(ends, expected);
    assert!(!cogo.data_dir().join("control.sock").exists());
}
