//! Schedules: defining them, and firing each occurrence once whoever fires, crashes or comes late.

use cogo_bus_core::{Bus, Fired, MissedRuns, NewSchedule, Schedule, ScheduleError};
use cogo_contracts::Tenant;
use serde_json::json;
use sqlx::PgConnection;
use tokio_util::task::TaskTracker;

use crate::support::{PATIENCE, ROUTE, bus, claim, until_somebody_waits_for_a_lock};

/// Months are long enough not to turn over during a test.
const MONTHLY: &str = "0 0 1 * *";

pub(crate) fn acme() -> Tenant {
    Tenant::new("acme").unwrap()
}

pub(crate) fn monthly(name: &str, missed: MissedRuns) -> NewSchedule {
    NewSchedule { missed, ..NewSchedule::new(name, acme(), MONTHLY, ROUTE, json!({"report": name})) }
}

/// Defines a schedule whose occurrences of this month and the `months` before are due.
pub(crate) async fn overdue(bus: &Bus, schedule: &NewSchedule, months: i32) {
    bus.upsert_schedule(schedule).await.unwrap();
    sqlx::query(
        "update bus.schedules
            set next_at = (date_trunc('month', clock_timestamp() at time zone 'UTC') - make_interval(months => $1))
                          at time zone 'UTC'
          where name = $2",
    )
    .bind(months)
    .bind(&schedule.name)
    .execute(bus.pool())
    .await
    .unwrap();
}

pub(crate) async fn one(bus: &Bus, name: &str) -> Schedule {
    let schedules = bus.schedules(Some(&acme())).await.unwrap();
    schedules.into_iter().find(|schedule| schedule.name == name).unwrap()
}

pub(crate) async fn keys(bus: &Bus) -> Vec<String> {
    sqlx::query_scalar("select idempotency_key from public.agent_messages order by idempotency_key")
        .fetch_all(bus.pool())
        .await
        .unwrap()
}

pub(crate) async fn events(bus: &Bus, kind: &str) -> Vec<serde_json::Value> {
    sqlx::query_scalar("select detail from public.bus_events where kind = $1 order by id")
        .bind(kind)
        .fetch_all(bus.pool())
        .await
        .unwrap()
}

async fn count(bus: &Bus, condition: &str) -> i64 {
    let query = format!("select count(*) from bus.schedules where {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(bus.pool()).await.unwrap()
}

/// What a firer does once it has decided, for the occurrence that is due.
async fn record(connection: &mut PgConnection, name: &str) -> Option<i32> {
    sqlx::query_scalar(
        "select bus.record_schedule(name, tenant, revision, next_at, array[next_at], next_at + interval '1 month')
           from bus.schedules where name = $1",
    )
    .bind(name)
    .fetch_one(connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn new_schedule_gets_its_next_occurrence_and_sends_nothing_yet() {
    let (bus, _database) = bus().await;
    assert_eq!(bus.next_schedule_due().await.unwrap(), None);
    assert!(bus.upsert_schedule(&monthly("report", MissedRuns::RunAll)).await.unwrap());
    assert!(!bus.upsert_schedule(&monthly("report", MissedRuns::RunAll)).await.unwrap());
    assert_eq!(bus.next_schedule_due().await.unwrap(), Some(std::time::Duration::ZERO), "it must be computed");
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, ..Fired::default() });
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    assert_eq!(count(&bus, "next_at > clock_timestamp() and last_at is null").await, 1);
    assert!(bus.next_schedule_due().await.unwrap().unwrap() > std::time::Duration::ZERO);
    assert!(keys(&bus).await.is_empty());
}

#[tokio::test]
async fn due_occurrence_is_sent_once_and_says_which_one_it_is() {
    let (bus, _database) = bus().await;
    let schedule =
        NewSchedule { priority: 7, max_attempts: 2, ttl: Some(PATIENCE), ..monthly("report", MissedRuns::RunOnce) };
    overdue(&bus, &schedule, 0).await;
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, sent: 1, broken: 0 });
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    let recorded = one(&bus, "report").await;
    let occurrence = recorded.last_at.unwrap();
    assert_eq!(keys(&bus).await, [format!("schedule:report:{}", occurrence.format("%Y-%m-%dT%H:%M:%SZ"))]);
    let claimed = claim(&bus, "w", 1).await.remove(0);
    assert_eq!((Some(claimed.id), claimed.payload), (recorded.last_message_id, json!({"report": "report"})));
    assert_eq!(claimed.headers["schedule"], "report");
    let said: chrono::DateTime<chrono::Utc> = claimed.headers["scheduled_for"].as_str().unwrap().parse().unwrap();
    assert_eq!(said, occurrence);
    assert_eq!(claimed.max_attempts, 2);
    assert!(claimed.remaining_ms.unwrap() <= i64::try_from(PATIENCE.as_millis()).unwrap());
    let priority: i16 =
        sqlx::query_scalar("select priority from public.agent_messages").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(priority, 7);
}

