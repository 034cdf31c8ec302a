//! Schedules that keep no other from its time, and are told from others of their name.

use std::time::Duration;

use chrono::{DateTime, Utc};
use cogo_bus_core::{Bus, Error, Fired, MissedRuns, NewSchedule};
use cogo_db::MIGRATOR;
use serde_json::json;
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

#[tokio::test]
async fn what_is_left_out_of_a_long_catch_up_is_told_with_its_first_piece() {
    let (bus, _database) = bus().await;
    let capped = NewSchedule { catch_up_cap: 25, ..monthly("report", MissedRuns::RunAll) };
    overdue(&bus, &capped, 29).await;
    while bus.fire_due_schedules(10).await.unwrap().due > 0 {}
    let missed = events(&bus, "schedule_missed").await;
    assert_eq!((missed.len(), &missed[0]["sent"], &missed[0]["goes_on"]), (1, &json!(20), &json!(true)));
    assert_eq!(keys(&bus).await.len(), 25);
}

#[tokio::test]
async fn schedule_that_the_database_refuses_to_touch_keeps_no_other_from_its_time() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("refused", MissedRuns::RunOnce), 2).await;
    overdue(&bus, &monthly("free", MissedRuns::RunOnce), 0).await;
    // a rule that came after the row, which no change of the row passes
    sqlx::query("alter table bus.schedules add constraint later_rule check (name <> 'refused') not valid")
        .execute(bus.pool())
        .await
        .unwrap();
    assert!(matches!(bus.fire_due_schedules(10).await, Err(Error::Refused { .. })));
    assert_eq!(keys(&bus).await.len(), 1);
    assert!(one(&bus, "free").await.last_at.is_some());
}

#[tokio::test]
async fn lists_with_empty_places_that_were_taken_before_mean_the_rest_or_are_paused() {
    const BEFORE: i64 = 20_261_123_030_100;
    let database = cogo_test_support::empty_database().await;
    MIGRATOR.run_to(BEFORE, &database.pool).await.unwrap();
    for cron in ["1,,2 * * * *", ",1 * * * 5,", ",,, * * * *", "* * * * ,", "1,2 3 * * *"] {
        sqlx::query("select bus.upsert_schedule($1, $2, 'test', 'work', 'acme')")
            .bind(format!("was-{}", cron.replace(|character: char| !character.is_ascii_digit(), "-")))
            .bind(cron)
            .execute(&database.pool)
            .await
            .unwrap();
    }
    MIGRATOR.run(&database.pool).await.unwrap();
    let bus = Bus::new(database.pool.clone());
    let mut now: Vec<_> =
        bus.schedules(None).await.unwrap().into_iter().map(|one| (one.cron, one.paused, one.last_error)).collect();
    now.sort();
    let told = |cron: &str| Some(format!("Cron expression \"{cron}\" means no time"));
    let never = || "0 0 30 2 *".to_owned();
    assert_eq!(
        now,
        [
            (never(), true, told("* * * * ,")),
            (never(), true, told(",,, * * * *")),
            ("1 * * * 5".to_owned(), false, None),
            ("1,2 * * * *".to_owned(), false, None),
            ("1,2 3 * * *".to_owned(), false, None),
        ]
    );
}
