//! Structural questions.

use std::fs;

use cogo_contracts::{ChatMode, ChatRequest};
use cogo_rag_core::sync;

use crate::support::{COLLECTION, TENANT, bench, check_citations, cited, fixture, index, indexed};

#[tokio::test]
async fn importers_are_listed_with_their_lines() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("Who imports `Lease`?").await;
    assert_eq!(reply.mode, ChatMode::Graph);
    check_citations(&reply, &fixture());
    let expected = ["src/lib.rs:9", "src/report.rs:6", "src/worker.rs:2", "tests/expiry.rs:2"];
    for place in expected {
        assert!(cited(&reply).iter().any(|found| found == place), "{place} is not in {:?}", cited(&reply));
    }
    assert!(reply.answer.contains("`depot::lease::Lease` (struct, src/lease.rs:"), "{}", reply.answer);
    assert!(reply.answer.contains("There may be more: 1 unresolved reference mentions `Lease`."), "{}", reply.answer);
    assert_eq!((reply.degraded, reply.model), (None, None));
}

#[tokio::test]
async fn impact_names_dependents_by_distance_and_tests() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("what breaks if src/clock.rs changes?").await;
    assert_eq!(reply.mode, ChatMode::Graph);
    check_citations(&reply, &fixture());
    let direct = reply.answer.find("Directly:\n- src/lease.rs:2").unwrap();
    let tests = reply.answer.find("Tests to run:\n- tests/expiry.rs:").unwrap();
    assert!(direct < tests, "{}", reply.answer);
    assert!(reply.answer.contains("fresh_lease_is_not_expired"), "{}", reply.answer);
    let worker = reply.answer.find("src/worker.rs:2").unwrap();
    assert!(reply.answer[..worker].contains("In 2 steps:"), "{}", reply.answer);
}

#[tokio::test]
async fn imports_of_a_file_come_with_what_leads_nowhere() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("What does src/worker.rs import?").await;
    assert_eq!(
        (reply.mode, cited(&reply)),
        (ChatMode::Graph, vec!["src/worker.rs:2".to_owned(), "src/worker.rs:3".to_owned()])
    );
    check_citations(&reply, &fixture());
    assert!(reply.answer.contains("lead nowhere known:\n- src/worker.rs:3"), "{}", reply.answer);
}

#[tokio::test]
async fn unused_definition_is_cited_itself() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("is `evening_report` used anywhere?").await;
    assert_eq!(reply.mode, ChatMode::Graph);
    assert!(
        reply.answer.starts_with("Nothing in depot imports or uses") || reply.answer.contains("whole module"),
        "{}",
        reply.answer
    );
    assert!(!reply.citations.is_empty());
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn ambiguous_name_lists_its_candidates() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("who uses settle?").await;
    assert_eq!(
        (reply.mode, cited(&reply)),
        (ChatMode::Graph, vec!["src/east.rs:3".to_owned(), "src/west.rs:3".to_owned()])
    );
    assert!(reply.answer.starts_with("`settle` may be 2 different things"), "{}", reply.answer);
    assert!(reply.answer.contains("depot::east::settle") && reply.answer.contains("depot::west::settle"));
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn same_tree_twice_asks_for_the_collection() {
    let database = indexed().await;
    index(&database.pool, "copy", &fixture()).await;
    let bench = bench(&database.pool, None);
    let reply = bench.ask("who imports src/clock.rs?").await;
    assert!(reply.answer.contains("collection copy") && reply.answer.contains("collection depot"), "{}", reply.answer);
    let collections: Vec<_> = reply.citations.iter().map(|citation| citation.collection.as_str()).collect();
    assert_eq!(collections, ["copy", "depot"]);
    let request = ChatRequest { question: "who imports src/clock.rs?".to_owned(), collection: Some("copy".to_owned()) };
    let asked = cogo_contracts::Assignment::default();
    let reply = bench.chat.answer(&request, &crate::support::asked(&asked)).await.unwrap();
    assert_eq!(cited(&reply), ["src/lease.rs:2"], "{}", reply.answer);
}

