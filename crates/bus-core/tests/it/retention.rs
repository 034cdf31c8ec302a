//! Retention by days: a day goes as a whole, once all that began on it has ended and nobody is reading it.

use std::time::Duration;

use cogo_bus_core::{Bus, Completion, Failure};
use cogo_contracts::{NewMessage, TaskStatus};
use serde_json::json;
use tokio_util::task::TaskTracker;
use uuid::{Builder, Uuid};

use crate::support::{PATIENCE, ROUTE, bus, claim, claim_one, message, until_somebody_waits_for_a_lock};

/// The part of the day before today, and an id of that day for each number.
pub(crate) struct Yesterday {
    part: String,
    pub(crate) noon_ms: i64,
}

impl Yesterday {
    pub(crate) async fn of(bus: &Bus) -> Self {
        let (part, noon_ms): (String, i64) = sqlx::query_as(
            "select 'bus.messages_' || to_char(day, 'YYYYMMDD'),
                    (extract(epoch from (day + interval '12 hours') at time zone 'UTC') * 1000)::bigint
               from (select (clock_timestamp() at time zone 'UTC')::date - 1 as day) as yesterday",
        )
        .fetch_one(bus.pool())
        .await
        .unwrap();
        // a midnight since the database was made leaves a day before this one, which is nobody's here and would go too
        sqlx::query("select bus.note_changes_of_days(clock_timestamp())").execute(bus.pool()).await.unwrap();
        drop_until(bus, noon_ms - 12 * 3_600_000).await;
        Self { part, noon_ms }
    }

    pub(crate) fn id(&self, number: u8) -> Uuid {
        Builder::from_unix_timestamp_millis(self.noon_ms.unsigned_abs(), &[number; 10]).into_uuid()
    }

    pub(crate) fn message(&self, number: u8) -> NewMessage {
        NewMessage { id: Some(self.id(number)), ..message(json!({"number": number})) }
    }

    pub(crate) async fn stands(&self, bus: &Bus) -> bool {
        sqlx::query_scalar("select to_regclass($1) is not null").bind(&self.part).fetch_one(bus.pool()).await.unwrap()
    }
}

async fn drop_old(bus: &Bus) -> i64 {
    drop_until(bus, i64::from(u32::MAX) * 1000).await
}

/// Drops a day before this one, in ms since 1970, if one can go.
async fn drop_until(bus: &Bus, until_ms: i64) -> i64 {
    sqlx::query_scalar(
        "select bus.drop_day(d.part, d.day, d.rows_there, d.guests, cutoff)
           from least(clock_timestamp(), to_timestamp($1 / 1000.0)) as cutoff, bus.day_to_drop(cutoff) as d",
    )
    .bind(until_ms)
    .fetch_one(bus.pool())
    .await
    .unwrap()
}

pub(crate) async fn complete_all(bus: &Bus, follow_ups: Vec<NewMessage>) {
    for claimed in claim(bus, "w", 100).await {
        let completion = Completion { follow_ups: follow_ups.clone(), ..Completion::default() };
        assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
    }
}

#[tokio::test]
async fn day_whose_messages_have_all_ended_is_dropped_and_counted() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    let old: Vec<_> = (1..=5).map(|number| yesterday.message(number)).collect();
    bus.enqueue_many(&old).await.unwrap();
    let today = bus.enqueue(&message(json!({}))).await.unwrap().id;
    assert_eq!(drop_old(&bus).await, 0, "nothing has ended");
    let claimed = claim(&bus, "w", 100).await;
    let (last, others) = claimed.split_last().unwrap();
    for one in others {
        assert!(bus.complete(&one.fence(), "w", &Completion::default()).await.unwrap());
    }
    assert_eq!(drop_old(&bus).await, if last.id == today { 5 } else { 0 }, "one is unfinished");
    if last.id != today {
        let rejected = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
        bus.fail(&last.fence(), "w", &rejected).await.unwrap().unwrap();
        assert_eq!(drop_old(&bus).await, 5);
    }
    assert!(!yesterday.stands(&bus).await);
    assert!(bus.message(yesterday.id(1)).await.unwrap().is_none());
    assert!(bus.message(today).await.unwrap().is_some(), "today stays");
    assert_eq!(drop_old(&bus).await, 0, "once");
    // who sends with an id of that day is not turned away
    bus.enqueue(&yesterday.message(9)).await.unwrap();
    assert!(claim(&bus, "w", 100).await.iter().any(|one| one.id == yesterday.id(9)));
}

