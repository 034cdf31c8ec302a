//! What Postgres takes for JSON and we cannot read: whoever asks for it is told so at once, and not to try again.

use std::fmt::Debug;

use cogo_bus_core::{Bus, Claimed, Completion, Error, PartialPlace, RequestError, WakeUps};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{LEASE, PATIENCE, bus, claim, claim_one, message};

/// A number beyond all ranges, as floating point and as an integer, and what is too deep.
fn unreadable() -> [String; 3] {
    let (long, deep) = ("7".repeat(400), format!("{}1{}", "[".repeat(200), "]".repeat(200)));
    ["{\"n\": 1e400}".to_owned(), format!("{{\"n\": {long}}}"), deep]
}

/// Ends a claim as a client in another language may.
async fn complete(bus: &Bus, claimed: &Claimed, result: &str) {
    let ended: bool = sqlx::query_scalar("select bus.complete($1, 'w', $2, $3::jsonb)")
        .bind(claimed.id)
        .bind(claimed.attempt)
        .bind(result)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert!(ended);
}

fn is_told<T: Debug>(answer: Result<T, Error>, about: &str) {
    let error = answer.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
    assert!(matches!(&error, Error::Contract { what, .. } if *what == about), "{error:?}");
}

#[tokio::test]
async fn result_that_cannot_be_read_is_told_to_all_who_look() {
    let (bus, _database) = bus().await;
    for result in unreadable() {
        let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
        complete(&bus, &claim_one(&bus, "w").await, &result).await;
        is_told(bus.task(id).await, "bus.task");
        is_told(bus.results(&[id]).await, "bus.results");
        is_told(bus.message(id).await, "public.agent_messages");
    }
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    bus.complete(&claim_one(&bus, "w").await.fence(), "w", &Completion::default()).await.unwrap();
    assert!(bus.task(id).await.unwrap().is_some(), "others are as they were");
}

#[tokio::test]
async fn part_that_cannot_be_read_is_told_to_its_readers() {
    let (bus, _database) = bus().await;
    for part in unreadable() {
        bus.enqueue(&message(json!({}))).await.unwrap();
        let claimed = claim_one(&bus, "w").await;
        assert_eq!(bus.emit(&claimed.fence(), "w", 1, &[part], LEASE).await.unwrap(), Some(1));
        is_told(bus.partials_after(claimed.id, PartialPlace::default(), 10).await, "bus.partials_after");
    }
}

#[tokio::test]
async fn answer_that_cannot_be_read_is_no_time_out() {
    let (bus, _database) = bus().await;
    for result in unreadable() {
        let answering = async {
            loop {
                if let Some(claimed) = claim(&bus, "w", 1).await.pop() {
                    return complete(&bus, &claimed, &result).await;
                }
                tokio::time::sleep(crate::support::PAUSE).await;
            }
        };
        let (asked, deaf) = (message(json!({})), WakeUps::default());
        // far longer than the test waits
        let asking = timeout(PATIENCE, bus.request(&asked, 10 * PATIENCE, &deaf));
        let (reply, ()) = tokio::join!(asking, answering);
        let Err(RequestError::Unreadable { error, .. }) = reply.expect("no more looks") else { panic!("it was read") };
        is_told::<()>(Err(error), "bus.reply");
    }
}

#[tokio::test]
async fn json_that_is_too_deep_for_the_database_is_refused_and_not_tried_again() {
    let (bus, _database) = bus().await;
    let deep = sqlx::query("select repeat('[', 1000000)::jsonb").execute(bus.pool()).await.unwrap_err();
    let error = Error::from(deep);
    assert!(matches!(error, Error::Refused { .. }) && !error.is_transient(), "{error:?}");
}
