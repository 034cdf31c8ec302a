//! Words that make no sense, help, pipes and databases that are not there.

use std::process::Stdio;

use crate::support::{Cogo, ended};

#[tokio::test]
async fn wrong_usage_is_exit_2_for_people_and_for_programs() {
    let cogo = Cogo::without_database();
    let ended = cogo.run(&["frobnicate"]).await.expect(2);
    assert!(ended.stderr.contains("error:") && ended.stdout.is_empty());
    let ended = cogo.run(&["send", "rag", "--json"]).await.expect(2);
    assert_eq!(ended.problem()["code"], "usage");
    let ended = cogo.run(&["send", "Rag", "embed", "--json"]).await.expect(2);
    assert!(ended.problem()["detail"].as_str().unwrap().contains("service"), "{ended:?}");
}

#[tokio::test]
async fn help_and_version_are_answers() {
    let cogo = Cogo::without_database();
    let help = cogo.run(&["trace", "--help"]).await.expect(0);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("--json"));
    let version = cogo.run(&["version", "--json"]).await.expect(0);
    assert_eq!(version.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn no_database_and_no_fleet_is_exit_7_with_a_next_step() {
    let cogo = Cogo::without_database();
    for command in [&["agents"][..], &["dlq", "ls"], &["status"], &["bench", "idle", "--seconds", "1"]] {
        let ended = cogo.run(command).await.expect(7);
        assert!(ended.stderr.contains("error: ") && ended.stderr.contains("hint: "), "{ended:?}");
    }
    for command in [&["tree"][..], &["drain", "rag"], &["restart", "rag"], &["scale", "rag-embed", "2"]] {
        let ended = cogo.run(command).await.expect(7);
        assert!(ended.stderr.contains("No fleet is up") && ended.stderr.contains("`cogo up`"), "{ended:?}");
    }
    let ended = cogo.run(&["down", "--json"]).await.expect(0);
    assert_eq!(ended.json()["was_up"], false);
}

#[tokio::test]
async fn a_dead_database_is_named_without_its_password() {
    let cogo = Cogo::on("postgres://cogo:hunter2@127.0.0.1:1/cogo");
    let ended = cogo.run(&["agents", "--json"]).await.expect(7);
    assert_eq!(ended.problem()["code"], "unavailable");
    assert!(!ended.stderr.contains("hunter2"));
    let ended = cogo.run(&["doctor", "--json"]).await.expect(1);
    assert!(ended.json()["checks"].as_array().unwrap().iter().any(|check| check["name"] == "database"));
    assert!(!ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"));
}

#[tokio::test]
async fn an_address_that_leads_nowhere_is_told_with_what_to_do() {
    let database = cogo_test_support::empty_database().await;
    let mut url = reqwest::Url::parse(&database.url).unwrap();
    url.set_path("no_such_database");
    let missing = Cogo::on(url.as_str()).run(&["dlq", "ls"]).await.expect(7).stderr;
    assert!(missing.contains("`createdb no_such_database`") && !missing.contains("at line"), "{missing}");
    let status = Cogo::on(url.as_str()).run(&["status"]).await.expect(7).stdout;
    assert!(status.contains("createdb no_such_database"), "{status}");

    url.set_username("nobody_of_that_name").unwrap();
    let stranger = Cogo::on(url.as_str()).run(&["dlq", "ls"]).await.expect(5).stderr;
    assert!(stranger.contains("DATABASE_URL") && !stranger.contains("at line"), "{stranger}");

    for address in ["mysql://a@127.0.0.1/x", "cogo", "postgres://a@:x"] {
        let refused = Cogo::on(address).run(&["dlq", "ls"]).await.expect(2).stderr;
        assert!(refused.contains("postgres://user:password@host:5432/cogo"), "{refused}");
    }
}

#[tokio::test]
async fn usage_does_not_ask_for_what_a_variable_gives() {
    let cogo = Cogo::on("postgres://127.0.0.1:1/cogo");
    for words in [&["dlq", "show", "x"][..], &["dlq", "show"], &["trace"]] {
        let told = cogo.run(words).await.expect(2).stderr;
        assert!(!told.contains("--database-url"), "{told}");
    }
    let mut bare = cogo.command(&[]);
    let told = ended(bare.output().await.unwrap()).expect(2).stderr;
    assert!(!told.contains("bench-worker") && !told.contains("launch"), "{told}");
}

#[tokio::test]
async fn a_front_door_that_is_not_there_is_exit_7() {
    let cogo = Cogo::without_database();
    let ended = cogo.run(&["ask", "why?", "--url", "http://127.0.0.1:1", "--json"]).await.expect(7);
    assert!(ended.problem()["hint"].as_str().unwrap().contains("cogo up"));
    cogo.run(&["index", "/no/such/place"]).await.expect(3);
    cogo.run(&["ask", "why?", "--url", "ftp://x"]).await.expect(2);
}

#[tokio::test]
async fn a_reader_that_left_is_no_error() {
    let cogo = Cogo::without_database();
    let mut child = cogo.command(&["version"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = ended(child.wait_with_output().await.unwrap());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}