#[tokio::test]
async fn retention_goes_by_days_and_counts_them() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    bus.enqueue_many(&[yesterday.message(1), yesterday.message(2)]).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    assert_eq!(bus.retain(Duration::from_secs(3600), 1).await.unwrap(), 0, "they ended just now");
    assert!(yesterday.stands(&bus).await);
    // more than the one task that may be removed by itself
    assert_eq!(bus.retain(Duration::ZERO, 1).await.unwrap(), 2);
}

#[tokio::test]
async fn unfinished_step_of_a_later_day_keeps_the_day_of_its_task() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    bus.enqueue_many(&[yesterday.message(1), yesterday.message(2)]).await.unwrap();
    let claimed = claim(&bus, "w", 2).await;
    let with_child = Completion { follow_ups: vec![NewMessage::new(ROUTE, None, json!({}))], ..Completion::default() };
    assert!(bus.complete(&claimed[0].fence(), "w", &with_child).await.unwrap());
    assert!(bus.complete(&claimed[1].fence(), "w", &Completion::default()).await.unwrap());
    let open: Vec<String> =
        sqlx::query_scalar("select tableoid::regclass::text from public.agent_messages where done_at is null")
            .fetch_all(bus.pool())
            .await
            .unwrap();
    assert!(open.len() == 1 && open[0] != yesterday.part, "the child is of a later day: {open:?}");
    assert_eq!(drop_old(&bus).await, 0);
    assert!(yesterday.stands(&bus).await);
    let child = claim_one(&bus, "w").await;
    assert!(bus.complete(&child.fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(drop_old(&bus).await, 3, "with the step");
    assert!(!yesterday.stands(&bus).await);
    assert!(bus.message(child.id).await.unwrap().is_none());
}

#[tokio::test]
async fn replay_of_an_old_dead_letter_keeps_its_day() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    bus.enqueue(&yesterday.message(1)).await.unwrap();
    let dead = claim_one(&bus, "w").await;
    let rejected = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&dead.fence(), "w", &rejected).await.unwrap().unwrap();
    bus.replay(dead.id).await.unwrap();
    assert_eq!(drop_old(&bus).await, 0);
    complete_all(&bus, Vec::new()).await;
    assert_eq!(drop_old(&bus).await, 2, "with its replay");
}

#[tokio::test]
async fn day_that_somebody_reads_goes_the_next_time_and_no_sender_waits_for_that() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    bus.enqueue(&yesterday.message(1)).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    for table in [yesterday.part.clone(), "public.agent_messages".to_owned()] {
        let mut reader = bus.pool().begin().await.unwrap();
        let reads = format!("lock table only {table} in access share mode");
        sqlx::query(sqlx::AssertSqlSafe(reads)).execute(&mut *reader).await.unwrap();
        let dropping = TaskTracker::new().spawn({
            let bus = bus.clone();
            async move { drop_old(&bus).await }
        });
        let mut looks = 0;
        loop {
            let is_over = dropping.is_finished();
            // the lock that a sender takes, had at once or not at all
            let mut sender = bus.pool().begin().await.unwrap();
            let locked = sqlx::query("lock table only public.agent_messages in row exclusive mode nowait")
                .execute(&mut *sender)
                .await;
            assert!(locked.is_ok(), "a sender would have to wait while {table} is read: {locked:?}");
            sender.rollback().await.unwrap();
            looks += 1;
            if is_over {
                break;
            }
        }
        assert!(looks > 1, "the table was looked at meanwhile");
        assert_eq!(dropping.await.unwrap(), 0);
        assert!(yesterday.stands(&bus).await);
        reader.commit().await.unwrap();
    }
    assert_eq!(drop_old(&bus).await, 1);
    assert!(!yesterday.stands(&bus).await);
}

