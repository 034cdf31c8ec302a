//! Completions that are gathered: how many may wait, and what becomes of them while the database takes none.

use super::*;

/// As a database that is just starting answers.
const AWAY: &str = "alter function bus.complete_batch rename to hidden;
    alter function bus.complete rename to hidden_as_well;
    create function bus.complete_batch(uuid[], smallint[], text, jsonb[], text[], text[]) returns uuid[]
    language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$;
    create function bus.complete(uuid, text, smallint, jsonb, text, text, jsonb) returns boolean
    language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$;";
const BACK: &str = "drop function bus.complete_batch;
    drop function bus.complete;
    alter function bus.hidden rename to complete_batch;
    alter function bus.hidden_as_well rename to complete;";
/// Notes what each statement brings.
const COUNTED: &str = "create table public.counted (ends bigint, bytes bigint);
    create schema aside;
    alter function bus.complete_batch set schema aside;
    create function bus.complete_batch(
      ids uuid[], attempts smallint[], holder text, results jsonb[], snippets text[], urls text[]) returns uuid[]
    language plpgsql as $$ begin
      insert into public.counted
      select cardinality(ids), (select sum(octet_length(r.result::text)) from unnest(results) as r (result));
      return aside.complete_batch(ids, attempts, holder, results, snippets, urls);
    end $$;";
/// As a statement does whose connection breaks under it.
const BREAKING: &str = "create schema aside;
    alter function bus.complete_batch set schema aside;
    create function bus.complete_batch(
      ids uuid[], attempts smallint[], holder text, results jsonb[], snippets text[], urls text[]) returns uuid[]
    language plpgsql as $$ begin
      if results::text like '%poison%' then
        perform pg_terminate_backend(pg_backend_pid());
      end if;
      return aside.complete_batch(ids, attempts, holder, results, snippets, urls);
    end $$;";

/// More than four of its replies are too much for one statement.
const LARGE: usize = 900 << 10;
const STATEMENT: usize = 4 << 20;

/// Answers at length.
struct Talkative {
    calls: Arc<AtomicU32>,
}

impl Handler for Talkative {
    const ROUTE: Route = ROUTE;
    type Request = Order;
    type Reply = String;

    async fn handle(&self, _order: Order, _claim: &Claim) -> Result<String, HandlerError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok("x".repeat(LARGE))
    }
}

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

#[tokio::test]
async fn large_results_are_recorded_in_several_statements() {
    let database = cogo_test_support::database().await;
    let (pool, calls) = (database.pool.clone(), Arc::new(AtomicU32::new(0)));
    let handler = Talkative { calls: Arc::clone(&calls) };
    let mut running = Running::start_with(database, pool, true, Pace { concurrency: 16, ..pace() }, |_| handler);
    running.handler = Obedient { calls };
    run(&running, COUNTED).await;
    run(&running, AWAY).await;
    let mut ids = Vec::new();
    for _ in 0..16 {
        ids.push(running.send("answer").await);
    }
    while running.handler.calls.load(Ordering::SeqCst) < 16 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run(&running, BACK).await;
    for id in &ids {
        let task = running.ended(*id).await;
        assert_eq!((task.status, task.error), (TaskStatus::Done, None));
    }
    let most = "select coalesce(max(bytes), 0) from public.counted where ends > 1";
    let most: i64 = sqlx::query_scalar(most).fetch_one(running.bus.pool()).await.unwrap();
    assert!(most <= i64::try_from(STATEMENT).unwrap(), "{most} bytes");
    drop(running.finish().await);
}

#[tokio::test]
async fn completion_that_breaks_the_connection_of_a_batch_takes_no_other_along() {
    let running = Running::start(true, Pace { concurrency: 16, ..pace() }).await;
    run(&running, BREAKING).await;
    let message = |tenant| NewMessage::new(ROUTE, Some(Tenant::new(tenant).unwrap()), json!({"what": "answer"}));
    let mut messages: Vec<NewMessage> = (0..16).map(|_| message("acme")).collect();
    messages[7] = message("poison");
    let mut ids: Vec<Uuid> = running.bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect();
    let breaking = ids.remove(7);
    ids.push(running.send("answer").await);
    for id in ids {
        let task = running.ended(id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Done, 1));
    }
    running.until(breaking, |task| task.status == TaskStatus::Running).await;
    drop(running.finish().await);
}
