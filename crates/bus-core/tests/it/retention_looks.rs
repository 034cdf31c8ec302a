//! What changes between the look at a day and its end: the day stays, or goes another way.

use std::time::Duration;

use cogo_bus_core::Bus;
use cogo_contracts::NewMessage;
use serde_json::json;
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