#[tokio::test]
async fn task_of_which_something_is_just_being_replayed_stays() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    let root = bus.enqueue(&yesterday.message(1)).await.unwrap().id;
    complete_all(&bus, vec![yesterday.message(2)]).await;
    let dead = claim_one(&bus, "w").await;
    let rejected = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.fail(&dead.fence(), "w", &rejected).await.unwrap().unwrap();
    let mut replaying = bus.pool().begin().await.unwrap();
    sqlx::query("select bus.replay($1)").bind(dead.id).execute(&mut *replaying).await.unwrap();
    let removed = tokio::time::timeout(PATIENCE, bus.retain(Duration::ZERO, 10)).await;
    assert_eq!(removed.expect("it waits for the replay").unwrap(), 0);
    replaying.commit().await.unwrap();
    assert!(bus.message(root).await.unwrap().is_some());
    complete_all(&bus, Vec::new()).await;
    assert_eq!(bus.task(root).await.unwrap().unwrap().status, TaskStatus::Done);
}

#[tokio::test]
async fn day_for_which_somebody_has_just_sent_stays_without_a_part() {
    let (bus, _database) = bus().await;
    let day_after = "to_char(clock_timestamp() at time zone 'UTC' + interval '4 days', 'YYYYMMDD')";
    let id = "bus.first_id(clock_timestamp() + interval '4 days')";
    let send = format!(
        "insert into public.agent_messages (id, service, role, tenant, payload)
         values ({id}, 'test', 'work', 'acme', '{{}}')"
    );
    let mut sending = bus.pool().begin().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(send)).execute(&mut *sending).await.unwrap();
    let making = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { sqlx::query_scalar::<_, i32>("select bus.ensure_partitions(4)").fetch_one(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "ensure_partitions").await;
    sending.commit().await.unwrap();
    making.await.unwrap().unwrap();
    let stands = format!("select to_regclass('bus.messages_' || {day_after}) is not null");
    let stands: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(stands)).fetch_one(bus.pool()).await.unwrap();
    assert!(!stands);
    assert_eq!(claim(&bus, "w", 10).await.len(), 1);
}

#[tokio::test]
async fn one_session_at_a_time_retains_and_others_need_not_wait() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    complete_all(&bus, vec![]).await;
    let retain = "select bus.retain('0')";
    let mut first = bus.pool().begin().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i32>(retain).fetch_one(&mut *first).await.unwrap(), 1);
    assert_eq!(sqlx::query_scalar::<_, i32>(retain).fetch_one(bus.pool()).await.unwrap(), 0, "the first is at it");
    first.rollback().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i32>(retain).fetch_one(bus.pool()).await.unwrap(), 1);
}

#[tokio::test]
async fn parts_are_made_by_one_session_at_a_time() {
    let (bus, _database) = bus().await;
    let make = "select bus.ensure_partitions(5)";
    let mut first = bus.pool().begin().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i32>(make).fetch_one(&mut *first).await.unwrap(), 2);
    let second = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { sqlx::query_scalar::<_, i32>(make).fetch_one(bus.pool()).await }
    });
    until_somebody_waits_for_a_lock(&bus, "ensure_partitions").await;
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_day_that_retention_dropped_is_not_made_again() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    assert!(yesterday.stands(&bus).await, "a new bus has it");
    sqlx::query("select bus.retain('0')").execute(bus.pool()).await.unwrap();
    assert!(!yesterday.stands(&bus).await);
    sqlx::query("select bus.ensure_partitions()").execute(bus.pool()).await.unwrap();
    assert!(!yesterday.stands(&bus).await);
}

