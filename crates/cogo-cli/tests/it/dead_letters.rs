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
    assert_eq!(replayed(&["--error", "%tree"]).await, 0, "a text stands for itself");
    assert_eq!(replayed(&["--error", "such tree", "--json"]).await, 2);
    assert_eq!(replayed(&["--all", "--limit", "1"]).await, 1);
    assert_eq!(replayed(&["--all"]).await, 1);
    assert_eq!(replayed(&["--all"]).await, 0);
    cogo.run(&["dlq", "replay"]).await.expect(2);
    cogo.run(&["dlq", "replay", "--all", "--rate", "0"]).await.expect(2);
}

#[tokio::test]
async fn reasons_are_taken_literally_and_causes_of_groups_find_what_they_stand_for() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    for reason in ["it-failed on host 17", "it-failed on host 4", "disk 100% full", "disk 100 km full", "a_b", "axb"] {
        cogo.run(&["send", "rag", "embed"]).await.expect(0);
        give_up(&bus, &claim_next(&bus, &routes::EMBED).await, reason).await;
    }
    let replayed = async |arguments: &[&str]| {
        let ended = cogo.run(&[&["dlq", "replay"], arguments].concat()).await.expect(0);
        (ended.stdout.lines().count(), ended.stderr.trim().to_owned())
    };
    assert_eq!(replayed(&["--error", "100%"]).await.0, 1);
    assert_eq!(replayed(&["--error", "a_b"]).await.0, 1);
    let groups = cogo.run(&["dlq", "ls", "--grouped"]).await.expect(0).stdout;
    assert!(groups.contains("it-failed on host <n>"), "{groups}");
    assert_eq!(replayed(&["--error", "it-failed on host <n>"]).await.0, 2);

    let (none, told) = replayed(&["--error", "it-failed on host <n>", "--route", "rag/embed"]).await;
    assert!(none == 0 && told.contains("--error \"it-failed on host <n>\"") && told.contains("rag/embed/0"), "{told}");
    let (none, told) = replayed(&["--error", "axb", "--route", "gateway/chat"]).await;
    assert!(none == 0 && told.contains("--route gateway/chat/0") && !told.contains("--error"), "{told}");
}

#[tokio::test]
async fn a_list_that_is_cut_says_so() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    for reason in ["no such tree", "no such file", "no such host"] {
        cogo.run(&["send", "rag", "embed"]).await.expect(0);
        give_up(&bus, &claim_next(&bus, &routes::EMBED).await, reason).await;
    }
    for list in [&["dlq", "ls"][..], &["dlq", "ls", "--json"], &["dlq", "ls", "--grouped"]] {
        let cut = cogo.run(&[list, &["--limit", "2"]].concat()).await.expect(0);
        assert_eq!(cut.stderr.trim(), "2 of 3, --limit for more", "{cut:?}");
        let whole = cogo.run(&[list, &["--limit", "3"]].concat()).await.expect(0);
        assert_eq!(whole.stderr, "", "{whole:?}");
    }
}

#[tokio::test]
async fn the_words_of_a_worker_do_not_steer_the_terminal() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let hostile = "bad\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\nid          forged\r";
    let id = cogo.run(&["send", "rag", "embed"]).await.expect(0).stdout;
    give_up(&bus, &claim_next(&bus, &routes::EMBED).await, hostile).await;
    for words in [
        &["dlq", "show", id.trim()][..],
        &["dlq", "ls"],
        &["dlq", "ls", "--grouped"],
        &["trace", id.trim()],
        &["tail", "--no-follow"],
    ] {
        let told = cogo.run(words).await.expect(0).stdout;
        assert!(told.contains("bad"), "{words:?}: {told}");
        let steers = |character: char| character.is_control() && character != '\n';
        assert!(!told.contains(steers), "{words:?}: {told:?}");
        assert!(!told.contains("\nid          forged"), "{words:?}: {told}");
    }
    let exact = cogo.run(&["dlq", "show", id.trim(), "--json"]).await.expect(0).json();
    assert_eq!(exact["error"], hostile);

    let arguments = ["send", "rag", "embed", "--wait"];
    let given_up = async { give_up(&bus, &claim_next(&bus, &routes::EMBED).await, hostile).await };
    let (ended, ()) = tokio::join!(cogo.run(&arguments), given_up);
    let told = ended.expect(1).stderr;
    assert!(told.contains("bad") && !told.contains('\u{1b}') && !told.contains('\u{9b}'), "{told:?}");
    let done =
        async { complete(&bus, &claim_next(&bus, &routes::EMBED).await, serde_json::json!({"a": "\u{9b}2J"})).await };
    let (ended, ()) = tokio::join!(cogo.run(&arguments), done);
    let told = ended.expect(0).stdout;
    assert!(told.contains("\"2J\"") && !told.contains('\u{9b}'), "{told:?}");
}
