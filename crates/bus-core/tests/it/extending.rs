//! Extending a part of what was claimed together, while the rest of it ends or is extended by another.

use std::time::Duration;

use cogo_bus_core::{Bus, Claimed, Completion};
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio_util::task::TaskTracker;

use crate::support::{bus, claim, leases_to_pass, message, misplaced, numbered, until_somebody_waits_for_a_lock};

/// Key of the lock that holds up completions of messages with `slow` in their payload, after they wrote their row.
const SLOW: i64 = 4711;

async fn slow_down_completions(bus: &Bus) {
    sqlx::raw_sql(
        "create function public.hold() returns trigger language plpgsql set search_path = pg_catalog, pg_temp
         as $$ begin perform pg_advisory_xact_lock_shared(4711); return null; end $$;
         create trigger zz_hold after update on public.agent_messages
           for each row when (new.status = 'done' and new.payload ? 'slow') execute function public.hold()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
}

#[tokio::test]
async fn extension_while_another_of_the_claim_ends_loses_none() {
    let (bus, _database) = bus().await;
    slow_down_completions(&bus).await;
    let mut batch = numbered(2);
    batch.push(message(json!({"slow": true})));
    bus.enqueue_many(&batch).await.unwrap();
    let (slow, quick): (Vec<Claimed>, Vec<Claimed>) =
        claim(&bus, "w", 3).await.into_iter().partition(|claimed| claimed.payload.get("slow").is_some());
    let mut holding = bus.pool().begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock($1)").bind(SLOW).execute(&mut *holding).await.unwrap();
    let ending = TaskTracker::new().spawn({
        let (bus, fence) = (bus.clone(), slow[0].fence());
        async move { bus.complete(&fence, "w", &Completion::default()).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.complete(").await;
    let fences: Vec<_> = quick.iter().map(Claimed::fence).collect();
    assert_eq!(bus.extend(&fences, "w", Duration::from_secs(60)).await.unwrap().len(), 2);
    holding.commit().await.unwrap();
    assert!(ending.await.unwrap());
    assert_eq!(misplaced(&bus).await, 0);
    for fence in &fences {
        assert!(bus.complete(fence, "w", &Completion::default()).await.unwrap(), "it is still the holder's");
    }
    // what ended while it was moved to a row of its own may stay there until its lease passes
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 0, "everything has ended");
    assert_eq!(held_rows(&bus).await, 0);
}

async fn held_rows(bus: &Bus) -> i64 {
    sqlx::query_scalar("select count(*) from bus.claims").fetch_one(bus.pool()).await.unwrap()
}

#[tokio::test]
async fn what_was_handed_back_and_claimed_again_is_extended_with_the_rest() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let first = claim(&bus, "w", 2).await;
    assert_eq!(bus.release(&[first[0].fence()], "w").await.unwrap(), 1);
    let again = claim(&bus, "w", 1).await;
    assert_eq!((again[0].id, again[0].attempt), (first[0].id, 2));
    let fences = [again[0].fence(), first[1].fence()];
    assert_eq!(bus.extend(&fences, "w", Duration::from_secs(600)).await.unwrap().len(), 2);
    sqlx::query("update bus.claims set lease_until = lease_until - interval '1 minute'")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(bus.reclaim(10).await.unwrap(), 0, "both leases are far away");
    for fence in &fences {
        assert!(bus.complete(fence, "w", &Completion::default()).await.unwrap());
    }
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn extensions_of_two_parts_at_once_hold_for_both() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    let held = claim(&bus, "w", 3).await;
    let extend = "select id from bus.extend(array[$1], array[1]::smallint[], 'w', 600000)";
    let mut first = bus.pool().begin().await.unwrap();
    sqlx::query(extend).bind(held[0].id).execute(&mut *first).await.unwrap();
    // it does not wait: a heartbeat must not hang on somebody's open transaction
    let second = bus.extend(&[held[1].fence()], "w", Duration::from_secs(600)).await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(second, [held[1].id]);
    assert_eq!(misplaced(&bus).await, 0);
    // the lease of the third alone passes
    sqlx::query("update bus.claims set lease_until = lease_until - interval '1 minute'")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    for kept in &held[..2] {
        assert!(bus.complete(&kept.fence(), "w", &Completion::default()).await.unwrap(), "it was extended");
    }
    assert!(!bus.complete(&held[2].fence(), "w", &Completion::default()).await.unwrap());
    leases_to_pass(&bus).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 0);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn cancelling_one_of_a_large_claim_takes_it_from_its_holder() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(80)).await.unwrap();
    let held = claim(&bus, "w", 80).await;
    assert_eq!(bus.cancel(held[7].id).await.unwrap(), 1);
    assert!(!bus.complete(&held[7].fence(), "w", &Completion::default()).await.unwrap());
    let history = bus.history(held[7].id).await.unwrap();
    let told: Vec<_> = history.iter().map(|one| (one.attempt, one.holder.as_deref(), one.outcome.as_str())).collect();
    assert_eq!(told, [(1, Some("w"), "cancelled")]);
    let ended: Vec<_> = held
        .iter()
        .filter(|claimed| claimed.id != held[7].id)
        .map(|claimed| (claimed.fence(), Completion::default()))
        .collect();
    assert_eq!(bus.history(held[0].id).await.unwrap()[0].outcome, "running", "also before a heartbeat");
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 79);
    assert_eq!(held_rows(&bus).await, 0, "nothing counts as running");
}

