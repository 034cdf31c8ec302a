//! Failures that are gathered: written together, kept while the database takes none, and alone where it refuses the rest.

use super::*;

/// Notes how many failures each statement brings into the history of attempts.
const COUNTED: &str = "create table public.counted (size bigint);
    create function public.count_them() returns trigger language plpgsql as $$ begin
      insert into public.counted select count(*) from new_rows;
      return null;
    end $$;
    create trigger counted after insert on bus.attempts referencing new table as new_rows
      for each statement execute function public.count_them();";
/// As a database that is just starting answers.
const AWAY: &str = "alter function bus.fail_many rename to hidden;
    alter function bus.fail rename to hidden_as_well;
    create function bus.fail_many(uuid[], smallint[], text, text[], boolean[], bigint[]) returns table (id uuid, status text)
    language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$;
    create function bus.fail(uuid, text, smallint, text, boolean, bigint) returns text
    language plpgsql as $$ begin raise exception 'away' using errcode = '57P03'; end $$;";
/// As a database answers that does not like what stands in one of them.
const REFUSED: &str = "alter function bus.fail_many rename to hidden;
    create function bus.fail_many(uuid[], smallint[], text, text[], boolean[], bigint[]) returns table (id uuid, status text)
    language plpgsql as $$ begin raise exception 'no' using errcode = '22023'; end $$;";
const BACK: &str = "drop function bus.fail_many;
    drop function bus.fail;
    alter function bus.hidden rename to fail_many;
    alter function bus.hidden_as_well rename to fail;";

async fn run(bus: &Bus, statements: &'static str) {
    sqlx::raw_sql(statements).execute(bus.pool()).await.unwrap();
}

async fn send_many(bus: &Bus, count: usize) -> Vec<Uuid> {
    let tenant = Tenant::new("acme").unwrap();
    let messages: Vec<NewMessage> =
        (0..count).map(|_| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"what": "reject"}))).collect();
    bus.enqueue_many(&messages).await.unwrap().iter().map(|sent| sent.id).collect()
}

async fn are_dead_letters(running: &Running, ids: &[Uuid]) {
    for id in ids {
        let task = running.ended(*id).await;
        assert_eq!((task.status, task.steps[0].attempts), (TaskStatus::Failed, 1));
    }
    assert_eq!(running.handler.calls.load(Ordering::SeqCst), u32::try_from(ids.len()).unwrap(), "each is handled once");
}

#[tokio::test]
async fn failures_of_one_claim_are_recorded_together() {
    let database = cogo_test_support::database().await;
    let (pool, bus) = (database.pool.clone(), Bus::new(database.pool.clone()));
    run(&bus, COUNTED).await;
    let ids = send_many(&bus, 200).await;
    let running = Running::start_on(database, pool, true, Pace { concurrency: 256, ..pace() });
    are_dead_letters(&running, &ids).await;
    let sizes: Vec<i64> =
        sqlx::query_scalar("select size from counted where size > 0").fetch_all(bus.pool()).await.unwrap();
    assert_eq!(sizes.iter().sum::<i64>(), 200, "{sizes:?}");
    assert!(sizes.len() < ids.len(), "{sizes:?}");
    drop(running.finish().await);
}

#[tokio::test]
async fn failures_that_are_not_taken_yet_are_kept() {
    let running = Running::start(true, pace()).await;
    run(&running.bus, AWAY).await;
    let ids = send_many(&running.bus, 5).await;
    while running.handler.calls.load(Ordering::SeqCst) < u32::from(pace().concurrency.min(5)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run(&running.bus, BACK).await;
    are_dead_letters(&running, &ids).await;
    drop(running.finish().await);
}

#[tokio::test]
async fn failures_that_are_refused_together_are_recorded_alone() {
    let running = Running::start(true, pace()).await;
    run(&running.bus, REFUSED).await;
    let ids = send_many(&running.bus, 5).await;
    are_dead_letters(&running, &ids).await;
    drop(running.finish().await);
}
