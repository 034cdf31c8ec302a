//! `cogo drain`, `cogo restart` and `cogo scale` on a fleet of stand-ins.

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    fleet::{kill, lives},
    support::{Cogo, eventually},
    tree::{node, tree, up},
};

/// Paths of the instances that a command answered, with their states.
fn instances(changed: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = changed["instances"].as_array().unwrap();
    all.iter().map(|instance| (text(&instance["path"]), text(&instance["state"]))).collect()
}

fn running(paths: &[&str]) -> Vec<(String, String)> {
    paths.iter().map(|path| ((*path).to_owned(), "running".to_owned())).collect()
}

async fn run(cogo: &Cogo, command: &[&str]) -> Value {
    cogo.run(&[command, &["--json"]].concat()).await.expect(0).json()
}

#[tokio::test]
async fn a_pool_grows_and_shrinks_and_uses_low_slots_again() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list = [("a-one", "answering_process", "pool = { max = 3 }"), ("b-one", "answering_process", "")];
    up(&cogo, &cogo.list_of(&list, "")).await;
    let (zero, one, two) = ("a/a-one/0", "a/a-one/1", "a/a-one/2");
    let grown = run(&cogo, &["scale", "a-one", "3"]).await;
    assert_eq!((instances(&grown), &grown["changed"]), (running(&[zero, one, two]), &Value::Bool(true)));
    let first = tree(&cogo).await;
    assert_eq!((&node(&first, zero)["dynamic"], &node(&first, two)["dynamic"]), (&false.into(), &true.into()));
    let status = run(&cogo, &["status"]).await;
    let names: Vec<&str> =
        status["processes"].as_array().unwrap().iter().map(|process| process["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a-one", "a-one@1", "a-one@2", "b-one"]);
    assert_eq!(run(&cogo, &["scale", "a-one", "3"]).await["changed"], false);

    // one instance alone; the others keep their processes
    let restarted = run(&cogo, &["restart", "a-one/1"]).await;
    assert_eq!(instances(&restarted), running(&[one]));
    let second = tree(&cogo).await;
    assert_ne!(node(&second, one)["pid"], node(&first, one)["pid"]);
    for path in [zero, two, "b/b-one/0"] {
        assert_eq!(node(&second, path)["pid"], node(&first, path)["pid"], "{path}");
    }
    assert!(!lives(&node(&first, one)["pid"]));

    assert_eq!(instances(&run(&cogo, &["scale", "a-one", "1"]).await), running(&[zero]));
    assert!(!lives(&node(&second, one)["pid"]) && !lives(&node(&second, two)["pid"]));
    assert_eq!(instances(&run(&cogo, &["scale", "a-one", "2"]).await), running(&[zero, one]));

    for (words, code, expected) in [
        (["a-one", "4"], 4, "1 to 3"),
        (["a-one", "0"], 4, "1 to 3"),
        (["b-one", "2"], 4, "may have 1 instances"),
        (["a", "2"], 4, "not a process"),
        (["nobody", "2"], 3, "a-one"),
        (["a-one", "many"], 2, "many"),
    ] {
        let ended = cogo.run(&["scale", words[0], words[1]]).await.expect(code);
        assert!(ended.stderr.contains(expected) && ended.stderr.contains("hint: ") != (code == 2), "{ended:?}");
    }
    cogo.run(&["down"]).await.expect(0);
    assert!(!lives(&node(&first, zero)["pid"]));
}

