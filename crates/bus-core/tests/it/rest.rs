//! Short questions of those who look again and again: they see all that there is to do, and nothing at rest.

use std::time::Duration;

use cogo_bus_core::{Completion, MissedRuns, NewSchedule, Overdue, Traffic, overdue, traffic};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;

use crate::{
    service_role::as_service_role,
    support::{ROUTE, bus, claim, claim_one, leases_to_pass, message},
};

const NOTHING: Overdue = Overdue { leases: false, outlived: false, schedule: None };

#[tokio::test]
async fn what_the_chores_have_to_do_is_seen_and_gone_once_it_is_done() {
    let (bus, database) = bus().await;
    let worker = as_service_role(&database).await;
    let seen = async || {
        let seen = overdue(bus.pool()).await.unwrap();
        assert_eq!(overdue(&worker).await.unwrap(), seen, "a worker's own role is told the same");
        seen
    };
    assert_eq!(seen().await, NOTHING);
    bus.enqueue(&NewMessage { ttl_ms: Some(3_600_000), ..message(json!({})) }).await.unwrap();
    bus.enqueue(&message(json!({}))).await.unwrap();
    claim(&bus, "w", 1).await;
    assert_eq!(seen().await, NOTHING, "lease and time to live still run");
    leases_to_pass(&bus).await;
    assert_eq!(seen().await, Overdue { leases: true, ..NOTHING });
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    assert_eq!(seen().await, NOTHING);

    bus.enqueue(&NewMessage { ttl_ms: Some(1), ..message(json!({})) }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(seen().await, Overdue { outlived: true, ..NOTHING });
    assert_eq!(bus.expire(10).await.unwrap(), 1);
    assert_eq!(seen().await, NOTHING);
}

#[tokio::test]
async fn a_schedule_is_seen_before_it_is_due() {
    let (bus, _database) = bus().await;
    let tenant = Tenant::new("acme").unwrap();
    let yearly =
        NewSchedule { missed: MissedRuns::RunAll, ..NewSchedule::new("yearly", tenant, "0 0 1 1 *", ROUTE, json!({})) };
    bus.upsert_schedule(&yearly).await.unwrap();
    assert_eq!(overdue(bus.pool()).await.unwrap().schedule, Some(Duration::ZERO), "its time is yet to be computed");
    bus.fire_due_schedules(10).await.unwrap();
    let wait = overdue(bus.pool()).await.unwrap().schedule.unwrap();
    let asked_alone = bus.next_schedule_due().await.unwrap().unwrap();
    assert!(wait > Duration::ZERO && wait >= asked_alone && wait - asked_alone < Duration::from_secs(60), "{wait:?}");
}

#[tokio::test]
async fn traffic_shows_all_that_is_unfinished_and_that_something_came_and_went() {
    let (bus, database) = bus().await;
    let worker = as_service_role(&database).await;
    let seen = async || {
        let seen = traffic(bus.pool()).await.unwrap();
        assert_eq!(traffic(&worker).await.unwrap(), seen, "a worker's own role is told the same");
        seen
    };
    assert_eq!(seen().await, Traffic { unfinished: false, newest: None });
    let first = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(seen().await, Traffic { unfinished: true, newest: Some(first) });
    let claimed = claim_one(&bus, "w").await;
    assert!(seen().await.unfinished);
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    let after = seen().await;
    assert_eq!(after, Traffic { unfinished: false, newest: Some(first) });
    let delayed = NewMessage { delay_ms: Some(3_600_000), ..message(json!({})) };
    let delayed = bus.enqueue(&delayed).await.unwrap().id;
    assert_eq!(seen().await, Traffic { unfinished: true, newest: Some(delayed) });
    bus.cancel(delayed).await.unwrap();
    let last = seen().await;
    assert!(!last.unfinished && last.newest > after.newest, "{last:?}");
}
