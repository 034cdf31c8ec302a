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
    assert_eq!((none.stdout.as_str(), none.stderr.trim()), ("", "every route has the default settings"));
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
        &["route", "aging", "rag/embed", "86400001"],
        &["route", "pause", "no route"],
    ] {
        cogo.run(usage).await.expect(2);
    }
}
