//! Handlers of many messages at a time: one call for a batch, an ending for each.

use std::collections::BTreeSet;

use serde_json::json;
use uuid::Uuid;

use super::language::{Language, ended, in_both_languages, order, send};
use crate::support::{bus, until_somebody_waits_for_a_lock};

/// As many as the example takes at a time.
const MOST: usize = 5;

/// Key of the lock that a batch waits for.
const GATE: i64 = 4711;

in_both_languages!(
    batch_is_one_call_and_each_of_it_ends_by_itself,
    what_fails_a_batch_fails_each_of_it,
    batch_goes_on_without_one_that_is_cancelled,
);

async fn batch_is_one_call_and_each_of_it_ends_by_itself(language: Language) {
    let (bus, database) = bus().await;
    let mut orders: Vec<_> = (0..11).map(|number| order(json!({"number": number}))).collect();
    let mut unreadable = order(json!({"number": null}));
    unreadable.max_attempts = Some(1);
    orders.insert(2, unreadable);
    let sent: Vec<Uuid> = bus.enqueue_many(&orders).await.unwrap().iter().map(|sent| sent.id).collect();
    // all of them are there before it looks, so one claim has them
    let _worker = language.start_batches(&database.url, &[("CONCURRENCY", "12")]);
    let mut batches = BTreeSet::new();
    for (id, order) in sent.iter().zip(&orders) {
        let row = ended(&bus, *id).await;
        assert_eq!(row["attempts"], 1, "{row}");
        let Some(number) = order.payload["number"].as_i64() else {
            assert!(row["status"] == "failed" && row["error"].as_str().unwrap().contains("TypeError"), "{row}");
            continue;
        };
        assert_eq!((&row["status"], &row["result"]["double"]), (&json!("done"), &json!(number * 2)), "{row}");
        let batch: Vec<Uuid> = serde_json::from_value(row["result"]["batch"].clone()).unwrap();
        assert!(batch.contains(id) && batch.len() <= MOST, "{row}");
        batches.insert(batch);
    }
    assert!(batches.len() < sent.len() / 2, "{batches:?}");
    // one that nobody joins waits for no others
    let alone = send(&bus, order(json!({"number": 21}))).await;
    assert_eq!(ended(&bus, alone).await["result"], json!({"double": 42, "batch": [alone]}));
}

async fn what_fails_a_batch_fails_each_of_it(language: Language) {
    let (bus, database) = bus().await;
    let orders = [json!({"number": 1}), json!({"number": 2, "spoil": true})].map(|payload| {
        let mut once = order(payload);
        once.max_attempts = Some(1);
        once
    });
    let sent = bus.enqueue_many(&orders).await.unwrap();
    let _worker = language.start_batches(&database.url, &[]);
    for one in sent {
        let row = ended(&bus, one.id).await;
        assert!(row["status"] == "failed" && row["error"].as_str().unwrap().contains("is spoilt"), "{row}");
    }
}

async fn batch_goes_on_without_one_that_is_cancelled(language: Language) {
    let (bus, database) = bus().await;
    let mut gate = bus.pool().begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock($1)").bind(GATE).execute(&mut *gate).await.unwrap();
    let orders = [json!({"number": 1, "gate": GATE}), json!({"number": 2})].map(order);
    let sent = bus.enqueue_many(&orders).await.unwrap();
    let _worker = language.start_batches(&database.url, &[("CONCURRENCY", "2")]);
    until_somebody_waits_for_a_lock(&bus, "pg_advisory_xact_lock_shared(").await;
    assert_eq!(bus.cancel(sent[0].id).await.unwrap(), 1);
    // once the hand of it is free again, the worker has heard
    let next = send(&bus, order(json!({"number": 3}))).await;
    assert_eq!(ended(&bus, next).await["result"]["double"], 6);
    gate.commit().await.unwrap();
    let row = ended(&bus, sent[1].id).await;
    assert_eq!((&row["result"]["double"], &row["attempts"]), (&json!(4), &json!(1)), "{row}");
    assert_eq!(ended(&bus, sent[0].id).await["status"], "cancelled");
}
