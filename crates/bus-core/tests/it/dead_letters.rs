//! Dead letters and their replay.

use cogo_bus_core::{Bus, Completion, Error, Failure};
use cogo_contracts::{NewMessage, TaskStatus};
use serde_json::json;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{PAUSE, bus, claim_one, message, misplaced, until_somebody_waits_for_a_lock};

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
async fn route_without_its_shard_is_that_of_shard_0() {
    let (bus, _database) = bus().await;
    let dead = dead_letter(&bus).await;
    for (route, expected) in [("test/work/1", None), ("work", None), ("test/work", Some(dead))] {
        let replay = "select dead_letter from bus.replay_many($1)";
        let replayed: Option<Uuid> = sqlx::query_scalar(replay).bind(route).fetch_optional(bus.pool()).await.unwrap();
        assert_eq!(replayed, expected, "{route}");
    }
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

#[tokio::test]
async fn replaying_many_locks_rows_before_groups() {
    let (bus, _database) = bus().await;
    let broken = || Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    let dead = bus.enqueue(&NewMessage { group_key: Some("a".to_owned()), ..message(json!({})) }).await.unwrap().id;
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken()).await.unwrap();
    let root = Uuid::now_v7();
    bus.enqueue(&NewMessage { id: Some(root), group_key: Some("a".to_owned()), ..message(json!({})) }).await.unwrap();
    let held = claim_one(&bus, "w").await;
    let insert = "insert into public.agent_messages (service, role, tenant, payload, parent_id)
                  values ('test', 'work', 'acme', '{}', $1)";
    sqlx::query(insert).bind(root).execute(bus.pool()).await.unwrap();
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken()).await.unwrap();
    let mut other = bus.pool().begin().await.unwrap();
    let lock = "select from public.agent_messages where id = $1 for update";
    sqlx::query(lock).bind(dead).execute(&mut *other).await.unwrap();
    let tasks = TaskTracker::new();
    let replaying = tasks.spawn({
        let bus = bus.clone();
        let replay = "select count(*) from bus.replay_many()";
        async move { sqlx::query_scalar::<_, i64>(replay).fetch_one(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "replay_many").await;
    let failing = tasks.spawn({
        let bus = bus.clone();
        async move { bus.fail(&held.fence(), "w", &broken()).await }
    });
    // it ends, or waits for the one who replays
    tokio::time::sleep(PAUSE * 20).await;
    other.commit().await.unwrap();
    assert_eq!(replaying.await.unwrap().unwrap(), 2);
    assert!(failing.await.unwrap().unwrap().is_some());
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn replaying_one_root_twice_at_once_replays_it_once() {
    let (bus, _database) = bus().await;
    let dead = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken).await.unwrap();
    let mut other = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = $1 for key share")
        .bind(dead)
        .execute(&mut *other)
        .await
        .unwrap();
    let tasks = TaskTracker::new();
    let replays = [(); 2].map(|()| {
        let bus = bus.clone();
        tasks.spawn(async move { bus.replay(dead).await })
    });
    until_somebody_waits_for_a_lock(&bus, "bus.replay").await;
    // both by then
    tokio::time::sleep(PAUSE * 20).await;
    other.commit().await.unwrap();
    let mut replayed = 0;
    for replay in replays {
        match replay.await.unwrap() {
            Ok(_) => replayed += 1,
            Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
        }
    }
    assert_eq!(replayed, 1);
}

#[tokio::test]
async fn replaying_many_leaves_out_what_somebody_replayed_meanwhile() {
    let (bus, _database) = bus().await;
    let mut dead = Vec::new();
    for _ in 0..2 {
        let broken = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        dead.push(bus.enqueue(&message(json!({}))).await.unwrap().id);
        bus.fail(&claim_one(&bus, "w").await.fence(), "w", &broken).await.unwrap();
    }
    let mut other = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.replay($1)").bind(dead[0]).execute(&mut *other).await.unwrap();
    let replaying = TaskTracker::new().spawn({
        let bus = bus.clone();
        let replay = "select dead_letter from bus.replay_many()";
        async move { sqlx::query_scalar::<_, Uuid>(replay).fetch_all(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "replay_many").await;
    other.commit().await.unwrap();
    assert_eq!(replaying.await.unwrap().unwrap(), dead[1..]);
}

#[tokio::test]
async fn of_a_line_of_replays_only_the_last_is_sent_again() {
    let (bus, _database) = bus().await;
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    let first = dead_letter(&bus).await;
    let mut last = first;
    for _ in 0..3 {
        let replayed = bus.replay_many(None, None, 50.0, 10).await.unwrap();
        assert_eq!(replayed.iter().map(|one| one.dead_letter).collect::<Vec<_>>(), [last]);
        last = replayed[0].id;
        bus.fail(&claim_one(&bus, "w").await.fence(), "w", &failure).await.unwrap().unwrap();
    }
    let refused = format!("{:?}", bus.replay(first).await.unwrap_err());
    assert!(refused.contains("which is failed"), "{refused}");
    last = bus.replay(last).await.unwrap();
    bus.complete(&claim_one(&bus, "w").await.fence(), "w", &Completion::default()).await.unwrap();
    assert!(bus.replay_many(None, None, 50.0, 10).await.unwrap().is_empty(), "it has succeeded");
    assert_eq!(bus.task(first).await.unwrap().unwrap().status, TaskStatus::Done);
    assert!(bus.replay(last).await.is_err());
}

#[tokio::test]
async fn replay_that_was_cancelled_is_none() {
    let (bus, _database) = bus().await;
    let dead = dead_letter(&bus).await;
    let replay = bus.replay(dead).await.unwrap();
    assert_eq!(bus.cancel(dead).await.unwrap(), 1);
    assert_ne!(bus.replay(dead).await.unwrap(), replay);
}

#[tokio::test]
async fn step_as_large_as_steps_may_be_is_replayed() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let held = claim_one(&bus, "w").await;
    // above what a sender may give, and within what a step may have besides
    let text: String = (0..30_000).map(|_| Uuid::new_v4().to_string()).collect();
    let follow_ups = vec![NewMessage::new(crate::support::ROUTE, None, json!({"text": text}))];
    let completion = Completion { follow_ups, ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &completion).await.unwrap());
    let failure = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &failure).await.unwrap().unwrap();
    // as text it is twice as large as in the table
    bus.enqueue(&message(json!({"text": "\n".repeat(1_000_000)}))).await.unwrap();
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &failure).await.unwrap().unwrap();
    assert_eq!(bus.replay_many(None, None, 50.0, 10).await.unwrap().len(), 2);
}