#[tokio::test]
async fn missed_occurrences_follow_the_policy_and_what_is_left_out_is_recorded() {
    let (bus, _database) = bus().await;
    let capped = NewSchedule { catch_up_cap: 2, ..monthly("capped", MissedRuns::RunAll) };
    for schedule in [
        monthly("skip", MissedRuns::Skip),
        monthly("once", MissedRuns::RunOnce),
        monthly("all", MissedRuns::RunAll),
        capped,
    ] {
        overdue(&bus, &schedule, 3).await;
    }
    bus.fire_due_schedules(10).await.unwrap();
    let sent = |prefix: &'static str| {
        let bus = &bus;
        async move { keys(bus).await.into_iter().filter(|key| key.starts_with(prefix)).count() }
    };
    assert_eq!(sent("schedule:once:").await, 1);
    assert_eq!(sent("schedule:all:").await, 4);
    assert_eq!(sent("schedule:capped:").await, 2);
    // only in the first minute of a month would its own occurrence still be in time
    assert_eq!(count(&bus, "name = 'skip' and next_at > clock_timestamp()").await, 1);
    let skipped = events(&bus, "schedule_missed").await;
    let names: Vec<_> = skipped.iter().map(|detail| detail["schedule"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(!names.contains(&"all"));
}

#[tokio::test]
async fn firers_at_once_send_each_occurrence_once() {
    let (bus, _database) = bus().await;
    for number in 0..25 {
        overdue(&bus, &monthly(&format!("report-{number}"), MissedRuns::RunAll), 3).await;
    }
    let firers = (0..4).map(|_| {
        let bus = bus.clone();
        async move {
            let mut sent = 0;
            loop {
                match bus.fire_due_schedules(7).await.unwrap() {
                    Fired { due: 0, .. } => return sent,
                    fired => sent += fired.sent,
                }
            }
        }
    });
    let sent: u64 = futures_util::future::join_all(firers).await.into_iter().sum();
    assert_eq!((sent, keys(&bus).await.len()), (100, 100));
    assert_eq!(count(&bus, "next_at > clock_timestamp() and last_message_id is not null").await, 25);
}

#[tokio::test]
async fn second_firer_waits_for_the_first_and_records_nothing() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("report", MissedRuns::RunOnce), 0).await;
    let mut first = bus.pool().begin().await.unwrap();
    assert_eq!(record(&mut first, "report").await, Some(1));
    let second = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.fire_due_schedules(10).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.record_schedule").await;
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap(), Fired { due: 1, sent: 0, broken: 0 });
    assert_eq!(keys(&bus).await.len(), 1);
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
}

#[tokio::test]
async fn record_by_what_was_read_before_is_nothing() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("report", MissedRuns::RunOnce), 1).await;
    let due = one(&bus, "report").await.next_at.unwrap();
    let record = async |revision: i64, expected: chrono::DateTime<chrono::Utc>| {
        let statement =
            "select bus.record_schedule('report', 'acme', $1, $2, array[$3::timestamptz], $3 + interval '1 day')";
        let other_occurrence = due + chrono::TimeDelta::seconds(1);
        let recorded: Option<i32> = sqlx::query_scalar(statement)
            .bind(revision)
            .bind(expected)
            .bind(other_occurrence)
            .fetch_one(bus.pool())
            .await
            .unwrap();
        recorded
    };
    let revision: i64 = sqlx::query_scalar("select revision from bus.schedules").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(record(revision + 1, due).await, None, "people changed it");
    assert_eq!(record(revision, due - chrono::TimeDelta::seconds(1)).await, None, "another firer moved it");
    assert_eq!(record(revision, due).await, Some(1));
    assert_eq!(record(revision, due).await, None, "it moved");
    assert_eq!(keys(&bus).await.len(), 1);
}

