//! Rows that somebody keeps locked hold up nothing else, and limits count what is true.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, CountedBy, Limit};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;
use sqlx::postgres::PgListener;

use crate::support::{
    PATIENCE, PAUSE, ROUTE, bus, claim, claim_one, leases_to_pass, message, numbered, until_somebody_waits_for_a_lock,
};

fn limit(counted_by: CountedBy, subject: Option<&str>, max_running: Option<u32>, per_second: Option<f64>) -> Limit {
    Limit { counted_by, subject: subject.map(str::to_owned), max_running, per_second, burst: per_second.map(|_| 1.0) }
}

fn of(tenant: &str) -> NewMessage {
    NewMessage { tenant: Some(Tenant::new(tenant).unwrap()), ..message(json!({})) }
}

/// What a claim takes while somebody stays in the way.
async fn taken(bus: &Bus, max_messages: u16) -> usize {
    tokio::time::timeout(PATIENCE, claim(bus, "w", max_messages)).await.expect("it waits for ever").len()
}

async fn run(bus: &Bus, statements: &'static str) {
    sqlx::raw_sql(statements).execute(bus.pool()).await.unwrap();
}

#[tokio::test]
async fn claim_does_not_wait_for_who_keeps_a_message_and_takes_what_comes_meanwhile() {
    let (bus, _database) = bus().await;
    bus.enqueue(&of("acme")).await.unwrap();
    let mut keeper = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.claim('test', 'work', 0, 'keeper')").execute(&mut *keeper).await.unwrap();
    assert_eq!(taken(&bus, 1).await, 0);
    bus.enqueue(&of("acme")).await.unwrap();
    assert_eq!(taken(&bus, 1).await, 1);
    keeper.rollback().await.unwrap();
    assert_eq!(taken(&bus, 2).await, 1);
}

#[tokio::test]
async fn tenants_that_somebody_keeps_leave_claims_of_one_to_the_others() {
    let (bus, _database) = bus().await;
    let tenants = ["a", "b", "c", "d"];
    for tenant in tenants {
        bus.enqueue(&of(tenant)).await.unwrap();
    }
    for kept in tenants {
        let mut keeper = bus.pool().begin().await.unwrap();
        sqlx::query("select from bus.ready where tenant = $1 for update")
            .bind(kept)
            .execute(&mut *keeper)
            .await
            .unwrap();
        let mut others = bus.pool().begin().await.unwrap();
        for _ in 1..tenants.len() {
            let claim = "select id from bus.claim('test', 'work', 0, 'w')";
            let id = sqlx::query_scalar::<_, uuid::Uuid>(claim).fetch_optional(&mut *others);
            let id = tokio::time::timeout(PATIENCE, id).await.expect("it waits for ever").unwrap();
            assert!(id.is_some(), "nothing while {kept} is kept");
        }
        others.rollback().await.unwrap();
        keeper.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn sender_whose_constraints_are_immediate_silences_no_route() {
    let (bus, database) = bus().await;
    let mut heard = PgListener::connect(&database.url).await.unwrap();
    heard.listen("bus_ready").await.unwrap();
    let mut first = bus.pool().begin().await.unwrap();
    sqlx::query("set constraints all immediate").execute(&mut *first).await.unwrap();
    let send = "select bus.enqueue('test', 'work', 'acme', '{}')";
    sqlx::query(send).execute(&mut *first).await.unwrap();
    let hint = async {
        loop {
            bus.enqueue(&of("acme")).await.unwrap();
            if tokio::time::timeout(PAUSE, heard.recv()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hint).await.expect("a hint while the first sender stays");
}

#[tokio::test]
async fn claims_of_which_nothing_can_be_taken_back_leave_the_others_theirs() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    let stuck = [claim_one(&bus, "a").await.id, claim_one(&bus, "b").await.id];
    let other = claim_one(&bus, "c").await.id;
    leases_to_pass(&bus).await;
    let mut keeper = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = any ($1) for update")
        .bind(stuck)
        .execute(&mut *keeper)
        .await
        .unwrap();
    sqlx::query("update bus.claims set lease_until = lease_until - interval '1 s' where holder in ('a', 'b')")
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(bus.reclaim(1).await.unwrap(), 1);
    keeper.rollback().await.unwrap();
    run(&bus, "update bus.delayed set due = clock_timestamp()").await;
    assert_eq!(claim_one(&bus, "d").await.id, other);
}

#[tokio::test]
async fn slots_of_what_was_taken_back_are_free_while_one_is_kept() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Route, None, Some(10), None), "test").await.unwrap();
    bus.enqueue_many(&numbered(30)).await.unwrap();
    let held = claim(&bus, "w", 10).await;
    leases_to_pass(&bus).await;
    let mut keeper = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = $1 for update")
        .bind(held[0].id)
        .execute(&mut *keeper)
        .await
        .unwrap();
    assert_eq!(bus.reclaim(100).await.unwrap(), 9);
    assert_eq!(claim(&bus, "w2", 20).await.len(), 9);
    keeper.rollback().await.unwrap();
    assert_eq!(bus.reclaim(100).await.unwrap(), 1);
    assert_eq!(claim(&bus, "w3", 20).await.len(), 1);
}

