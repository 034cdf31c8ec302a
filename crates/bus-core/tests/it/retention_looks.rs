//! What changes between the look at a day and its end: the day stays, or goes another way.

use std::time::Duration;

use cogo_bus_core::Bus;
use cogo_contracts::NewMessage;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::{Builder, Uuid};

use crate::{
    retention::{Yesterday, complete_all},
    support::{ROUTE, bus, message},
};

#[tokio::test]
async fn day_of_which_a_part_is_old_waits_to_go_as_a_whole() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    bus.enqueue(&yesterday.message(1)).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    // as old as the day can be
    sqlx::query(
        "update public.agent_messages set id = bus.first_id(day), root_id = bus.first_id(day), done_at = day
           from (select date_trunc('day', clock_timestamp() - interval '1 day', 'UTC') as day) as of_then",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    assert_eq!(bus.retain(Duration::from_hours(24), 10).await.unwrap(), 0);
    assert!(yesterday.stands(&bus).await);
}

#[tokio::test]
async fn day_that_has_changed_since_it_was_looked_through_stays() {
    let changes = [
        "insert into public.agent_messages (id, service, role, tenant, payload)
         values ($2, 'test', 'work', 'acme', '{}')",
        "insert into public.agent_messages (root_id, service, role, tenant, payload)
         select $1, 'test', 'work', 'acme', '{}' where $2 is distinct from $1",
        "update public.agent_messages set status = 'queued', done_at = null where id = $1 and $2 is distinct from $1",
    ];
    for change in changes {
        let (bus, _database) = bus().await;
        let yesterday = Yesterday::of(&bus).await;
        bus.enqueue(&yesterday.message(1)).await.unwrap();
        complete_all(&bus, Vec::new()).await;
        let mut retention = bus.pool().acquire().await.unwrap();
        sqlx::raw_sql(
            "create temp table looked as
             select d.*, cutoff from clock_timestamp() as cutoff, bus.day_to_drop(cutoff) as d where d.part is not null",
        )
        .execute(&mut *retention)
        .await
        .unwrap();
        sqlx::query(change).bind(yesterday.id(1)).bind(yesterday.id(2)).execute(bus.pool()).await.unwrap();
        let removed: i64 =
            sqlx::query_scalar("select bus.drop_day(part, day, rows_there, guests, cutoff) from pg_temp.looked")
                .fetch_one(&mut *retention)
                .await
                .unwrap();
        assert_eq!(removed, 0, "{change}");
        assert!(yesterday.stands(&bus).await, "{change}");
    }
}

#[tokio::test]
async fn day_with_a_step_of_a_task_that_has_just_gone_on_stays() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    let before =
        Builder::from_unix_timestamp_millis(yesterday.noon_ms.unsigned_abs() - 86_400_000, &[1; 10]).into_uuid();
    bus.enqueue(&NewMessage { id: Some(before), ..message(json!({})) }).await.unwrap();
    complete_all(&bus, vec![NewMessage { id: Some(yesterday.id(1)), ..NewMessage::new(ROUTE, None, json!({})) }]).await;
    complete_all(&bus, Vec::new()).await;
    let mut retention = bus.pool().acquire().await.unwrap();
    sqlx::raw_sql(
        "create temp table looked as
         select d.*, cutoff from clock_timestamp() as cutoff, bus.day_to_drop(cutoff) as d where d.part is not null",
    )
    .execute(&mut *retention)
    .await
    .unwrap();
    let drop = "select bus.drop_day(part, day, rows_there, guests, cutoff) from pg_temp.looked";
    sqlx::query("insert into public.agent_messages (root_id, service, role, tenant, payload) values ($1, 'test', 'work', 'acme', '{}')")
        .bind(before)
        .execute(bus.pool())
        .await
        .unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(drop).fetch_one(&mut *retention).await.unwrap(), 0);
    complete_all(&bus, Vec::new()).await;
    sqlx::query("update public.agent_messages set done_at = (select cutoff from pg_temp.looked) - interval '1 second'")
        .execute(&mut *retention)
        .await
        .unwrap();
    sqlx::query("delete from bus.touched").execute(&mut *retention).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, i64>(drop).fetch_one(&mut *retention).await.unwrap(), 1);
}

