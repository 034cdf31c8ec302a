//! `cogo trace`.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, Failure};
use cogo_contracts::{NewMessage, routes};
use serde_json::json;

use crate::support::{Cogo, claim_next, complete};

#[tokio::test]
async fn a_task_is_drawn_from_any_of_its_messages() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let root = cogo.run(&["send", "orchestrator", "decide"]).await.expect(0).stdout.trim().to_owned();
    let claimed = claim_next(&bus, &routes::DECIDE).await;
    let follow_up = NewMessage::new(routes::CHAT, None, json!({}));
    let completion = Completion { follow_ups: vec![follow_up], ..Completion::default() };
    assert!(bus.complete(&claimed.fence(), "test/0#1", &completion).await.unwrap());

    let open = cogo.run(&["trace", &root]).await.expect(0).stdout;
    assert!(open.contains("running in") && open.contains("  gateway/chat") && open.contains("queued"), "{open}");

    let child = claim_next(&bus, &routes::CHAT).await;
    complete(&bus, &child, json!({"answer": "42"})).await;
    for id in [root.clone(), child.id.to_string()] {
        let picture = cogo.run(&["trace", &id]).await.expect(0).stdout;
        assert!(picture.contains(&format!("task {root}")), "{picture}");
        assert!(picture.contains("2 steps") && picture.contains('█') && !picture.contains('\u{1b}'), "{picture}");
        assert!(picture.lines().all(|line| line.chars().count() <= 100), "{picture}");
    }

    let value = cogo.run(&["trace", &root, "--json"]).await.expect(0).json();
    assert_eq!((value["status"].as_str(), value["result"]["answer"].as_str()), (Some("done"), Some("42")));
    for step in value["steps"].as_array().unwrap() {
        assert!(step["wait_ms"].is_number() && step["run_ms"].is_number() && step["depth"].is_number(), "{step}");
    }
}

#[tokio::test]
async fn each_attempt_of_a_step_that_had_several_is_told() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let root = cogo.run(&["send", "orchestrator", "decide"]).await.expect(0).stdout.trim().to_owned();
    let first = claim_next(&bus, &routes::DECIDE).await;
    let once = cogo.run(&["trace", &root]).await.expect(0).stdout;
    assert!(!once.contains("#1 "), "{once}");
    let away = Failure { reason: "model is away".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    bus.fail(&first.fence(), "test/0#1", &away).await.unwrap().unwrap();
    let second = claim_next(&bus, &routes::DECIDE).await;
    assert_eq!(bus.release(&[second.fence()], "test/0#1").await.unwrap(), 1);
    let third = claim_next(&bus, &routes::DECIDE).await;

    let open = cogo.run(&["trace", &root]).await.expect(0).stdout;
    for expected in ["failed        test/0#1: model is away", "handed back   test/0#1", "running       test/0#1"] {
        assert!(open.contains(expected), "{expected}: {open}");
    }
    complete(&bus, &third, json!({})).await;
    let told = cogo.run(&["trace", &root, "--json"]).await.expect(0).json();
    let history: Vec<_> = told["steps"][0]["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["attempt"].as_i64().unwrap(), one["outcome"].as_str().unwrap(), one["started_at"].is_string()))
        .collect();
    assert_eq!(history, [(1, "failed", true), (2, "released", true), (3, "completed", true)]);
}

#[tokio::test]
async fn an_unknown_task_is_exit_3() {
    let database = cogo_test_support::database().await;
    let unknown = ["trace", "01999999-0000-7000-8000-000000000000", "--json"];
    let ended = Cogo::on(&database.url).run(&unknown).await.expect(3);
    assert_eq!(ended.problem()["code"], "not-found");
}
