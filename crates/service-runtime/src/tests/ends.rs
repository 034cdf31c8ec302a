//! How attempts end that the database refuses, or that somebody takes back while the worker is busy.

use cogo_bus_core::{ClaimRequest, Wake};
use tokio::sync::broadcast;

use super::*;
use crate::worker::Turn;

#[tokio::test]
async fn completion_that_the_database_always_refuses_ends_as_a_failure() {
    let running = Running::start(true, pace()).await;
    let id = running.send_with("bad effect", |message| message.max_attempts = Some(1)).await;
    let task = running.ended(id).await;
    assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1));
    assert!(task.error.as_deref().unwrap().contains("no_such_column"), "{:?}", task.error);
    let good = running.send("answer").await;
    assert_eq!(running.ended(good).await.status, TaskStatus::Done);
    drop(running.finish().await);
}

#[tokio::test]
async fn busy_worker_hears_of_what_was_taken_back() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, (_heartbeat, member)) = (Stop::default(), join(&bus));
    let worker = Worker::new(Obedient::default(), pace(), surroundings(bus.clone(), WakeUps::default(), member, &stop));
    let tenant = Tenant::new("acme").unwrap();
    let message = NewMessage::new(ROUTE, Some(tenant), json!({"what": "hang"}));
    let (hints, mut heard) = broadcast::channel(4);
    bus.enqueue(&message).await.unwrap();
    assert!(matches!(worker.turn("worker/0#test", &mut heard).await, Turn::Started));
    let taken_back = bus.enqueue(&message).await.unwrap().id;
    assert!(matches!(worker.turn("worker/0#test", &mut heard).await, Turn::Started));
    // more than the channel holds, so that some are missed and the rest are heeded all the same
    for _ in 0..4 {
        hints.send(Wake::CatchUp).unwrap();
    }
    hints.send(Wake::Cancelled(taken_back)).unwrap();
    bus.enqueue(&message).await.unwrap();
    assert!(matches!(worker.turn("worker/0#test", &mut heard).await, Turn::Started));
    assert!(worker.is_in_doubt(taken_back));
    stop.hard().cancel();
}

#[tokio::test]
async fn what_a_claim_took_whose_answer_was_lost_is_handed_back_before_its_lease_ends() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let (stop, (_heartbeat, member)) = (Stop::default(), join(&bus));
    let worker = Worker::new(Obedient::default(), pace(), surroundings(bus.clone(), WakeUps::default(), member, &stop));
    let tenant = Tenant::new("acme").unwrap();
    let message = NewMessage::new(ROUTE, Some(tenant), json!({"what": "hang"}));
    let (_hints, mut heard) = broadcast::channel(4);
    let holder = "worker/0#test";
    let held = bus.enqueue(&message).await.unwrap().id;
    assert!(matches!(worker.turn(holder, &mut heard).await, Turn::Started));
    let lost = bus.enqueue(&message).await.unwrap().id;
    let request = ClaimRequest { route: &ROUTE, holder, instance: None, max_messages: 1, lease: PATIENCE };
    assert_eq!(bus.claim(&request).await.unwrap().len(), 1, "in the database it is claimed");
    // a worker that knows how its last claim ended asks for nothing
    assert!(matches!(worker.turn(holder, &mut heard).await, Turn::Empty));
    rename(&database.pool, "claim", "hidden").await;
    assert!(matches!(worker.turn(holder, &mut heard).await, Turn::Unreachable));
    rename(&database.pool, "hidden", "claim").await;
    assert!(matches!(worker.turn(holder, &mut heard).await, Turn::Started));
    let attempts: Vec<(uuid::Uuid, i16)> = sqlx::query_as("select id, attempts from public.agent_messages order by id")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(attempts, [(held, 1), (lost, 2)]);
    stop.hard().cancel();
}

async fn rename(pool: &PgPool, from: &str, to: &str) {
    let statement = format!("alter function bus.{from} rename to {to}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(pool).await.unwrap();
}