#[tokio::test]
async fn lease_that_no_claim_would_have_is_refused_wherever_one_is_renewed() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(1)).await.unwrap();
    let held = claim(&bus, "w", 1).await.remove(0);
    let lease = async || {
        let lease = sqlx::query_scalar("select lease_until::text from bus.claims");
        let lease: String = lease.fetch_one(bus.pool()).await.unwrap();
        lease
    };
    let before = lease().await;
    let id = held.id;
    let extend = |ms: &str| format!("select bus.extend(array['{id}']::uuid[], array[1]::smallint[], 'w', {ms})");
    let renew = |ms: &str| format!("select bus.renew('w', '{{\"{id}\": 1}}', {ms})");
    for statement in [
        extend("30"),
        extend("99"),
        extend("null"),
        extend("86400001"),
        extend("9223372036854775807"),
        renew("30"),
        renew("null"),
        renew("-1"),
        format!("select bus.emit('{id}', 'w', 1::smallint, 1, array['{{}}']::jsonb[], 30)"),
        format!("select bus.emit_one('{id}', 'w', 1::smallint, 1, '{{}}', 30)"),
        format!(
            "select bus.work(jsonb_build_object('agent_service', 'test', 'agent_role', 'work', 'run', '{id}',
               'holder', 'worker/0#{id}', 'lease_ms', 30, 'concurrency', 0), '{{}}')"
        ),
    ] {
        let refused = sqlx::query(AssertSqlSafe(statement.clone())).execute(bus.pool()).await.expect_err(&statement);
        let refused = refused.into_database_error().unwrap();
        let said = (refused.code(), refused.message());
        assert_eq!(said, (Some("22023".into()), "A lease lasts 100 ms to 24 h"), "{statement}");
    }
    assert_eq!(lease().await, before);
    // what is said of no length keeps the one that the lease has, however long that became
    sqlx::query("update bus.claims set lease_until = clock_timestamp() + interval '2 days'")
        .execute(bus.pool())
        .await
        .unwrap();
    let emit = format!("select bus.emit_one('{id}', 'w', 1::smallint, 1, '{{}}', null)");
    sqlx::query(AssertSqlSafe(emit)).execute(bus.pool()).await.unwrap();
    for ms in ["100", "86400000"] {
        sqlx::query(AssertSqlSafe(extend(ms))).execute(bus.pool()).await.unwrap();
    }
}
