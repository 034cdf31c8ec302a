//! Completions that are gathered: how many may wait, and what becomes of them while the database takes none.

use super::*;

/// As a database that is just starting answers.
const AWAY: &str = "alter function bus.complete_batch rename to hidden;
    create function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[]) returns uuid[]
    language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$;";
const BACK: &str = "drop function bus.complete_batch;
    alter function bus.hidden rename to complete_batch;";

async fn run(running: &Running, statements: &'static str) {
    sqlx::raw_sql(statements).execute(running.bus.pool()).await.unwrap();
}

#[tokio::test]
async fn worker_whose_completions_are_not_taken_stops_claiming_and_loses_none() {
    let running = Running::start(true, pace()).await;
    run(&running, AWAY).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(running.send("answer").await);
    }
    let hands = u32::from(pace().concurrency);
    let calls = || running.handler.calls.load(Ordering::SeqCst);
    let started = Instant::now();
    // as many wait to be recorded as there are hands; what is claimed then waits in the hands
    while calls() < hands || started.elapsed() < Duration::from_millis(500) {
        assert!(started.elapsed() < PATIENCE, "{} calls", calls());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(calls() <= 2 * hands, "{} calls with {hands} hands", calls());
    let held = "select coalesce(sum(remaining), 0) from bus.claims";
    let held: i64 = sqlx::query_scalar(held).fetch_one(running.bus.pool()).await.unwrap();
    assert!(held <= i64::from(2 * hands), "{held} held");
    run(&running, BACK).await;
    for id in ids {
        let task = running.ended(id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Done, 1));
    }
    assert_eq!(calls(), 20, "each is handled once");
    drop(running.finish().await);
}

#[tokio::test]
async fn completion_that_is_cancelled_while_it_waits_is_given_up() {
    let running = Running::start(true, pace()).await;
    run(&running, AWAY).await;
    let id = running.send("answer").await;
    running.until(id, |_| running.handler.calls.load(Ordering::SeqCst) == 1).await;
    assert_eq!(running.bus.cancel(id).await.unwrap(), 1);
    run(&running, BACK).await;
    let next = running.send("answer").await;
    assert_eq!(running.ended(next).await.status, TaskStatus::Done);
    assert_eq!(running.ended(id).await.status, TaskStatus::Cancelled);
    drop(running.finish().await);
}

#[tokio::test]
async fn soft_stop_waits_for_completions_that_are_being_gathered() {
    let running = Running::start(true, Pace { concurrency: 256, ..pace() }).await;
    let tenant = Tenant::new("acme").unwrap();
    let messages: Vec<NewMessage> =
        (0..256).map(|_| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"what": "answer"}))).collect();
    let ids: Vec<Uuid> = running.bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect();
    while running.handler.calls.load(Ordering::SeqCst) < 256 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop.soft().cancel();
    let Running { working, bus, leave, mut tasks, database, .. } = running;
    tokio::time::timeout(PATIENCE, working).await.expect("the worker does not end").unwrap();
    for id in ids {
        assert_eq!(bus.task(id).await.unwrap().unwrap().status, TaskStatus::Done);
    }
    leave.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    drop(database);
}
