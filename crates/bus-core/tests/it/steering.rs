//! Steering routes: pause, resume, drain, open, aging, and what is listed of them.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, CountedBy, Error, Limit};
use cogo_contracts::{NewMessage, Route};
use serde_json::json;
use uuid::Uuid;

use crate::support::{PATIENCE, ROUTE, bus, claim, claim_one, message, numbered};

#[tokio::test]
async fn paused_route_gives_nothing_until_it_is_resumed() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    let in_hand = claim_one(&bus, "w").await;
    bus.pause_route(&ROUTE, "test").await.unwrap();
    assert!(claim(&bus, "w", 10).await.is_empty());
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert!(claim(&bus, "w", 10).await.is_empty(), "sending goes on");
    assert!(bus.complete(&in_hand.fence(), "w", &Completion::default()).await.unwrap(), "so does what is in hand");

    let mut listener = sqlx::postgres::PgListener::connect_with(bus.pool()).await.unwrap();
    listener.listen("bus_ready").await.unwrap();
    bus.resume_route(&ROUTE, "test").await.unwrap();
    let woken = tokio::time::timeout(PATIENCE, listener.recv()).await.expect("resuming wakes the workers").unwrap();
    assert_eq!(woken.payload(), ROUTE.to_string());
    assert_eq!(claim(&bus, "w", 10).await.len(), 3);
}

#[tokio::test]
async fn drained_route_accepts_nothing_new_but_works_off_what_is_there() {
    let (bus, _database) = bus().await;
    let failing = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let held = claim_one(&bus, "w").await;
    bus.drain_route(&ROUTE, "test").await.unwrap();
    let refused = bus.enqueue(&message(json!({}))).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    let delayed = NewMessage { delay_ms: Some(60_000), ..message(json!({})) };
    assert!(bus.enqueue(&delayed).await.is_err(), "also what needs more than the short way");
    let elsewhere = NewMessage { route: Route::constant("test", "other"), ..message(json!({})) };
    bus.enqueue(&elsewhere).await.unwrap();

    let child = NewMessage { tenant: None, ..message(json!({"child": true})) };
    let completion = Completion { follow_ups: vec![child], ..Completion::default() };
    assert!(bus.complete(&held.fence(), "w", &completion).await.unwrap());
    let child = claim_one(&bus, "w").await;
    assert_eq!(child.parent_id, Some(failing), "children of what runs are accepted");
    let failure = cogo_bus_core::Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&child.fence(), "w", &failure).await.unwrap();
    let replay = bus.replay(child.id).await.unwrap();
    assert_eq!(claim_one(&bus, "w").await.id, replay, "so are replays");

    bus.open_route(&ROUTE, "test").await.unwrap();
    bus.enqueue(&message(json!({}))).await.unwrap();
    claim_one(&bus, "w").await;
}

#[tokio::test]
async fn settings_and_limits_are_listed_and_every_change_is_recorded() {
    let (bus, _database) = bus().await;
    assert!(bus.routes().await.unwrap().is_empty());
    bus.pause_route(&ROUTE, "ann").await.unwrap();
    bus.set_aging(&ROUTE, Duration::from_secs(2), "bob").await.unwrap();
    let by_tenant = Limit {
        counted_by: CountedBy::Tenant,
        subject: Some("acme".to_owned()),
        max_running: Some(4),
        per_second: None,
        burst: None,
    };
    let by_route =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: None, per_second: Some(7.5), burst: None };
    bus.set_limit(&ROUTE, &by_tenant, "bob").await.unwrap();
    bus.set_limit(&ROUTE, &by_route, "cyd").await.unwrap();
    let routes = bus.routes().await.unwrap();
    assert_eq!(routes.len(), 1);
    let settings = &routes[0];
    assert_eq!((&settings.route, settings.paused, settings.draining), (&ROUTE, true, false));
    assert_eq!((settings.aging_ms, settings.changed_by.as_deref()), (2000, Some("cyd")));
    let with_burst = Limit { burst: Some(7.5), ..by_route.clone() };
    assert_eq!(settings.limits, [by_tenant.clone(), with_burst]);

    bus.set_limit(&ROUTE, &Limit { max_running: None, ..by_tenant }, "cyd").await.unwrap();
    assert_eq!(bus.routes().await.unwrap()[0].limits.len(), 1, "without a number it is removed");
    let events: Vec<String> = sqlx::query_scalar(
        "select kind || ' by ' || actor from public.bus_events where kind like 'route%' order by id",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert_eq!(events, ["route_pause by ann"]);

    for (max_running, per_second, burst) in
        [(None, Some(0.0), None), (None, Some(f64::NAN), None), (None, Some(1.0), Some(0.5)), (None, Some(1e9), None)]
    {
        let nonsense = Limit { max_running, per_second, burst, ..by_route.clone() };
        let refused = bus.set_limit(&ROUTE, &nonsense, "cyd").await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{nonsense:?}: {refused:?}");
    }
    let of_one = Limit { subject: Some("acme".to_owned()), ..by_route };
    assert!(
        matches!(bus.set_limit(&ROUTE, &of_one, "cyd").await, Err(Error::Refused { .. })),
        "a route has no subject"
    );
    let too_long = bus.set_aging(&ROUTE, Duration::from_secs(86_401), "cyd").await;
    assert!(matches!(too_long, Err(Error::Refused { .. })));
}