#[tokio::test]
async fn long_lists_share_their_room_and_count_the_rest() {
    let database = cogo_test_support::database().await;
    let tree = tempfile::tempdir().unwrap();
    let write = |path: String, text: &str| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("pkg/__init__.py".to_owned(), "");
    write("pkg/base.py".to_owned(), "def base():\n    return 1\n");
    for number in 0..40 {
        let text = "from pkg.base import base\n\n\ndef run():\n    return base()\n";
        write(format!("pkg/user_{number:02}.py"), text);
        let text = format!("from pkg.base import base\n\n\ndef test_{number}():\n    assert base()\n");
        write(format!("tests/test_{number:02}.py"), &text);
    }
    index(&database.pool, COLLECTION, tree.path()).await;
    let bench = bench(&database.pool, None);
    let reply = bench.ask("who uses pkg/base.py?").await;
    assert!(reply.answer.contains("used at 80 places in 80 files; the first one of each file:"), "{}", reply.answer);
    assert!(reply.answer.contains("\n- and 55 more places"), "{}", reply.answer);
    assert_eq!((reply.citations.len(), cited(&reply)[0].as_str()), (25, "pkg/user_00.py:1"));
    let reply = bench.ask("what breaks if pkg/base.py changes?").await;
    let tests = reply.answer.find("Tests to run:").unwrap();
    assert!(reply.answer[tests..].contains("- tests/test_00.py:4-5 (test_0) ["), "{}", reply.answer);
    assert!(reply.answer[tests..].contains("- and 28 more places"), "{}", reply.answer);
    check_citations(&reply, tree.path());
}

#[tokio::test]
async fn name_of_a_definition_beats_the_same_name_in_tests() {
    let database = cogo_test_support::database().await;
    let tree = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("pkg/__init__.py", ""),
        ("pkg/route.py", "class Route:\n    pass\n"),
        ("pkg/user.py", "from pkg.route import Route\n"),
        ("tests/test_route.py", "class Route:\n    pass\n"),
    ] {
        fs::create_dir_all(tree.path().join(path).parent().unwrap()).unwrap();
        fs::write(tree.path().join(path), text).unwrap();
    }
    index(&database.pool, COLLECTION, tree.path()).await;
    let reply = bench(&database.pool, None).ask("who imports Route?").await;
    assert_eq!(cited(&reply), ["pkg/user.py:1"], "{}", reply.answer);
}

#[tokio::test]
async fn cycles_are_shown_with_the_references_that_close_them() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("are there import cycles?").await;
    assert_eq!(reply.mode, ChatMode::Graph);
    assert!(reply.answer.contains("Between tools/label.py and tools/pack.py:"), "{}", reply.answer);
    assert_eq!(reply.citations.len(), 2, "{}", reply.answer);
    check_citations(&reply, &fixture());
}

#[tokio::test]
async fn unknown_target_is_searched_for() {
    let database = indexed().await;
    let reply = bench(&database.pool, None).ask("who imports `Zeppelin`?").await;
    assert_eq!(reply.mode, ChatMode::Abstain, "{}", reply.answer);
    assert!(reply.answer.contains("Zeppelin"), "{}", reply.answer);
}

#[tokio::test]
async fn places_whose_content_moved_on_are_not_cited() {
    let database = cogo_test_support::database().await;
    let tree = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        fs::create_dir_all(tree.path().join(path).parent().unwrap()).unwrap();
        fs::write(tree.path().join(path), text).unwrap();
    };
    write("pkg/__init__.py", "");
    write("pkg/base.py", "def base():\n    return 1\n");
    write("pkg/first.py", "from pkg.base import base\n");
    write("pkg/second.py", "from pkg.base import base\n");
    index(&database.pool, COLLECTION, tree.path()).await;
    // the text index is ahead of the graph
    write("pkg/second.py", "# moved down\n\nfrom pkg.base import base\n");
    sync(&database.pool, TENANT, COLLECTION, tree.path(), |_| {}).await.unwrap();
    let reply = bench(&database.pool, None).ask("who imports pkg/base.py?").await;
    assert_eq!(cited(&reply), ["pkg/first.py:1"], "{}", reply.answer);
    assert!(reply.answer.contains("- pkg/second.py:1"), "{}", reply.answer);
    assert!(reply.answer.contains("1 place without a citation"), "{}", reply.answer);
    check_citations(&reply, tree.path());
}
