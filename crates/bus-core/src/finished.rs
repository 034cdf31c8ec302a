//! A past for measurements: messages that have long been done, in bulk.

use std::ops::Range;

use cogo_contracts::Route;
use sqlx::{Connection, PgConnection};

use crate::Error;

/// Inserts messages of a route that are done, numbers `numbers` of `of` altogether: the even ones over the day before, the
/// odd ones over today until now, so that the part in use has a past as well as the one before it. Answers how many.
///
/// For measurements on a database of their own, never for one in use: it inserts the rows as they end up, with triggers off
/// (`session_replication_role = replica`, which needs the rights of a superuser), because sending and completing ten million
/// messages would take longer than measuring anything beside them. Nothing of them was ever in a table of schema `bus`, as
/// nothing of a message that ended is.
///
/// # Errors
/// [`Error::Database`] when the rights are missing or the database does not answer.
pub async fn insert_finished(
    connection: &mut PgConnection,
    route: &Route,
    numbers: Range<u32>,
    of: u32,
) -> Result<u64, Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("set local session_replication_role = replica").execute(&mut *transaction).await?;
    let inserted = sqlx::query(
        "insert into public.agent_messages
                (id, root_id, created_at, service, role, shard, tenant, payload, status, attempts, claimed_by, claimed_at,
                 done_at, result, result_snippet)
         select made.id, made.id, made.at, $4, $5, $6, 'default', jsonb_build_object('id', made.number), 'done', 1,
                'bench/0', made.at, made.at, '{\"ok\": true}', 'ok'
           from (select n.number, t.at,
                        -- as bus.uuid_v7 makes them, for a time that has passed
                        encode(int8send((extract(epoch from t.at) * 1000)::bigint << 16 | 28672 | (random() * 4095)::bigint)
                               || substring(uuid_send(gen_random_uuid()) from 9), 'hex')::uuid as id
                   from (select date_trunc('day', now() at time zone 'UTC') at time zone 'UTC' as begins) as today
                  cross join generate_series($1::bigint, $2::bigint - 1) as n (number)
                  cross join lateral (
                    select case n.number % 2
                             when 0 then today.begins - interval '1 day' * (1 - n.number / $3::float8)
                             else today.begins + (now() - today.begins) * (n.number / $3::float8)
                           end as at) as t) as made",
    )
    .bind(i64::from(numbers.start))
    .bind(i64::from(numbers.end))
    .bind(f64::from(of))
    .bind(route.service())
    .bind(route.role())
    .bind(i32::from(route.shard()))
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    transaction.commit().await?;
    Ok(inserted)
}