#[tokio::test]
async fn what_is_drained_stays_down_until_it_is_restarted() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list = [
        ("a-one", "answering_process", "pool = { max = 2, start = 2 }"),
        ("a-two", "answering_process", ""),
        ("b-one", "answering_process", ""),
    ];
    up(&cogo, &cogo.list_of(&list, "")).await;
    let before = tree(&cogo).await;
    let stopped = |path: &str| (path.to_owned(), "stopped".to_owned());

    let drained = run(&cogo, &["drain", "a-one/1"]).await;
    assert_eq!(instances(&drained), [stopped("a/a-one/1")]);
    assert_eq!(drained["instances"][0]["last_exit"], "stopped");
    assert!(!lives(&node(&before, "a/a-one/1")["pid"]));
    assert_eq!(run(&cogo, &["drain", "a-one/1"]).await["changed"], false);
    // a whole process is restarted, drained instances of it included
    assert_eq!(instances(&run(&cogo, &["restart", "a-one"]).await), running(&["a/a-one/0", "a/a-one/1"]));

    run(&cogo, &["drain", "a-two"]).await;
    let after = tree(&cogo).await;
    assert_eq!(
        (&node(&after, "a/a-two")["state"], &node(&after, "a/a-one")["state"]),
        (&"stopped".into(), &"running".into())
    );
    let scaled = cogo.run(&["scale", "a-two", "1", "--json"]).await.expect(4);
    assert!(scaled.problem()["hint"].as_str().unwrap().contains("cogo restart a-two"), "{scaled:?}");
    assert_eq!(instances(&run(&cogo, &["restart", "a-two"]).await), running(&["a/a-two/0"]));

    // a domain as a whole; the other one does not notice
    let drained = run(&cogo, &["drain", "a"]).await;
    assert!(instances(&drained).iter().all(|(_, state)| state == "stopped"), "{drained}");
    let within = cogo.run(&["restart", "a-one"]).await.expect(4);
    assert!(within.stderr.contains("`cogo restart a`"), "{within:?}");
    let whole = ["a/a-one/0", "a/a-one/1", "a/a-two/0"];
    assert_eq!(instances(&run(&cogo, &["restart", "a"]).await), running(&whole));
    assert_eq!(node(&tree(&cogo).await, "b/b-one/0")["pid"], node(&before, "b/b-one/0")["pid"]);
    for command in [["drain", "nobody"], ["restart", "a-one/7"], ["drain", "a-one/7"]] {
        let ended = cogo.run(&command).await.expect(3);
        assert!(ended.stderr.contains("hint: "), "{ended:?}");
    }
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn a_process_that_gave_up_comes_back_with_all_its_instances() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let list =
        [("a-one", "answering_process", "pool = { max = 3 }\nintensity = 0"), ("b-one", "answering_process", "")];
    up(&cogo, &cogo.list_of(&list, "")).await;
    run(&cogo, &["scale", "a-one", "3"]).await;
    let before = tree(&cogo).await;
    kill(&node(&before, "a/a-one/2")["pid"], Signal::KILL);
    // one restart is too many for it, so its domain starts it anew, and its pool is filled again
    eventually("three instances run again", async || {
        let now = tree(&cogo).await;
        let process = node(&now, "a/a-one");
        let instances = process["children"].as_array().unwrap();
        process["restarts"] == 1 && instances.len() == 3 && instances.iter().all(|child| child["state"] == "running")
    })
    .await;
    let after = tree(&cogo).await;
    assert_ne!(node(&after, "a/a-one/0")["pid"], node(&before, "a/a-one/0")["pid"]);
    assert_eq!(node(&after, "b/b-one/0")["pid"], node(&before, "b/b-one/0")["pid"]);
    cogo.run(&["down"]).await.expect(0);
}

#[tokio::test]
async fn a_pool_tells_why_it_has_the_size_that_it_has() {
    let database = cogo_test_support::empty_database().await;
    let cogo = Cogo::on(&database.url);
    let route = "pool = { max = 3 }\nroute = { service = \"a\", role = \"one\", shard = 0 }";
    up(&cogo, &cogo.list_of(&[("a-one", "answering_process", route), ("b-one", "answering_process", "")], "")).await;
    eventually("somebody decides about it", async || {
        let shown = cogo.run(&["scale", "a-one", "--json"]).await;
        shown.code == 0 && shown.json()["owner"].is_string()
    })
    .await;
    run(&cogo, &["scale", "a-one", "2"]).await;
    eventually("what the operator did is written down", async || {
        let shown = run(&cogo, &["scale", "a-one"]).await;
        let newest = &shown["decisions"][0];
        shown["desired"] == 2 && newest["to_count"] == 2 && newest["sentence"].as_str().unwrap().contains("operator")
    })
    .await;
    let text = cogo.run(&["scale", "a-one"]).await.expect(0).stdout;
    assert!(text.starts_with("a-one: 2 of 1 to 3, decided by cogo-up#") && text.contains("1 -> 2"), "{text}");
    let unknown = cogo.run(&["scale", "b-one"]).await.expect(3);
    assert!(unknown.stderr.contains("a-one"), "{unknown:?}");
    cogo.run(&["down"]).await.expect(0);
}