/// A part for three days ago, and an id of that day.
async fn three_days_ago(bus: &Bus) -> Uuid {
    sqlx::raw_sql(
        "do $$
         declare
           day constant date := (clock_timestamp() at time zone 'UTC')::date - 3;
         begin
           execute format('create table bus.%I partition of public.agent_messages for values from (%L) to (%L)',
                          'messages_' || to_char(day, 'YYYYMMDD'), bus.first_id(day::timestamp at time zone 'UTC'),
                          bus.first_id((day + 1)::timestamp at time zone 'UTC'));
         end $$",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    sqlx::query_scalar("select bus.first_id(date_trunc('day', clock_timestamp(), 'UTC') - interval '60 hours')")
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn step_with_an_old_id_keeps_the_day_of_its_task() {
    let (bus, _database) = bus().await;
    let yesterday = Yesterday::of(&bus).await;
    three_days_ago(&bus).await;
    bus.enqueue(&yesterday.message(1)).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    let mut retention = bus.pool().acquire().await.unwrap();
    sqlx::raw_sql(
        "create temp table looked as
         select d.*, cutoff from clock_timestamp() as cutoff, bus.day_to_drop(cutoff) as d where d.part is not null",
    )
    .execute(&mut *retention)
    .await
    .unwrap();
    sqlx::query(
        "insert into public.agent_messages (id, root_id, service, role, tenant, payload)
         select bus.first_id(date_trunc('day', clock_timestamp(), 'UTC') - interval '59 hours'), $1, 'test', 'work', 'acme', '{}'",
    )
    .bind(yesterday.id(1))
    .execute(bus.pool())
    .await
    .unwrap();
    let removed: i64 =
        sqlx::query_scalar("select bus.drop_day(part, day, rows_there, guests, cutoff) from pg_temp.looked")
            .fetch_one(&mut *retention)
            .await
            .unwrap();
    assert_eq!(removed, 0);
    assert!(yesterday.stands(&bus).await);
}

#[tokio::test]
async fn old_days_that_somebody_always_keeps_open_are_emptied() {
    let (bus, _database) = bus().await;
    let old = three_days_ago(&bus).await;
    bus.enqueue(&NewMessage { id: Some(old), ..message(json!({})) }).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    sqlx::query("update public.agent_messages set done_at = done_at - interval '2 days'")
        .execute(bus.pool())
        .await
        .unwrap();
    let mut keeper = bus.pool().begin().await.unwrap();
    sqlx::query("select from public.agent_messages").execute(&mut *keeper).await.unwrap();
    assert_eq!(bus.retain(Duration::from_hours(24), 10).await.unwrap(), 1);
    keeper.rollback().await.unwrap();
}

#[tokio::test]
async fn retention_does_not_go_by_an_old_snapshot() {
    let (bus, _database) = bus().await;
    let mut old = bus.pool().begin_with("begin isolation level repeatable read").await.unwrap();
    let refused = sqlx::query("select bus.retain('1 day')").execute(&mut *old).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("25000"), "{refused}");
}

#[tokio::test]
async fn what_is_removed_one_by_one_of_a_day_that_goes_then_is_counted_once() {
    let (bus, _database) = bus().await;
    let old = three_days_ago(&bus).await;
    bus.enqueue(&NewMessage { id: Some(old), ..message(json!({})) }).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    sqlx::raw_sql(
        "update public.agent_messages set done_at = done_at - interval '2 days';
         select bus.note_changes_of_days(clock_timestamp())",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let parts = "select count(*) from pg_inherits where inhparent = 'public.agent_messages'::regclass";
    let before: i64 = sqlx::query_scalar(parts).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(bus.retain(Duration::from_hours(24), 10).await.unwrap(), 1);
    let left: i64 = sqlx::query_scalar(parts).fetch_one(bus.pool()).await.unwrap();
    assert!(left < before, "the day went as a whole");
}

#[tokio::test]
async fn retention_takes_the_time_that_it_needs_and_leaves_the_others_theirs() {
    let (bus, database) = bus().await;
    // what retention calls, for which the time of a statement would be over
    sqlx::raw_sql(
        "create or replace function bus.mend_lines(max_rows integer default 1000) returns integer language plpgsql
         set search_path = pg_catalog, pg_temp as $$
         begin
           if current_setting('statement_timeout') <> '0' then
             raise query_canceled;
           end if;
           return 0;
         end $$",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    let options: PgConnectOptions = database.url.parse().unwrap();
    let options = options.options([("statement_timeout", "30s")]);
    let hurried = Bus::new(PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap());
    bus.enqueue(&message(json!({}))).await.unwrap();
    complete_all(&bus, Vec::new()).await;
    assert_eq!(hurried.retain(Duration::ZERO, 10).await.unwrap(), 1);
    assert_eq!(bus.retain(Duration::ZERO, 10).await.unwrap(), 0, "the first one stands");
    assert_eq!(hurried.retain_events(Duration::ZERO, 10).await.unwrap(), 0);
    let others: String = sqlx::query_scalar("show statement_timeout").fetch_one(hurried.pool()).await.unwrap();
    assert_eq!(others, "30s");
}

#[tokio::test]
async fn days_to_come_are_made_unless_senders_would_wait_for_that() {
    let (bus, _database) = bus().await;
    let made = async || sqlx::query_scalar::<_, i32>("select bus.ensure_days_ahead()").fetch_one(bus.pool()).await;
    let drop = async |days: i32| {
        let drop = "do $$ begin
            execute 'drop table bus.messages_' || to_char(clock_timestamp() at time zone 'UTC' + interval '1 day' * DAYS, 'YYYYMMDD');
            end $$";
        sqlx::query(sqlx::AssertSqlSafe(drop.replace("DAYS", &days.to_string()))).execute(bus.pool()).await.unwrap();
    };
    made().await.unwrap();
    assert_eq!(made().await.unwrap(), 0);
    let dump = async || {
        let mut dump = bus.pool().begin().await.unwrap();
        sqlx::query("lock table bus.messages_other in access share mode").execute(&mut *dump).await.unwrap();
        dump
    };
    drop(3).await;
    let first = dump().await;
    assert_eq!(made().await.unwrap(), 0, "it can be put off");
    first.rollback().await.unwrap();
    drop(1).await;
    let second = dump().await;
    let missing = made().await.unwrap_err();
    assert_eq!(missing.as_database_error().unwrap().code().as_deref(), Some("55P03"), "{missing}");
    second.rollback().await.unwrap();
    assert_eq!(made().await.unwrap(), 2);
}
