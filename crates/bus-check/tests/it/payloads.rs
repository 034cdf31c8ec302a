//! Poison and oversized payloads: refused, or given up with a reason, and never in the way of others.

use std::time::Duration;

use cogo_bus_check::Broken;
use cogo_bus_core::{Completion, Error, Failure};
use serde_json::{Value, json};

use crate::support::{Stage, claim, message, plain};

const LEASE: Duration = Duration::from_secs(30);

fn is_refused<T: std::fmt::Debug>(told: Result<T, Broken>) {
    assert!(matches!(told, Err(Broken::Bus(Error::Refused { .. }))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_message_is_refused_with_its_whole_batch() {
    let mut stage = Stage::new().await;
    let bus = stage.local("bad");
    let bad =
        [json!({"text": "x".repeat(1_200_000)}), json!({"text": "a\u{0}b"}), json!([1, 2]), Value::Null, json!("text")];
    for payload in bad {
        let mut batch = plain(3);
        // compressed by the database, so what counts must not compress
        batch[1].payload = payload;
        if let Some(text) =
            batch[1].payload.get_mut("text").filter(|text| text.as_str().is_some_and(|text| text.len() > 100))
        {
            let mut chance = cogo_bus_check::Chance::new(crate::support::seed());
            *text = (0..150_000).map(|_| format!("{:08x}", chance.number())).collect::<String>().into();
        }
        is_refused(bus.enqueue_many(&batch).await);
    }
    bus.enqueue_many(&plain(1)).await.unwrap();
    stage.workers(1).await;
    assert_eq!(stage.holds().await.messages, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_cannot_read_is_given_up_and_costs_its_neighbours_nothing() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(4)).await.unwrap();
    // taken by Postgres, too much for a reader of JSON: a number beyond doubles, and very deep nesting
    let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
    for poison in ["{\"number\": 1e999}", deep.as_str()] {
        let call = bus.journal().invoked(cogo_bus_check::enqueue(&plain(1)));
        let (id, duplicate): (uuid::Uuid, bool) = sqlx::query_as(
            "select id, duplicate from bus.enqueue_many(
               jsonb_build_array(jsonb_build_object('service', 'check', 'role', 'work', 'tenant', 'acme', 'payload', $1::jsonb)))",
        )
        .bind(poison)
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        let sent = [cogo_bus_core::Enqueued { id, duplicate }];
        bus.journal().returned(call, cogo_bus_check::Outcome::Ok(cogo_bus_check::enqueued(&sent)));
    }
    bus.enqueue_many(&plain(4)).await.unwrap();
    let claimed = claim(&bus, "w", 20, LEASE).await;
    assert_eq!(claimed.len(), 8, "the readable ones arrive");
    for message in claimed {
        assert!(bus.complete(&message.fence(), "w", &Completion::default()).await.unwrap());
    }
    assert_eq!(bus.bus().dead_letters(10).await.unwrap().len(), 2);
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_result_is_refused_and_the_claim_stays() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(3)).await.unwrap();
    let claimed = claim(&bus, "w", 3, LEASE).await;
    let mut chance = cogo_bus_check::Chance::new(crate::support::seed());
    let noise: String = (0..150_000).map(|_| format!("{:08x}", chance.number())).collect();
    let large = Completion { result: Some(json!({"text": noise})), ..Completion::default() };
    is_refused(bus.complete(&claimed[0].fence(), "w", &large).await);
    // all or none of a batch
    let batch: Vec<_> = claimed
        .iter()
        .zip([large, Completion::default(), Completion::default()])
        .map(|(one, end)| (one.fence(), end))
        .collect();
    is_refused(bus.complete_many(&batch, "w").await);
    let failure = Failure { reason: "too large".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claimed[0].fence(), "w", &failure).await.unwrap().unwrap();
    for message in &claimed[1..] {
        assert!(bus.complete(&message.fence(), "w", &Completion::default()).await.unwrap());
    }
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_fails_for_ever_ends_as_a_dead_letter_and_others_pass_it() {
    let mut stage = Stage::new().await;
    let bus = stage.local("sender");
    bus.enqueue_many(&vec![message(json!({"act": "poison"})); 5]).await.unwrap();
    bus.enqueue_many(&plain(50)).await.unwrap();
    stage.keepers(1).await;
    stage.workers(2).await;
    stage.holds().await;
    assert!(bus.bus().dead_letters(50).await.unwrap().len() >= 5);
}
