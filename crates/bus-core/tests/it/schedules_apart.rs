//! Schedules that keep no other from its time, and are told from others of their name.

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_bus_core::{Fired, MissedRuns};
use tokio::time::timeout;

use crate::{
    schedules::{acme, events, keys, monthly, one, overdue},
    support::{PATIENCE, bus},
};

#[tokio::test]
async fn schedule_that_was_made_anew_is_not_what_a_firer_has_looked_at() {
    let (bus, _database) = bus().await;
    bus.upsert_schedule(&monthly("report", MissedRuns::RunOnce)).await.unwrap();
    let seen = "select revision, next_at from bus.due_schedules()";
    let seen: (i64, Option<DateTime<Utc>>) = sqlx::query_as(seen).fetch_one(bus.pool()).await.unwrap();
    assert!(bus.remove_schedule(&acme(), "report").await.unwrap());
    assert!(bus.upsert_schedule(&monthly("report", MissedRuns::RunOnce)).await.unwrap(), "it is new");
    let recorded: Option<i32> = sqlx::query_scalar(
        "select bus.record_schedule('report', 'acme', $1, $2, array[clock_timestamp()], clock_timestamp())",
    )
    .bind(seen.0)
    .bind(seen.1)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    let broken: bool = sqlx::query_scalar("select bus.break_schedule('report', 'acme', $1, 'of the old one')")
        .bind(seen.0)
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!((recorded, broken, one(&bus, "report").await.paused), (None, false, false));
    assert!(keys(&bus).await.is_empty());
}

#[tokio::test]
async fn schedule_that_somebody_has_locked_keeps_no_other_from_its_time() {
    let (bus, _database) = bus().await;
    // older, so that they come first
    for name in ["locked", "never"] {
        overdue(&bus, &monthly(name, MissedRuns::RunOnce), 2).await;
    }
    overdue(&bus, &monthly("free", MissedRuns::RunOnce), 0).await;
    sqlx::query("update bus.schedules set cron = '0 0 30 2 *' where name = 'never'").execute(bus.pool()).await.unwrap();
    let mut idle = bus.pool().begin().await.unwrap();
    sqlx::query("select from bus.schedules where name in ('locked', 'never') for update")
        .execute(&mut *idle)
        .await
        .unwrap();
    let fired = timeout(PATIENCE, bus.fire_due_schedules(10)).await.unwrap().unwrap();
    assert_eq!(fired, Fired { due: 3, sent: 1, broken: 0 });
    idle.commit().await.unwrap();
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 2, sent: 1, broken: 1 });
}

#[tokio::test]
async fn long_catch_up_stands_piece_by_piece() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("report", MissedRuns::RunAll), 29).await;
    overdue(&bus, &monthly("other", MissedRuns::RunOnce), 0).await;
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 2, sent: 21, broken: 0 });
    assert_eq!(bus.next_schedule_due().await.unwrap(), Some(Duration::ZERO));
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, sent: 10, broken: 0 });
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    assert_eq!(keys(&bus).await.len(), 31);
    assert!(events(&bus, "schedule_missed").await.is_empty(), "nothing of it was left out");
}
