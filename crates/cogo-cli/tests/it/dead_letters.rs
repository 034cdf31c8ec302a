//! `cogo dlq`.

use cogo_bus_core::Bus;
use cogo_contracts::routes;
use serde_json::Value;

use crate::support::{Cogo, claim_next, complete, give_up};

#[tokio::test]
async fn dead_letters_are_listed_shown_and_replayed_once() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let empty = cogo.run(&["dlq", "ls"]).await.expect(0);
    assert_eq!((empty.stdout.as_str(), empty.stderr.trim()), ("", "no dead letters"));
    assert_eq!(cogo.run(&["dlq", "ls", "--json"]).await.expect(0).json(), Value::Array(Vec::new()));

    let id = cogo.run(&["send", "rag", "embed", "--data", r#"{"root":"/x"}"#]).await.expect(0).stdout;
    let id = id.trim();
    cogo.run(&["dlq", "show", id]).await.expect(4);
    give_up(&bus, &claim_next(&bus, &routes::EMBED).await, "no such tree").await;

    let listed = cogo.run(&["dlq", "ls", "--json"]).await.expect(0).json();
    assert_eq!((listed[0]["id"].as_str(), listed[0]["error"].as_str()), (Some(id), Some("no such tree")));
    let table = cogo.run(&["dlq", "ls"]).await.expect(0).stdout;
    assert!(table.contains(id) && table.contains("rag/embed/0") && table.contains("no such tree"), "{table}");
    let shown = cogo.run(&["dlq", "show", id]).await.expect(0).stdout;
    assert!(shown.contains("no such tree") && shown.contains("\"root\": \"/x\""), "{shown}");
    assert!(shown.contains("failed        test/0#1: no such tree"), "its attempts: {shown}");
    let shown = cogo.run(&["dlq", "show", id, "--json"]).await.expect(0).json();
    let attempt = &shown["history"][0];
    assert_eq!((attempt["attempt"].as_i64(), attempt["outcome"].as_str()), (Some(1), Some("failed")));

    let replay = cogo.run(&["dlq", "replay", id, "--json"]).await.expect(0).json();
    assert_eq!(replay["dead_letter"].as_str(), Some(id));
    let again = claim_next(&bus, &routes::EMBED).await;
    assert_eq!(Some(again.id.to_string().as_str()), replay["replay"].as_str());
    complete(&bus, &again, serde_json::json!({})).await;
    let twice = cogo.run(&["dlq", "replay", id, "--json"]).await.expect(4);
    assert_eq!(twice.problem()["code"], "conflict");
    let listed = cogo.run(&["dlq", "ls", "--json"]).await.expect(0).json();
    assert_eq!(listed[0]["replayed_by"], replay["replay"]);
}

#[tokio::test]
async fn dead_letters_are_grouped_by_route_and_cause() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let empty = cogo.run(&["dlq", "ls", "--grouped"]).await.expect(0);
    assert_eq!((empty.stdout.as_str(), empty.stderr.trim()), ("", "no dead letters"));
    assert_eq!(cogo.run(&["dlq", "ls", "--grouped", "--json"]).await.expect(0).json(), Value::Array(Vec::new()));
    let mut newest = String::new();
    for (service, role, route, reason) in [
        ("rag", "embed", &routes::EMBED, "Model timed out after 3 s"),
        ("gateway", "chat", &routes::CHAT, "Model timed out after 5 s"),
        ("rag", "embed", &routes::EMBED, "Model timed out after 12 s\nat line 9"),
    ] {
        newest = cogo.run(&["send", service, role]).await.expect(0).stdout.trim().to_owned();
        give_up(&bus, &claim_next(&bus, route).await, reason).await;
    }
    let groups = cogo.run(&["dlq", "ls", "--grouped", "--json"]).await.expect(0).json();
    let told: Vec<_> = groups
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["service"].as_str(), group["error"].as_str(), group["count"].as_i64()))
        .collect();
    let cause = Some("Model timed out after <n> s");
    assert_eq!(told, [(Some("rag"), cause, Some(2)), (Some("gateway"), cause, Some(1))]);
    assert_eq!(groups[0]["sample_id"].as_str(), Some(newest.as_str()));
    assert!(groups[0]["first_seen"].as_str() < groups[0]["last_seen"].as_str());
    let table = cogo.run(&["dlq", "ls", "--grouped", "--limit", "1"]).await.expect(0).stdout;
    assert!(table.contains("rag/embed/0") && table.contains(&newest) && !table.contains("gateway"), "{table}");
}

#[tokio::test]
async fn unknown_dead_letters_are_exit_3() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    for action in ["show", "replay"] {
        cogo.run(&["dlq", action, "01999999-0000-7000-8000-000000000000"]).await.expect(3);
    }
}

#[tokio::test]
async fn many_dead_letters_are_replayed_by_route_reason_or_all_each_once() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let none = cogo.run(&["dlq", "replay", "--all"]).await.expect(0);
    assert_eq!((none.stdout.as_str(), none.stderr.trim()), ("", "no dead letter to replay"));
    for (service, role, route, reason) in [
        ("rag", "embed", &routes::EMBED, "Model timed out after 3 s"),
        ("rag", "embed", &routes::EMBED, "no such tree"),
        ("gateway", "chat", &routes::CHAT, "Model timed out after 9 s"),
        ("gateway", "chat", &routes::CHAT, "no such tree"),
        ("gateway", "chat", &routes::CHAT, "the tree is gone"),
    ] {
        cogo.run(&["send", service, role]).await.expect(0);
        give_up(&bus, &claim_next(&bus, route).await, reason).await;
    }
    let replayed = async |arguments: &[&str]| {
        let ended = cogo.run(&[&["dlq", "replay"], arguments].concat()).await.expect(0);
        ended.stdout.lines().count()
    };
    assert_eq!(replayed(&["--route", "rag/embed", "--error", "timed out", "--rate", "0.5"]).await, 1);
    assert_eq!(replayed(&["--error", "tree%"]).await, 0, "a pattern fits as a whole");
    assert_eq!(replayed(&["--error", "%tree", "--json"]).await, 2);
    assert_eq!(replayed(&["--all", "--limit", "1"]).await, 1);
    assert_eq!(replayed(&["--all"]).await, 1);
    assert_eq!(replayed(&["--all"]).await, 0);
    cogo.run(&["dlq", "replay"]).await.expect(2);
    cogo.run(&["dlq", "replay", "--all", "--rate", "0"]).await.expect(2);
}