#[tokio::test]
async fn day_with_a_step_of_a_task_that_goes_on_stays() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    sqlx::query(
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload)
         values ($1, $2, 'test', 'work', 'acme', '{}')",
    )
    .bind(yesterday.id(1))
    .bind(root)
    .execute(bus.pool())
    .await
    .unwrap();
    let claimed = claim(&bus, "w", 2).await;
    let (step, rest): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|one| one.id == yesterday.id(1));
    assert!(bus.complete(&step[0].fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(drop_old(&bus).await, 0, "its task is not over");
    assert!(yesterday.stands(&bus).await);
    assert!(bus.complete(&rest[0].fence(), "w", &Completion::default()).await.unwrap());
    assert_eq!(drop_old(&bus).await, 1);
}

#[tokio::test]
async fn what_is_left_of_a_task_without_its_beginning_goes_as_well_and_stops_no_replay() {
    let (bus, _database) = bus().await;
    let ids = [Builder::from_random_bytes([1; 16]).into_uuid(), Builder::from_random_bytes([2; 16]).into_uuid()];
    let rejected = Failure { reason: "broken".to_owned(), retriable: false, retry_after: None };
    bus.enqueue(&NewMessage { id: Some(ids[0]), ..message(json!({})) }).await.unwrap();
    let root = claim_one(&bus, "w").await;
    let follow_ups = vec![NewMessage { id: Some(ids[1]), ..NewMessage::new(ROUTE, None, json!({})) }];
    let completion = Completion { follow_ups, ..Completion::default() };
    assert!(bus.complete(&root.fence(), "w", &completion).await.unwrap());
    bus.fail(&claim_one(&bus, "w").await.fence(), "w", &rejected).await.unwrap().unwrap();
    bus.enqueue(&message(json!({}))).await.unwrap();
    let other = claim_one(&bus, "w").await;
    bus.fail(&other.fence(), "w", &rejected).await.unwrap().unwrap();
    sqlx::query("delete from public.agent_messages where id = $1").bind(ids[0]).execute(bus.pool()).await.unwrap();
    let replayed = bus.replay_many(None, None, 50.0, 10).await.unwrap();
    assert_eq!(replayed.iter().map(|one| one.dead_letter).collect::<Vec<_>>(), [other.id]);
    assert_eq!(bus.retain(Duration::ZERO, 10).await.unwrap(), 1, "the other task is not over");
    assert!(bus.message(ids[1]).await.unwrap().is_none());
}

#[tokio::test]
async fn retention_waits_for_no_sender_and_forgets_no_slow_rate() {
    let (bus, _database) = bus().await;
    sqlx::raw_sql(
        "select bus.enqueue_many('[{\"service\": \"test\", \"role\": \"work\", \"tenant\": \"acme\", \"idempotency_key\": \"a\"},
                                   {\"service\": \"test\", \"role\": \"work\", \"tenant\": \"acme\", \"idempotency_key\": \"b\"}]');
         update bus.keys set until = clock_timestamp();
         select bus.set_limit('test', 'work', 0, 'tenant', '', null, 1.0 / 2592000, 1);
         insert into bus.buckets (lane, counted_by, subject, tokens, at)
         select lane, 'tenant', name, 0, clock_timestamp() - age from bus.limits,
                (values ('empty', interval '8 days'), ('full', interval '40 days')) as b (name, age)",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let mut sender = bus.pool().begin().await.unwrap();
    sqlx::query("select from bus.keys where idempotency_key = 'a' for update").execute(&mut *sender).await.unwrap();
    tokio::time::timeout(PATIENCE, bus.retain(Duration::ZERO, 10)).await.expect("it waits for the sender").unwrap();
    let left: Vec<String> =
        sqlx::query_scalar("select idempotency_key from bus.keys union all select subject from bus.buckets")
            .fetch_all(bus.pool())
            .await
            .unwrap();
    assert_eq!(left, ["a", "empty"]);
}

#[tokio::test]
async fn retention_keeps_for_an_interval() {
    let (bus, _database) = bus().await;
    for keep in ["null", "'-1 day'"] {
        let retain = format!("select bus.retain({keep})");
        let refused = sqlx::query(sqlx::AssertSqlSafe(retain)).execute(bus.pool()).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("22023"), "{keep}");
    }
}