#[tokio::test]
async fn what_started_without_a_rate_is_no_debt() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Tenant, None, None, Some(1.0)), "test").await.unwrap();
    bus.enqueue_many(&numbered(102)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1).await.len(), 1);
    let own = limit(CountedBy::Tenant, Some("acme"), Some(1000), None);
    bus.set_limit(&ROUTE, &own, "test").await.unwrap();
    assert_eq!(claim(&bus, "w", 100).await.len(), 100);
    let tokens: f64 = sqlx::query_scalar("select tokens from bus.buckets").fetch_one(bus.pool()).await.unwrap();
    assert!(tokens >= 0.0, "{tokens}");
    // as one that an earlier engine left
    run(&bus, "update bus.buckets set tokens = -1000000, at = clock_timestamp() - interval '2 seconds'").await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Tenant, Some("acme"), None, None), "test").await.unwrap();
    assert_eq!(claim(&bus, "w", 1).await.len(), 1);
}

#[tokio::test]
async fn limits_are_not_counted_in_an_old_snapshot() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Route, None, Some(1), None), "test").await.unwrap();
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let mut old = bus.pool().begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::query("select from bus.routes").execute(&mut *old).await.unwrap();
    claim_one(&bus, "w").await;
    let refused = sqlx::query("select bus.claim('test', 'work', 0, 'old')").execute(&mut *old).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("25000"), "{refused}");
}

#[tokio::test]
async fn claim_that_waited_for_its_turn_sees_that_the_route_was_paused() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Route, None, Some(10), None), "test").await.unwrap();
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let mut first = bus.pool().begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(lane) from bus.routes").execute(&mut *first).await.unwrap();
    let claiming = tokio_util::task::TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { claim(&bus, "w", 1).await.len() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.claim").await;
    bus.pause_route(&ROUTE, "test").await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(claiming.await.unwrap(), 0);
}

#[tokio::test]
async fn behind_many_tenants_without_tokens_there_may_be_one_with_some() {
    let (bus, _database) = bus().await;
    let slow = Limit { burst: Some(1.0), ..limit(CountedBy::Tenant, None, None, Some(0.001)) };
    bus.set_limit(&ROUTE, &slow, "test").await.unwrap();
    for _ in 0..2 {
        let batch: Vec<_> = (0..70).map(|number| of(&format!("t{number}"))).collect();
        bus.enqueue_many(&batch).await.unwrap();
    }
    assert_eq!(claim(&bus, "w", 70).await.len(), 70);
    let due = bus.next_due_for(&ROUTE, None).await.unwrap().expect("all of them wait for tokens");
    assert!(due <= Duration::from_secs(1), "{due:?}");
}

#[tokio::test]
async fn limits_that_would_never_hold_are_refused_in_words() {
    let (bus, _database) = bus().await;
    for (wrong, words) in [
        ("'tenants', max_running => 1", "route, tenant or key"),
        ("null, max_running => 1", "route, tenant or key"),
        ("'key', 'acme', 1", "tenant/key"),
        ("'route', 'acme', 1", "no subject"),
        ("'tenant', 'not a tenant', 1", "is a tenant"),
        ("'tenant', null, 1", "is a tenant"),
        ("'tenant', max_running => -1", "At least 0"),
        ("'tenant', per_second => 1e-20", "0.000000001"),
        ("'tenant', per_second => 'NaN'", "0.000000001"),
        ("'tenant', per_second => 1, burst => 0.5", "burst"),
    ] {
        let set = format!("select bus.set_limit('test', 'work', 0, {wrong})");
        let refused = sqlx::query(sqlx::AssertSqlSafe(set)).execute(bus.pool()).await.unwrap_err();
        let refused = refused.as_database_error().unwrap();
        assert_eq!(refused.code().as_deref(), Some("22023"), "{wrong}: {refused}");
        assert!(refused.message().contains(words), "{wrong}: {refused}");
    }
}

#[tokio::test]
async fn slot_of_what_was_extended_beside_a_completion_is_counted_when_its_claim_is_taken_back() {
    let (bus, _database) = bus().await;
    bus.set_limit(&ROUTE, &limit(CountedBy::Route, None, Some(3), None), "test").await.unwrap();
    // for a minute after a limit was set, claims from before it are looked for
    run(&bus, "delete from bus.unsettled").await;
    bus.enqueue_many(&numbered(10)).await.unwrap();
    let held = claim(&bus, "w", 3).await;
    let mut completing = bus.pool().begin().await.unwrap();
    assert!(Bus::complete_in(&mut completing, &held[0].fence(), "w", &Completion::default()).await.unwrap());
    let extended = bus.extend(&[held[2].fence()], "w", PATIENCE).await.unwrap();
    assert_eq!(extended.len(), 1);
    completing.rollback().await.unwrap();
    let mut keeper = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = $1 for share")
        .bind(held[1].id)
        .execute(&mut *keeper)
        .await
        .unwrap();
    run(&bus, "update bus.claims set lease_until = clock_timestamp() where limited").await;
    bus.reclaim(100).await.unwrap();
    let mut running = claim(&bus, "w2", 10).await.len();
    keeper.rollback().await.unwrap();
    bus.reclaim(100).await.unwrap();
    running += claim(&bus, "w2", 10).await.len();
    assert_eq!(running, 2, "beside the one that was extended");
}
