//! Plain batches, which pass the triggers of the table by, are what every insert would have made of them.

use std::collections::{HashMap, HashSet};

use cogo_bus_core::{Bus, Error};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::{Builder, Uuid};

use crate::support::{ROUTE, bus, claim, message, misplaced, numbered, statuses};

const MANY: u32 = 64;
const A_DAY_MS: i64 = 86_400_000;

/// Counts statements that insert into the table, as a team's own trigger might.
const COUNTING: &str = "create table public.statements (at timestamptz default now());
    create function public.count_it() returns trigger language plpgsql security definer as
      $$ begin insert into public.statements default values; return null; end $$";

async fn statements_seen(bus: &Bus, batch: &[NewMessage]) -> i64 {
    sqlx::query("delete from public.statements").execute(bus.pool()).await.unwrap();
    bus.enqueue_many(batch).await.unwrap();
    sqlx::query_scalar("select count(*) from public.statements").fetch_one(bus.pool()).await.unwrap()
}

/// Ids of a day so many days from now.
fn of_day(days: i64, count: usize) -> Vec<Uuid> {
    let (now, _) = Uuid::now_v7().get_timestamp().unwrap().to_unix();
    let at = (now * 1000).saturating_add_signed(days * A_DAY_MS);
    let one = |number: usize| {
        let bytes: [u8; 10] = number.to_be_bytes().repeat(2)[6..].try_into().unwrap();
        Builder::from_unix_timestamp_millis(at, &bytes).into_uuid()
    };
    (0..count).map(one).collect()
}

fn with_ids(ids: &[Uuid]) -> Vec<NewMessage> {
    ids.iter().zip(numbered(1000)).map(|(id, one)| NewMessage { id: Some(*id), ..one }).collect()
}

/// The code, the rule and the words with which a batch sent by `bus.enqueue_payloads` is refused.
async fn refusal(bus: &Bus, arguments: &str) -> (String, Option<String>, String) {
    let statement = format!("select bus.enqueue_payloads({arguments})");
    let error = sqlx::query(AssertSqlSafe(statement)).execute(bus.pool()).await.unwrap_err();
    let error = error.into_database_error().unwrap();
    (error.code().unwrap().into_owned(), error.constraint().map(str::to_owned), error.message().to_owned())
}

