//! Dead letters and their replay.

use cogo_bus_core::{Bus, Completion, Error, Failure};
use cogo_contracts::TaskStatus;
use serde_json::json;
use uuid::Uuid;

use crate::support::{bus, claim_one, message};

async fn dead_letter(bus: &Bus) -> Uuid {
    let id = bus.enqueue(&message(json!({"job": 7}))).await.unwrap().id;
    let claimed = claim_one(bus, "w").await;
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claimed.fence(), "w", &failure).await.unwrap();
    id
}

#[tokio::test]
async fn replay_points_back_and_finishes_the_task() {
    let (bus, _database) = bus().await;
    let dead = dead_letter(&bus).await;
    assert_eq!(bus.task(dead).await.unwrap().unwrap().status, TaskStatus::Failed);
    let replay = bus.replay(dead).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    assert_eq!((claimed.id, claimed.root_id, &claimed.payload["job"]), (replay, dead, &json!(7)));
    bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap();
    let task = bus.task(dead).await.unwrap().unwrap();
    assert_eq!((task.status, task.steps[1].replay_of), (TaskStatus::Done, Some(dead)));
    assert_eq!(bus.dead_letters(5).await.unwrap()[0].replayed_by, Some(replay));
}

#[tokio::test]
async fn replay_of_what_is_not_a_dead_letter_is_refused() {
    let (bus, _database) = bus().await;
    assert!(matches!(bus.replay(Uuid::now_v7()).await, Err(Error::NotFound { .. })));
    let alive = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert!(matches!(bus.replay(alive).await, Err(Error::Conflict { .. })));
    claim_one(&bus, "w").await;
    let dead = dead_letter(&bus).await;
    bus.replay(dead).await.unwrap();
    assert!(matches!(bus.replay(dead).await, Err(Error::Conflict { .. })), "twice");
}

#[tokio::test]
async fn replays_at_once_make_one_message() {
    let (bus, _database) = bus().await;
    let dead = dead_letter(&bus).await;
    let replays = (0..6).map(|_| bus.replay(dead));
    let made = futures_util::future::join_all(replays).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(made, 1);
}

#[tokio::test]
async fn many_are_replayed_oldest_first_and_spread_over_time() {
    let (bus, _database) = bus().await;
    let mut dead = Vec::new();
    for _ in 0..5 {
        dead.push(dead_letter(&bus).await);
    }
    bus.replay(dead[1]).await.unwrap();
    claim_one(&bus, "w").await;
    let elsewhere = cogo_contracts::Route::constant("test", "other");
    assert!(bus.replay_many(Some(&elsewhere), None, 1.0, 10).await.unwrap().is_empty());
    assert!(bus.replay_many(None, Some("brok"), 1.0, 10).await.unwrap().is_empty(), "a pattern fits as a whole");
    assert!(matches!(bus.replay_many(None, None, 0.0, 10).await, Err(Error::Refused { .. })));
    let replayed = bus.replay_many(Some(&crate::support::ROUTE), Some("brok%"), 0.01, 3).await.unwrap();
    assert_eq!(replayed.iter().map(|one| one.dead_letter).collect::<Vec<_>>(), [dead[0], dead[2], dead[3]]);
    assert_eq!(claim_one(&bus, "w").await.id, replayed[0].id, "the first at once");
    assert!(crate::support::claim(&bus, "w", 5).await.is_empty());
    let due = bus.next_due(&crate::support::ROUTE).await.unwrap().unwrap().as_secs();
    assert!((60..=100).contains(&due), "the next after 100 s: {due}");
    assert_eq!(bus.replay_many(None, None, 50.0, 10).await.unwrap().len(), 1, "each once");
}

#[tokio::test]
async fn rate_of_replays_is_a_number() {
    let (bus, _database) = bus().await;
    for rate in ["0", "-1", "NaN", "Infinity"] {
        let replay = "select count(*) from bus.replay_many(per_second => $1::text::double precision)";
        let refused = sqlx::query(replay).bind(rate).execute(bus.pool()).await.unwrap_err();
        assert!(refused.to_string().contains("A rate must be positive"), "{rate}: {refused}");
    }
}
