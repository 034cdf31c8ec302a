//! `cogo cancel`.

use cogo_bus_core::{Bus, Completion};
use cogo_contracts::{NewMessage, routes};
use serde_json::json;

use crate::support::{Cogo, claim_next, complete};

#[tokio::test]
async fn a_task_is_taken_back_as_a_whole_and_once() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let id = cogo.run(&["send", "rag", "embed"]).await.expect(0).stdout.trim().to_owned();
    let root = claim_next(&bus, &routes::EMBED).await;
    let follow_ups = vec![NewMessage::new(routes::CHAT, None, json!({})); 3];
    assert!(
        bus.complete(&root.fence(), "test/0#1", &Completion { follow_ups, ..Completion::default() }).await.unwrap()
    );
    let step = claim_next(&bus, &routes::CHAT).await.id.to_string();

    let one = cogo.run(&["cancel", &step]).await.expect(0);
    assert_eq!(one.stdout.trim(), "cancelled 1 message");
    assert!(one.stderr.contains(&id), "its task is named: {one:?}");
    let again = cogo.run(&["cancel", &step, "--json"]).await.expect(4).problem();
    assert!(again["detail"].as_str().unwrap().contains("already ended as cancelled"), "{again}");

    let rest = cogo.run(&["cancel", &id, "--json"]).await.expect(0).json();
    assert_eq!((&rest["id"], &rest["cancelled"]), (&json!(id), &json!(2)));
    let again = cogo.run(&["cancel", &id]).await.expect(4);
    assert!(again.stderr.contains("already ended as"), "{again:?}");
}

#[tokio::test]
async fn what_has_ended_or_never_was_cannot_be_taken_back() {
    let database = cogo_test_support::database().await;
    let cogo = Cogo::on(&database.url);
    let bus = Bus::new(database.pool.clone());
    let id = cogo.run(&["send", "rag", "embed"]).await.expect(0).stdout.trim().to_owned();
    complete(&bus, &claim_next(&bus, &routes::EMBED).await, json!({})).await;
    let ended = cogo.run(&["cancel", &id]).await.expect(4);
    assert!(ended.stderr.contains("already ended as done"), "{ended:?}");
    let unknown = cogo.run(&["cancel", "01999999-0000-7000-8000-000000000000", "--json"]).await.expect(3);
    assert_eq!(unknown.problem()["code"], "not-found");
}