#[tokio::test]
async fn rows_and_ready_rows_are_those_of_an_insert() {
    let (bus, _database) = bus().await;
    bus.set_aging(&ROUTE, std::time::Duration::from_secs(3), "a test").await.unwrap();
    for headers in [json!({}), json!({"trace": "7"})] {
        let batch = |count: u32| -> Vec<NewMessage> {
            let headers = headers.as_object().unwrap().clone();
            (0..count).map(|_| NewMessage { headers: headers.clone(), ..message(json!({"same": true})) }).collect()
        };
        bus.enqueue_many(&batch(MANY)).await.unwrap();
        for alone in batch(MANY - 1) {
            bus.enqueue(&alone).await.unwrap();
        }
    }
    let kinds: Vec<Value> = sqlx::query_scalar(
        "select distinct to_jsonb(m) - array['id', 'root_id', 'created_at'] from public.agent_messages m
          where root_id = id and created_at between now() - interval '1 minute' and clock_timestamp()",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert_eq!(kinds.len(), 2, "with headers and without: {kinds:?}");
    let places: Vec<(Value, i64)> = sqlx::query_as(
        "select to_jsonb(r) - array['due', 'chunk', 'ids'], sum(cardinality(r.ids)) from bus.ready r
          where r.due between (extract(epoch from now()) * 1000000)::bigint + 300000000 - 60000000
                          and (extract(epoch from now()) * 1000000)::bigint + 300000000
          group by 1",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert_eq!(places.len(), 1, "{places:?}");
    assert_eq!(places[0].1, i64::from(4 * MANY - 2));
}

#[tokio::test]
async fn every_message_is_claimed_once_and_in_the_order_of_sending() {
    let (bus, _database) = bus().await;
    let sent: Vec<Uuid> = bus.enqueue_many(&numbered(250)).await.unwrap().iter().map(|sent| sent.id).collect();
    assert_eq!(misplaced(&bus).await, 0);
    let first: Vec<Uuid> = claim(&bus, "w", 20).await.iter().map(|claimed| claimed.id).collect();
    assert_eq!(first.iter().copied().collect::<HashSet<_>>(), sent[..20].iter().copied().collect());
    let rest = claim(&bus, "w", 1000).await;
    let all: HashSet<Uuid> = first.into_iter().chain(rest.iter().map(|claimed| claimed.id)).collect();
    assert_eq!((rest.len(), all), (230, sent.iter().copied().collect()));
}

/// Each id that was answered is that of the message in its place, as it is stored and as it is handed out.
async fn ids_are_of_their_places(bus: &Bus, batch: &[NewMessage], ids: Vec<Uuid>) {
    let claimed = claim(bus, "w", 1000).await;
    let handed_out: HashMap<_, _> = claimed.into_iter().map(|one| (one.id, json!([one.payload, one.tenant]))).collect();
    assert_eq!((ids.len(), handed_out.len()), (batch.len(), batch.len()));
    for (sent, id) in batch.iter().zip(ids) {
        let row = "select jsonb_build_array(id, payload, tenant, priority, group_key) from public.agent_messages where id = $1";
        let stored: Value = sqlx::query_scalar(row).bind(id).fetch_one(bus.pool()).await.unwrap();
        let (named, priority) = (sent.id.unwrap_or(id), sent.priority.unwrap_or(100));
        assert_eq!(stored, json!([named, sent.payload, sent.tenant, priority, sent.group_key]));
        assert_eq!(handed_out[&id], json!([sent.payload, sent.tenant]));
    }
}

#[tokio::test]
async fn the_id_that_is_answered_is_that_of_the_message_in_its_place() {
    let (bus, _database) = bus().await;
    // ids of one's own in an order that is not theirs
    let named = |days| with_ids(&of_day(days, 100).into_iter().rev().collect::<Vec<_>>());
    let mixed = named(-1).into_iter().enumerate().map(|(place, one)| NewMessage {
        id: one.id.filter(|_| place % 2 == 0),
        tenant: Tenant::new(["acme", "globex", "initech"][place % 3]).ok(),
        priority: [None, Some(10), Some(500), Some(0)][place % 4],
        group_key: (place % 5 == 0).then(|| format!("g{place}")),
        ..one
    });
    for batch in [numbered(100), named(0), mixed.collect(), numbered(1)] {
        let ids = bus.enqueue_many(&batch).await.unwrap().iter().map(|sent| sent.id).collect();
        ids_are_of_their_places(&bus, &batch, ids).await;
    }
    // as others than this library send, by ids of the database
    let payloads = "(select array_agg(jsonb_build_object('number', n) order by n) from generate_series(0, 99) as n)";
    let send = format!("select bus.enqueue_payloads('test', 'work', 'acme', {payloads})");
    let ids = sqlx::query_scalar(AssertSqlSafe(send)).fetch_one(bus.pool()).await.unwrap();
    ids_are_of_their_places(&bus, &numbered(100), ids).await;
}

#[tokio::test]
async fn it_passes_triggers_by_only_where_nobody_has_put_others_on_the_table() {
    let (bus, _database) = bus().await;
    sqlx::raw_sql(COUNTING).execute(bus.pool()).await.unwrap();
    let put = "create trigger theirs after insert on public.agent_messages for each statement execute function public.count_it()";
    sqlx::query(put).execute(bus.pool()).await.unwrap();
    assert_eq!(statements_seen(&bus, &numbered(MANY)).await, 1);
    sqlx::query("drop trigger theirs on public.agent_messages").execute(bus.pool()).await.unwrap();
    let for_each = put.replace("each statement", "each row");
    sqlx::query(AssertSqlSafe(for_each)).execute(bus.pool()).await.unwrap();
    assert_eq!(statements_seen(&bus, &numbered(MANY)).await, i64::from(MANY));
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn what_a_trigger_of_a_team_makes_of_a_message_counts() {
    let (bus, _database) = bus().await;
    sqlx::raw_sql(
        "create function public.later() returns trigger language plpgsql as
           $$ begin new.retry_at := clock_timestamp() + interval '1 hour'; return new; end $$;
         create trigger later before insert on public.agent_messages for each row execute function public.later()",
    )
    .execute(bus.pool())
    .await
    .unwrap();
    bus.enqueue_many(&numbered(MANY)).await.unwrap();
    assert!(claim(&bus, "w", 1000).await.is_empty(), "they are for later");
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn ids_of_other_days_go_to_the_parts_of_their_days() {
    let (bus, _database) = bus().await;
    let ids = [of_day(0, 80), of_day(-2, 40), of_day(1, 40), of_day(-400, 40)].concat();
    bus.enqueue_many(&with_ids(&ids)).await.unwrap();
    bus.enqueue_many(&with_ids(&of_day(-1, 70))).await.unwrap();
    let parts: Vec<i64> = sqlx::query_scalar("select count(*) from public.agent_messages group by tableoid order by 1")
        .fetch_all(bus.pool())
        .await
        .unwrap();
    assert_eq!(parts, [40, 70, 80, 80]);
    assert_eq!(misplaced(&bus).await, 0);
    let claimed = claim(&bus, "w", 1000).await;
    assert_eq!(claimed.len(), 270);
    assert_eq!(claimed.iter().map(|one| one.id).collect::<HashSet<_>>().len(), 270);
}

#[tokio::test]
async fn a_day_without_a_part_is_served_as_well() {
    let (bus, _database) = bus().await;
    let drop_all = "do $$ declare part regclass; begin
        for part in select inhrelid::regclass from pg_inherits where inhparent = 'public.agent_messages'::regclass
                     and inhrelid <> 'bus.messages_other'::regclass loop
          execute 'drop table ' || part; end loop; end $$";
    sqlx::query(drop_all).execute(bus.pool()).await.unwrap();
    bus.enqueue_many(&numbered(MANY)).await.unwrap();
    assert_eq!((claim(&bus, "w", 1000).await.len(), misplaced(&bus).await), (64, 0));
    sqlx::query("select bus.make_insert_plain()").execute(bus.pool()).await.unwrap();
    bus.enqueue_many(&numbered(MANY)).await.unwrap();
    assert_eq!((claim(&bus, "w", 1000).await.len(), misplaced(&bus).await), (64, 0));
}

/// The part of the ids that are made now.
async fn part_of_today(bus: &Bus) -> String {
    sqlx::query_scalar("select 'bus.messages_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')")
        .fetch_one(bus.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_table_that_is_no_part_any_more_gets_no_messages() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1000).await.len(), 2, "in a session that has planned it before");
    let part = part_of_today(&bus).await;
    let detach = format!("alter table public.agent_messages detach partition {part}");
    sqlx::query(AssertSqlSafe(detach)).execute(bus.pool()).await.unwrap();
    bus.enqueue_many(&numbered(5)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1000).await.len(), 5);
}

#[tokio::test]
async fn a_rule_that_somebody_put_on_a_part_makes_no_ready_rows_of_nothing() {
    let (bus, _database) = bus().await;
    let part = part_of_today(&bus).await;
    let rule = format!("create rule theirs as on insert to {part} where new.payload ? 'theirs' do instead nothing");
    sqlx::query(AssertSqlSafe(rule)).execute(bus.pool()).await.unwrap();
    bus.enqueue_many(&[message(json!({})), message(json!({"theirs": 1})), message(json!({}))]).await.unwrap();
    assert_eq!(misplaced(&bus).await, 0);
    assert_eq!(claim(&bus, "w", 1000).await.len(), 3, "rules of a part do not concern the table");
}

/// How often the insert of plain batches and the trigger of the table were called for one batch.
async fn calls_of_a_batch(bus: &Bus, ids: &[Uuid]) -> (i64, i64) {
    async fn so_far(connection: &mut PgConnection) -> (i64, i64) {
        sqlx::query_as(
            "select coalesce(max(calls) filter (where funcname = 'insert_plain'), 0),
                    coalesce(max(calls) filter (where funcname = 'after_insert'), 0)
               from pg_stat_xact_user_functions where schemaname = 'bus'",
        )
        .fetch_one(connection)
        .await
        .unwrap()
    }
    let mut transaction = bus.pool().begin().await.unwrap();
    sqlx::query("set local track_functions = 'all'").execute(&mut *transaction).await.unwrap();
    let before = so_far(&mut transaction).await;
    Bus::enqueue_many_in(&mut transaction, &with_ids(ids)).await.unwrap();
    let after = so_far(&mut transaction).await;
    transaction.commit().await.unwrap();
    (after.0 - before.0, after.1 - before.1)
}

#[tokio::test]
async fn each_part_that_may_be_sent_to_has_a_statement_of_its_own() {
    let (bus, _database) = bus().await;
    assert_eq!(calls_of_a_batch(&bus, &of_day(0, 2)).await, (1, 0), "today's messages pass the triggers by");
    assert_eq!(calls_of_a_batch(&bus, &of_day(1, 2)).await, (1, 1), "tomorrow's do not");
    // one that reads by a snapshot from before the fifth day
    let mut old = bus.pool().begin_with("begin isolation level repeatable read").await.unwrap();
    sqlx::query("select from bus.routes").execute(&mut *old).await.unwrap();
    sqlx::query("select bus.ensure_partitions(5)").execute(bus.pool()).await.unwrap();
    sqlx::query("select bus.ensure_partitions(6)").execute(&mut *old).await.unwrap();
    old.commit().await.unwrap();
    let without: Vec<String> = sqlx::query_scalar(
        "select inhrelid::regclass::text from pg_inherits
          where inhparent = 'public.agent_messages'::regclass and inhrelid <> 'bus.messages_other'::regclass
            and position('insert into ' || inhrelid::regclass::text in pg_get_functiondef('bus.insert_plain'::regproc)) = 0",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    assert!(without.is_empty(), "{without:?}");
    let fresh = [Uuid::now_v7(), Uuid::now_v7()];
    assert_eq!(calls_of_a_batch(&bus, &fresh).await, (1, 0), "in a session that has planned it before");
    assert_eq!((claim(&bus, "w", 1000).await.len(), misplaced(&bus).await), (6, 0));
}

#[tokio::test]
async fn one_unsound_message_refuses_the_batch_by_the_rule_that_it_breaks() {
    let (bus, _database) = bus().await;
    let sound = "(select array_agg('{}'::jsonb) from generate_series(1, 99))";
    let with = |payload: &str| format!("'a', 'b', 't', {sound} || array[{payload}]::jsonb[]");
    let headed = |headers: &str| {
        format!(
            "'a', 'b', 't', {sound}, (select array_agg('{{}}'::jsonb) from generate_series(1, 98)) || array[{headers}]::jsonb[]"
        )
    };
    for (arguments, code, rule) in [
        (with("'[]'"), "23514", Some("payload_is_an_object")),
        (with("null"), "23502", None),
        (with("jsonb_build_object('x', repeat('x', 1048577))"), "23514", Some("payload_at_most_1_mib")),
        (headed("'[]'"), "23514", Some("headers_are_an_object")),
        (headed("jsonb_build_object('x', repeat('x', 16385))"), "23514", Some("headers_at_most_16_kib")),
        (format!("'A', 'b', 't', {sound}"), "23514", Some("service_and_role_match_[a-z][a-z0-9-]{0,62}")),
        (
            format!("'a', 'b', 'no tenant', {sound}"),
            "23514",
            Some("tenant_has_letters_digits_then_.:@-_underscore_at_most_128"),
        ),
        (format!("null, 'b', 't', {sound}"), "23502", None),
        (format!("'a', 'b', null, {sound}"), "23502", None),
        (format!("'a', 'b', 't', {sound}, shard => 65536"), "23514", Some("shard_between_0_and_65535")),
        (format!("'a', 'b', 't', {sound}, shard => -1"), "23514", Some("shard_between_0_and_65535")),
        (format!("'a', 'b', 't', {sound}, ids => array[bus.uuid_v7()]"), "22023", None),
        ("'a', 'b', 't', '{\"{}\"}', ids => array[bus.uuid_v7(), bus.uuid_v7()]".to_owned(), "22023", None),
        (format!("'a', 'b', 't', {sound}, array_fill('{{}}'::jsonb, array[100])"), "22023", None),
        ("'a', 'b', 't', '{\"{}\", \"{}\"}', ids => array_fill(bus.uuid_v7(), array[2])".to_owned(), "23505", None),
    ] {
        let (its_code, its_rule, words) = refusal(&bus, &arguments).await;
        let rule = rule.map(str::to_owned);
        assert!(
            its_code == code && (rule.is_none() || its_rule == rule),
            "{arguments}: {its_code} {its_rule:?} {words}"
        );
        assert_eq!(statuses(&bus).await, [], "{arguments}");
    }
    assert_eq!(misplaced(&bus).await, 0);
    let mut batch = numbered(100);
    batch[70].payload = json!(["not an object"]);
    let Err(Error::Refused { reason, .. }) = bus.enqueue_many(&batch).await else { panic!("accepted") };
    assert_eq!(reason, "payload is an object");
}

/// An object of exactly this many bytes as the database counts them.
fn object_of(bytes: u32) -> String {
    format!("jsonb_build_object('x', repeat('x', {bytes} - pg_column_size(jsonb_build_object('x', ''))))")
}

#[tokio::test]
async fn bounds_are_those_of_an_insert() {
    let (bus, _database) = bus().await;
    let name = |length: u32| format!("repeat('a', {length})");
    let (payload, headers) = (object_of(1_048_576), object_of(16_384));
    let (too_long, too_large) = (object_of(1_048_577), object_of(16_385));
    for (service, role, tenant, payload, headers, fits) in [
        (name(63), name(63), name(128), &payload, &headers, true),
        (name(64), name(1), name(1), &payload, &headers, false),
        (name(1), name(64), name(1), &payload, &headers, false),
        (name(1), name(1), name(129), &payload, &headers, false),
        (name(1), name(1), name(1), &too_long, &headers, false),
        (name(1), name(1), name(1), &payload, &too_large, false),
        ("'a/b'".to_owned(), name(1), name(1), &payload, &headers, false),
        ("'a-9'".to_owned(), "'b-'".to_owned(), "'A_b.c:d@e-'".to_owned(), &payload, &headers, true),
        ("'-a'".to_owned(), name(1), name(1), &payload, &headers, false),
        (name(1), name(1), "'a'||chr(10)".to_owned(), &payload, &headers, false),
    ] {
        let insert = format!(
            "insert into public.agent_messages (service, role, tenant, payload, headers)
             values ({service}, {role}, {tenant}, {payload}, {headers})"
        );
        let send =
            format!("select bus.enqueue_payloads({service}, {role}, {tenant}, array[{payload}], array[{headers}])");
        for statement in [insert, send] {
            let accepted = sqlx::query(AssertSqlSafe(statement.clone())).execute(bus.pool()).await.is_ok();
            assert_eq!(accepted, fits, "{statement}");
        }
    }
    assert_eq!((statuses(&bus).await, misplaced(&bus).await), (vec![("queued".to_owned(), 4)], 0));
}

#[tokio::test]
async fn a_drained_route_takes_none() {
    let (bus, _database) = bus().await;
    bus.drain_route(&ROUTE, "a test").await.unwrap();
    assert!(matches!(bus.enqueue_many(&numbered(100)).await, Err(Error::Conflict { .. })));
    bus.open_route(&ROUTE, "a test").await.unwrap();
    bus.enqueue_many(&numbered(100)).await.unwrap();
    assert_eq!(claim(&bus, "w", 1000).await.len(), 100);
}

#[tokio::test]
async fn arrays_of_any_shape_lose_nothing() {
    let (bus, _database) = bus().await;
    let ids = "array[bus.uuid_v7(), bus.uuid_v7(), bus.uuid_v7(), bus.uuid_v7()]";
    for (arguments, made) in [
        // two by two, and not from 1 on
        (format!("array[['{{}}', '{{}}'], ['{{}}', '{{}}']]::jsonb[], ids => array[({ids})[1:2], ({ids})[3:4]]"), None),
        (format!("array_fill('{{}}'::jsonb, array[4]), ids => ('[0:3]=' || ({ids})::text)::uuid[]"), None),
        ("array_fill('{}'::jsonb, array[4])".to_owned(), Some(4)),
        ("array_fill('{}'::jsonb, array[2, 2], array[7, 7])".to_owned(), Some(4)),
        ("array_fill('{}'::jsonb, array[4]), headers => array['{}', null, null, '{}']::jsonb[]".to_owned(), Some(4)),
        ("'{}'".to_owned(), Some(0)),
    ] {
        let send = format!("select bus.enqueue_payloads('test', 'work', 'acme', {arguments})");
        let answer: Option<Vec<Uuid>> = sqlx::query_scalar(AssertSqlSafe(send)).fetch_one(bus.pool()).await.unwrap();
        assert_eq!(answer.as_ref().map(Vec::len), made, "{arguments}");
        assert_eq!(misplaced(&bus).await, 0, "{arguments}");
        let claimed: HashSet<Uuid> = claim(&bus, "w", 1000).await.iter().map(|one| one.id).collect();
        assert_eq!(claimed.len(), made.unwrap_or(4), "{arguments}");
        assert!(answer.is_none_or(|answer| answer.into_iter().collect::<HashSet<_>>() == claimed), "{arguments}");
    }
}

#[tokio::test]
async fn a_batch_exists_only_if_its_transaction_commits() {
    let (bus, _database) = bus().await;
    let mut transaction = bus.pool().begin().await.unwrap();
    Bus::enqueue_many_in(&mut transaction, &numbered(100)).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(claim(&bus, "w", 1).await.is_empty());
    let mut transaction = bus.pool().begin().await.unwrap();
    Bus::enqueue_many_in(&mut transaction, &numbered(100)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(claim(&bus, "w", 1000).await.len(), 100);
}