#[tokio::test]
async fn firer_that_dies_before_its_commit_leaves_the_occurrence_to_the_next() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("report", MissedRuns::RunOnce), 0).await;
    let mut dying = bus.pool().begin().await.unwrap();
    assert_eq!(record(&mut dying, "report").await, Some(1));
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *dying).await.unwrap();
    let next = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.fire_due_schedules(10).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.record_schedule").await;
    sqlx::query("select pg_terminate_backend($1)").bind(backend).execute(bus.pool()).await.unwrap();
    assert_eq!(next.await.unwrap(), Fired { due: 1, sent: 1, broken: 0 });
    assert_eq!(keys(&bus).await.len(), 1);
}

#[tokio::test]
async fn occurrence_before_the_first_look_of_a_firer_is_not_lost() {
    let (bus, _database) = bus().await;
    bus.upsert_schedule(&monthly("report", MissedRuns::RunAll)).await.unwrap();
    sqlx::query(
        "update bus.schedules set since = (date_trunc('month', clock_timestamp() at time zone 'UTC')
                                                   - interval '1 month 1 day') at time zone 'UTC'",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, sent: 2, broken: 0 });
}

#[tokio::test]
async fn definition_said_again_keeps_what_is_due_and_a_changed_one_begins_anew() {
    let (bus, _database) = bus().await;
    let schedule = monthly("report", MissedRuns::RunOnce);
    overdue(&bus, &schedule, 0).await;
    bus.upsert_schedule(&NewSchedule { payload: json!({"changed": true}), ..schedule.clone() }).await.unwrap();
    assert_eq!(bus.fire_due_schedules(10).await.unwrap().sent, 1);
    assert_eq!(claim(&bus, "w", 1).await[0].payload, json!({"changed": true}));
    overdue(&bus, &schedule, 0).await;
    bus.upsert_schedule(&NewSchedule { time_zone: "Asia/Tokyo".to_owned(), ..schedule }).await.unwrap();
    assert_eq!(one(&bus, "report").await.next_at, None);
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, ..Fired::default() });
    assert_eq!(
        count(&bus, "next_at > clock_timestamp() and extract(hour from next_at at time zone 'UTC') = 15").await,
        1
    );
}

#[tokio::test]
async fn paused_schedule_sends_nothing_and_resumes_without_what_it_missed() {
    let (bus, _database) = bus().await;
    let schedule = monthly("report", MissedRuns::RunAll);
    overdue(&bus, &schedule, 3).await;
    assert!(bus.pause_schedule(&acme(), "report").await.unwrap());
    assert!(!bus.pause_schedule(&acme(), "report").await.unwrap());
    bus.upsert_schedule(&schedule).await.unwrap();
    assert!(one(&bus, "report").await.paused, "a deployment does not undo what people did");
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    assert_eq!(bus.next_schedule_due().await.unwrap(), None);
    assert!(bus.resume_schedule(&acme(), "report").await.unwrap());
    assert!(!bus.resume_schedule(&acme(), "report").await.unwrap());
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, ..Fired::default() });
    assert!(bus.remove_schedule(&acme(), "report").await.unwrap());
    assert!(!bus.remove_schedule(&acme(), "report").await.unwrap());
    assert!(!bus.resume_schedule(&Tenant::new("other").unwrap(), "report").await.unwrap());
    assert!(bus.schedules(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn change_by_people_beats_a_firer_that_read_before_it() {
    let (bus, _database) = bus().await;
    let schedule = monthly("report", MissedRuns::RunOnce);
    overdue(&bus, &schedule, 0).await;
    let mut people = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.pause_schedule('report', 'acme')").execute(&mut *people).await.unwrap();
    let firer = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.fire_due_schedules(10).await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.record_schedule").await;
    people.commit().await.unwrap();
    assert_eq!(firer.await.unwrap(), Fired { due: 1, sent: 0, broken: 0 });
    assert!(keys(&bus).await.is_empty());
}

#[tokio::test]
async fn expression_that_sql_cannot_judge_is_paused_with_the_reason_and_holds_up_nobody() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("good", MissedRuns::RunOnce), 0).await;
    for (name, cron) in [("no-such-minute", "61 * * * *"), ("no-such-day", "0 0 30 2 *")] {
        let created: bool = sqlx::query_scalar("select bus.upsert_schedule($1, $2, 'test', 'work', 'acme')")
            .bind(name)
            .bind(cron)
            .fetch_one(bus.pool())
            .await
            .unwrap();
        assert!(created);
    }
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 3, sent: 1, broken: 2 });
    let broken = one(&bus, "no-such-minute").await;
    assert!(broken.paused && broken.last_error.unwrap().contains("61 * * * *"));
    assert!(one(&bus, "no-such-day").await.last_error.unwrap().contains("no occurrence"));
    assert_eq!(events(&bus, "schedule_broken").await.len(), 2);
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    bus.upsert_schedule(&monthly("no-such-minute", MissedRuns::Skip)).await.unwrap();
    let mended = one(&bus, "no-such-minute").await;
    assert_eq!((mended.paused, mended.last_error), (false, None));
}

