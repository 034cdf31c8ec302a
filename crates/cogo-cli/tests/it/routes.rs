//! `cogo route`.

use cogo_bus_core::{Bus, ClaimRequest};
use cogo_contracts::routes;
use serde_json::{Value, json};

use crate::support::{Cogo, claim_next};

async fn claims(bus: &Bus) -> usize {
    let request = ClaimRequest {
        route: &routes::EMBED,
        holder: "test/0#1",
        instance: None,
        max_messages: 10,
        lease: std::time::Duration::from_secs(30),
    };
    bus.claim(&request).await.unwrap().len()
}

#[tokio::test]
async fn route_is_paused_resumed_drained_and_opened() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let none = cogo.run(&["route", "list"]).await.expect(0);
    assert_eq!(
        (none.stdout.as_str(), none.stderr.trim()),
        ("", "nothing is unfinished, and every route has the default settings")
    );
    assert_eq!(cogo.run(&["route", "ls", "--json"]).await.expect(0).json(), Value::Array(Vec::new()));

    cogo.run(&["send", "rag", "embed"]).await.expect(0);
    let paused = cogo.run(&["route", "pause", "rag/embed", "--json"]).await.expect(0).json();
    assert_eq!((&paused["route"], &paused["paused"]), (&json!("rag/embed/0"), &json!(true)));
    assert_eq!(claims(&bus).await, 0);
    cogo.run(&["route", "resume", "rag/embed/0"]).await.expect(0);
    claim_next(&bus, &routes::EMBED).await;

    let drained = cogo.run(&["route", "drain", "rag/embed"]).await.expect(0).stdout;
    assert!(drained.contains("rag/embed/0") && drained.contains("draining"), "{drained}");
    cogo.run(&["send", "rag", "embed"]).await.expect(4);
    cogo.run(&["route", "open", "rag/embed"]).await.expect(0);
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
}

#[tokio::test]
async fn limits_and_aging_are_set_shown_and_removed() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    for _ in 0..4 {
        cogo.run(&["send", "rag", "embed"]).await.expect(0);
    }
    let limit = ["route", "limit", "rag/embed", "--by", "tenant", "--running", "3", "--rate", "2.5", "--burst", "100"];
    let shown = cogo.run(&limit).await.expect(0).stdout;
    assert!(shown.contains("each tenant: 3 at once and 2.5/s burst 100"), "{shown}");
    assert_eq!(claims(&bus).await, 3);
    cogo.run(&["route", "limit", "rag/embed", "--by", "tenant", "--subject", "acme", "--running", "0"]).await.expect(0);
    cogo.run(&["route", "aging", "rag/embed", "250"]).await.expect(0);
    let listed = cogo.run(&["route", "list", "--json"]).await.expect(0).json();
    assert_eq!((&listed[0]["aging_ms"], listed[0]["limits"].as_array().unwrap().len()), (&json!(250), 2));
    cogo.run(&["route", "limit", "rag/embed", "--by", "tenant", "--none"]).await.expect(0);
    assert_eq!(claims(&bus).await, 1);

    for usage in [
        &["route", "limit", "rag/embed"][..],
        &["route", "limit", "rag/embed", "--rate", "0"],
        &["route", "limit", "rag/embed", "--running", "1", "--none"],
        &["route", "limit", "rag/embed", "--running", "1", "--burst", "2"],
        &["route", "limit", "rag/embed", "--by", "key", "--subject", "acme", "--running", "1"],
        &["route", "limit", "rag/embed", "--by", "key", "--subject", "acme/", "--running", "1"],
        &["route", "limit", "rag/embed", "--by", "tenant", "--subject", "acme/gpu", "--running", "1"],
        &["route", "limit", "rag/embed", "--subject", "acme", "--running", "1"],
        &["route", "aging", "rag/embed", "86400001"],
        &["route", "pause", "no route"],
    ] {
        cogo.run(usage).await.expect(2);
    }
}

#[tokio::test]
async fn a_limit_of_a_key_names_its_tenant() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let limit = ["route", "limit", "rag/embed", "--by", "key", "--running", "1", "--subject"];
    let refused = cogo.run(&[&limit[..], &["acme"]].concat()).await.expect(2);
    assert!(refused.stderr.contains("tenant/key"), "{refused:?}");
    let taken = cogo.run(&[&limit[..], &["acme/gpu"]].concat()).await.expect(0);
    assert!(taken.stdout.contains("key acme/gpu: 1 at once"), "{taken:?}");
}

#[tokio::test]
async fn routes_in_use_are_listed_with_what_waits_and_runs() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    for more in [&[][..], &[], &[], &["--delay-ms", "3600000"]] {
        cogo.run(&[&["send", "rag", "embed"], more].concat()).await.expect(0);
    }
    claim_next(&bus, &routes::EMBED).await;
    cogo.run(&["route", "pause", "gateway/chat"]).await.expect(0);

    let listed = cogo.run(&["route", "list", "--json"]).await.expect(0).json();
    let counts =
        |listed: &Value| ["route", "paused", "queued", "delayed", "claimed"].map(|name| listed[name].clone()).to_vec();
    assert_eq!(counts(&listed[0]), [json!("gateway/chat/0"), json!(true), json!(0), json!(0), json!(0)]);
    assert_eq!(counts(&listed[1]), [json!("rag/embed/0"), json!(false), json!(3), json!(1), json!(1)]);
    assert!(listed[0]["oldest_age_s"].is_null() && listed[1]["oldest_age_s"].is_f64(), "{listed}");
    assert_eq!(listed[1]["aging_ms"], json!(10_000));
    let table = cogo.run(&["route", "list"]).await.expect(0).stdout;
    let words: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().take(5).collect();
    assert_eq!(words, ["rag/embed/0", "open", "2", "1", "1"], "{table}");
}

#[tokio::test]
async fn a_route_that_nobody_ever_used_is_steered_with_a_note() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let first = cogo.run(&["route", "pause", "never/seen"]).await.expect(0);
    assert!(first.stderr.contains("nothing is known of never/seen/0 yet"), "{first:?}");
    assert_eq!(cogo.run(&["route", "resume", "never/seen"]).await.expect(0).stderr, "");
    cogo.run(&["send", "rag", "embed"]).await.expect(0);
    assert_eq!(cogo.run(&["route", "pause", "rag/embed"]).await.expect(0).stderr, "");
}