/// As if the message had been sent this much earlier.
async fn sent_earlier(bus: &Bus, id: Uuid, seconds: i64) {
    sqlx::query("update public.agent_messages set created_at = created_at - $2 * interval '1 second' where id = $1")
        .bind(id)
        .bind(seconds)
        .execute(bus.pool())
        .await
        .unwrap();
    sqlx::query("update bus.ready set due = due - $2 * 1000000 where $1 = any (ids)")
        .bind(id)
        .bind(seconds)
        .execute(bus.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn waiting_makes_up_for_priority() {
    let (bus, _database) = bus().await;
    let of = |priority| NewMessage { priority: Some(priority), ..message(json!({})) };
    // 200 points at 10 s each are made up for in 2000 s
    for (seconds, old_goes_first) in [(1900, false), (2100, true)] {
        let old = bus.enqueue(&of(200)).await.unwrap().id;
        sent_earlier(&bus, old, seconds).await;
        let urgent = bus.enqueue(&of(0)).await.unwrap().id;
        let order = [claim_one(&bus, "w").await.id, claim_one(&bus, "w").await.id];
        assert_eq!(order, if old_goes_first { [old, urgent] } else { [urgent, old] }, "after {seconds} s");
    }
}

#[tokio::test]
async fn aging_is_set_for_each_route_and_also_holds_for_what_is_tried_again() {
    let (bus, _database) = bus().await;
    bus.set_aging(&ROUTE, Duration::ZERO, "test").await.unwrap();
    let of = |priority| NewMessage { priority: Some(priority), ..message(json!({})) };
    let first = bus.enqueue(&of(1000)).await.unwrap().id;
    let second = bus.enqueue(&of(0)).await.unwrap().id;
    let held = claim(&bus, "w", 1).await;
    assert_eq!(held[0].id, first, "without a price of time the order is that of sending");
    bus.release(&[held[0].fence()], "w").await.unwrap();
    assert_eq!(claim_one(&bus, "w").await.id, first, "what was handed back keeps its place");
    assert_eq!(claim_one(&bus, "w").await.id, second);
}

#[tokio::test]
async fn route_that_cannot_be_is_not_steered() {
    let (bus, _database) = bus().await;
    for (service, role, shard) in [("S S", "work", 0), ("test", "", 0), ("test", "work", 65536)] {
        let steer = sqlx::query("select bus.steer($1, $2, $3, 'pause')").bind(service).bind(role).bind(shard);
        let refused = steer.execute(bus.pool()).await.unwrap_err();
        assert!(refused.to_string().contains("service_and_role_are_names"), "{refused}");
    }
}

#[tokio::test]
async fn burst_without_a_rate_is_refused_and_the_limit_stands() {
    let (bus, _database) = bus().await;
    let set = |what: &str| sqlx::AssertSqlSafe(format!("select bus.set_limit('test', 'work', 0, 'route', {what})"));
    sqlx::query(set("max_running => 0")).execute(bus.pool()).await.unwrap();
    let refused = sqlx::query(set("burst => 5")).execute(bus.pool()).await.unwrap_err().into_database_error().unwrap();
    assert!(refused.code().as_deref() == Some("22023") && refused.message().contains("per_second"), "{refused}");
    bus.enqueue(&message(json!({}))).await.unwrap();
    assert_eq!(claim(&bus, "w", 1).await.len(), 0);
}