#[tokio::test]
async fn definitions_that_make_no_sense_are_refused_by_sql_as_well() {
    let (bus, _database) = bus().await;
    for arguments in [
        "'a b', '* * * * *', 'test', 'work', 'acme'",
        "'a', '* * * *', 'test', 'work', 'acme'",
        "'a', '* * * * * * *', 'test', 'work', 'acme'",
        "'a', '@daily', 'test', 'work', 'acme'",
        "'a', ',,, * * * *', 'test', 'work', 'acme'",
        "'a', '1,,2 * * * *', 'test', 'work', 'acme'",
        "'a', '* * * * *', 'Test', 'work', 'acme'",
        "'a', '* * * * *', 'test', 'work', '-'",
        "'a', '* * * * *', 'test', 'work', 'acme', '[]'",
        "'a', '* * * * *', 'test', 'work', 'acme', '{}', 'Mars/Olympus'",
        "'a', '* * * * *', 'test', 'work', 'acme', missed => 'sometimes'",
        "'a', '* * * * *', 'test', 'work', 'acme', catch_up_cap => 0",
        "'a', '* * * * *', 'test', 'work', 'acme', priority => 99999",
    ] {
        let statement = format!("select bus.upsert_schedule({arguments})");
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(bus.pool()).await.unwrap_err();
        assert!(matches!(refused.into(), cogo_bus_core::Error::Refused { .. }), "{arguments}");
    }
    let spaced = "select bus.upsert_schedule('a', '  */5   *  * * * ', 'test', 'work', 'acme')";
    assert!(sqlx::query_scalar::<_, bool>(spaced).fetch_one(bus.pool()).await.unwrap());
    assert_eq!(one(&bus, "a").await.cron, "*/5 * * * *");
    let never = NewSchedule { cron: "0 0 30 2 *".to_owned(), ..monthly("b", MissedRuns::Skip) };
    assert!(matches!(bus.upsert_schedule(&never).await, Err(ScheduleError::Invalid(_))));
}

#[tokio::test]
async fn schedule_of_a_drained_route_waits_until_it_is_opened() {
    let (bus, _database) = bus().await;
    overdue(&bus, &monthly("report", MissedRuns::RunOnce), 0).await;
    bus.drain_route(&ROUTE, "test").await.unwrap();
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired::default());
    assert_eq!(bus.next_schedule_due().await.unwrap(), None, "nobody has to look");
    assert_eq!(cogo_bus_core::overdue(bus.pool()).await.unwrap().schedule, None);
    bus.open_route(&ROUTE, "test").await.unwrap();
    assert_eq!(bus.fire_due_schedules(10).await.unwrap(), Fired { due: 1, sent: 1, broken: 0 });
}

#[tokio::test]
async fn time_zone_is_a_place() {
    let (bus, _database) = bus().await;
    for (time_zone, told) in [("posix/UTC", "a_place"), ("posixrules", "a_place"), ("Mars", "Mars is not known")] {
        let upsert = "select bus.upsert_schedule('report', '0 0 1 * *', 'test', 'work', 'acme', time_zone => $1)";
        let refused = sqlx::query(upsert).bind(time_zone).execute(bus.pool()).await.unwrap_err();
        assert!(refused.to_string().contains(told), "{refused}");
    }
}
