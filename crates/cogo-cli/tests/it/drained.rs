//! What an operator drained stays down, whatever happens around it, until it is restarted by name.

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    fleet::{kill, lives},
    support::{Cogo, eventually},
    tree::{node, tree, up},
};

async fn run(cogo: &Cogo, command: &[&str]) -> Value {
    cogo.run(&[command, &["--json"]].concat()).await.expect(0).json()
}

/// State of a node, and whether it is drained.
fn standing<'a>(tree: &'a Value, path: &str) -> (&'a str, bool) {
    let node = node(tree, path);
    (node["state"].as_str().unwrap(), node["drained"].as_bool().unwrap())
}

#[tokio::test]
async fn a_restart_of_its_domain_does_not_bring_a_drained_process_back() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list = [("a-one", "answering_process", "intensity = 0"), ("a-two", "answering_process", "")];
    up(&cogo, &cogo.list_of(&list, "")).await;
    run(&cogo, &["drain", "a-two"]).await;
    let before = tree(&cogo).await;
    assert_eq!(standing(&before, "a/a-two"), ("stopped", true));
    // one end is too many for a-one, so the domain starts it and the rest behind it anew
    kill(&node(&before, "a/a-one/0")["pid"], Signal::KILL);
    eventually("a-one runs again", async || {
        let now = tree(&cogo).await;
        let (process, instance) = (node(&now, "a/a-one"), node(&now, "a/a-one/0"));
        process["restarts"] == 1 && instance["state"] == "running" && instance["pid"].is_number()
    })
    .await;
    let after = tree(&cogo).await;
    assert_eq!(standing(&after, "a/a-two"), ("stopped", true));
    assert_eq!((standing(&after, "a/a-two/0").0, &node(&after, "a/a-two/0")["pid"]), ("stopped", &Value::Null));

    // it is meant to be down, so nothing is missing
    eventually("the fleet is ready", async || cogo.run(&["status"]).await.code == 0).await;
    let status = run(&cogo, &["status"]).await;
    let states: Vec<&str> =
        status["processes"].as_array().unwrap().iter().map(|p| p["state"].as_str().unwrap()).collect();
    assert_eq!((&status["ready"], states), (&Value::Bool(true), vec!["ready", "drained"]));
    let table = cogo.run(&["tree"]).await.expect(0).stdout;
    assert!(table.contains("a-two") && table.contains("drained"), "{table}");

    run(&cogo, &["restart", "a-two"]).await;
    assert_eq!(standing(&tree(&cogo).await, "a/a-two/0"), ("running", false));
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn a_drained_instance_of_a_pool_is_neither_waited_for_nor_started_by_scaling() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list = [("a-one", "answering_process", "pool = { max = 4 }\nintensity = 0")];
    up(&cogo, &cogo.list_of(&list, "")).await;
    run(&cogo, &["scale", "a-one", "3"]).await;
    let before = tree(&cogo).await;
    run(&cogo, &["drain", "a-one/2"]).await;
    assert!(!lives(&node(&before, "a/a-one/2")["pid"]));
    // it is one of the three, and stays down; a fourth one comes
    assert_eq!(run(&cogo, &["scale", "a-one", "3"]).await["changed"], false);
    run(&cogo, &["scale", "a-one", "4"]).await;
    let scaled = tree(&cogo).await;
    assert_eq!(standing(&scaled, "a/a-one/2"), ("stopped", true));
    assert_eq!(standing(&scaled, "a/a-one/3"), ("running", false));

    // the process gives up and is started anew as a whole; those that were added are put back as they were
    kill(&node(&scaled, "a/a-one/0")["pid"], Signal::KILL);
    eventually("the other three run again", async || {
        let now = tree(&cogo).await;
        let process = node(&now, "a/a-one");
        let running =
            process["children"].as_array().unwrap().iter().filter(|child| child["state"] == "running").count();
        process["restarts"] == 1 && running == 3 && process["children"].as_array().unwrap().len() == 4
    })
    .await;
    assert_eq!(standing(&tree(&cogo).await, "a/a-one/2"), ("stopped", true));
    let restarted = run(&cogo, &["restart", "a-one/2"]).await;
    assert_eq!(restarted["instances"][0]["state"], "running");
    assert_eq!(standing(&tree(&cogo).await, "a/a-one/2"), ("running", false));
    cogo.run(&["down"]).await.expect(0);
}
