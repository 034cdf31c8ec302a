//! `cogo schedule`.

use cogo_bus_core::Bus;
use serde_json::{Value, json};

use crate::support::Cogo;

#[tokio::test]
async fn schedules_are_added_changed_listed_and_fired() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let empty = cogo.run(&["schedule", "list"]).await.expect(0);
    assert_eq!((empty.stdout.as_str(), empty.stderr.trim()), ("", "no schedules"));
    let file = cogo.file("request.json", r#"{"root": "/x"}"#);
    let data = format!("@{}", file.display());
    let words =
        ["schedule", "add", "nightly", "30 2 * * *", "rag", "index", "--zone", "Europe/Berlin", "--data", &data];
    assert_eq!(cogo.run(&words).await.expect(0).stdout, "added nightly\n");
    let again = cogo.run(&[&words[..], &["--missed", "run-all", "--catch-up", "3", "--json"]].concat()).await.expect(0);
    assert_eq!(again.json(), json!({"name": "nightly", "tenant": "default", "created": false}));

    Bus::new(database.pool.clone()).fire_due_schedules(10).await.unwrap();
    let listed = cogo.run(&["schedule", "ls", "--json"]).await.expect(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!((&listed[0]["missed"], &listed[0]["catch_up_cap"]), (&json!("run_all"), &json!(3)));
    assert_eq!((&listed[0]["payload"], &listed[0]["route"]["role"]), (&json!({"root": "/x"}), &json!("index")));
    assert!(listed[0]["next_at"].is_string(), "{listed}");
    let table = cogo.run(&["schedule", "list"]).await.expect(0).stdout;
    for expected in ["nightly", "30 2 * * *", "Europe/Berlin", "rag/index/0", "run-all 3"] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
    let other = cogo.run(&["schedule", "list", "--tenant", "acme", "--json"]).await.expect(0).json();
    assert_eq!(other, Value::Array(Vec::new()));
}

#[tokio::test]
async fn schedules_are_paused_resumed_and_removed_once() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    cogo.run(&["schedule", "add", "tick", "* * * * * *", "test", "ping"]).await.expect(0);
    cogo.run(&["schedule", "resume", "tick"]).await.expect(4);
    for (action, state, twice) in [("pause", "paused", 4), ("resume", "resumed", 4), ("remove", "removed", 3)] {
        let done = cogo.run(&["schedule", action, "tick", "--json"]).await.expect(0).json();
        assert_eq!(done["state"], state);
        cogo.run(&["schedule", action, "tick"]).await.expect(twice);
        if action == "pause" {
            assert!(cogo.run(&["schedule", "list"]).await.expect(0).stdout.contains("paused"));
        }
    }
    cogo.run(&["schedule", "pause", "nobody"]).await.expect(3);
}

#[tokio::test]
async fn schedule_that_would_never_fire_is_wrong_usage() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    for (cron, zone) in [("61 * * * *", "UTC"), ("0 0 30 2 *", "UTC"), ("0 0 * * *", "Mars/Olympus")] {
        let refused =
            cogo.run(&["schedule", "add", "x", cron, "test", "ping", "--zone", zone, "--json"]).await.expect(2);
        assert_eq!(refused.problem()["code"], "usage", "{cron} {zone}");
    }
    cogo.run(&["schedule", "add", "x", "0 0 * * *", "test", "ping", "--data", "[]"]).await.expect(2);
    let unnamed = cogo.run(&["schedule", "add", "a b", "0 0 * * *", "test", "ping"]).await.expect(2);
    assert!(unnamed.stderr.contains("letters, digits"), "{unnamed:?}");
}

#[tokio::test]
async fn the_policy_for_missed_runs_is_taken_as_it_is_listed() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    for policy in ["run-all", "run_all", "run_once", "skip"] {
        cogo.run(&["schedule", "add", "x", "0 0 * * *", "test", "ping", "--missed", policy]).await.expect(0);
        let listed = cogo.run(&["schedule", "list", "--json"]).await.expect(0).json();
        assert_eq!(listed[0]["missed"], policy.replace('-', "_"));
    }
}
