//! No step reads more messages than it is about, however many have ended: the planner's estimates must not matter.

use cogo_bus_core::{Bus, Claimed, Completion};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::support::{LEASE, ROUTE, bus, claim, numbered};

/// Messages that ended before; a plan that reads all of them stands out.
const ENDED: u32 = 4000;
/// What the steps of a few messages may read: each looks at its own a few times.
const FEW: i64 = 400;

async fn with_a_past() -> (Bus, cogo_test_support::TestDatabase) {
    let (bus, database) = bus().await;
    for _ in 0..ENDED / 1000 {
        bus.enqueue_many(&numbered(1000)).await.unwrap();
        let ended: Vec<_> =
            claim(&bus, "past", 1000).await.iter().map(|message| (message.fence(), Completion::default())).collect();
        assert_eq!(bus.complete_many(&ended, "past").await.unwrap().len(), 1000);
    }
    // the parts only, as autovacuum does
    let parts: Vec<String> = sqlx::query_scalar(
        "select format('analyze bus.%I', c.relname) from pg_inherits i join pg_class c on c.oid = i.inhrelid
          where i.inhparent = 'public.agent_messages'::regclass",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    for part in parts {
        sqlx::raw_sql(sqlx::AssertSqlSafe(part)).execute(bus.pool()).await.unwrap();
    }
    (bus, database)
}

/// Rows of messages that this session has read; what it read before the transaction may be among them.
async fn read(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select sum(coalesce(pg_stat_get_xact_tuples_returned(i.inhrelid), 0)
                    + coalesce((select sum(pg_stat_get_xact_tuples_returned(x.indexrelid)) from pg_index x
                                 where x.indrelid = i.inhrelid), 0))::bigint
           from pg_inherits i where i.inhparent = 'public.agent_messages'::regclass",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

async fn claim_in(connection: &mut PgConnection, most: i32) -> Vec<(Uuid, i16)> {
    sqlx::query("select id, attempt from bus.claim($1, $2, 0, 'w', $3, $4)")
        .bind(ROUTE.service())
        .bind(ROUTE.role())
        .bind(most)
        .bind(i64::try_from(LEASE.as_millis()).unwrap())
        .fetch_all(connection)
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[tokio::test]
async fn a_step_reads_only_its_own_messages() {
    let (bus, _database) = with_a_past().await;
    let sent = bus.enqueue_many(&numbered(12)).await.unwrap();
    let mut transaction = bus.pool().begin().await.unwrap();
    let mut before = read(&mut transaction).await;
    let claimed = claim_in(&mut transaction, 10).await;
    assert_eq!(claimed.len(), 10);
    let (ids, attempts): (Vec<Uuid>, Vec<i16>) = claimed.into_iter().unzip();
    let statements = [
        ("extend", "select count(*) from bus.extend($1[:4], $2[:4], 'w', 60000)"),
        ("release", "select bus.release($1[1:1], $2[1:1], 'w')::bigint"),
        ("defer", "select bus.defer($1[10:10], $2[10:10], 'w', 60000, 'not now')::bigint"),
        ("fail", "select count(bus.fail($1[2], 'w', $2[2], 'broken'))"),
        ("complete", "select count(*) filter (where bus.complete($1[3], 'w', $2[3])) "),
        (
            "complete_many",
            "select count(*) from bus.complete_many($1[4:8], $2[4:8], 'w', array_fill(null::jsonb, array[5]),
                                                    array_fill(null::text, array[5]), array_fill(null::text, array[5]))",
        ),
        ("cancel", "select bus.cancel($1[9])::bigint"),
        ("watch", "select count(bus.watch($1[10], 'test', 1000)) + 0 * cardinality($2)"),
        ("reply", "select count(bus.reply($1[10])) + 0 * cardinality($2)"),
        ("task", "select count(bus.task($1[10])) + 0 * cardinality($2)"),
        ("history", "select 1 + 0 * count(h) + 0 * cardinality($2) from bus.history($1[2]) h"),
    ];
    let mut now = read(&mut transaction).await;
    assert!(now - before < FEW, "claim read {} messages", now - before);
    for (step, statement) in statements {
        before = now;
        let touched: i64 = sqlx::query_scalar(statement)
            .bind(&ids)
            .bind(&attempts)
            .fetch_one(&mut *transaction)
            .await
            .unwrap_or_else(|error| panic!("{step}: {error}"));
        now = read(&mut transaction).await;
        assert!(touched > 0, "{step} did nothing");
        assert!(now - before < FEW, "{step} read {} messages", now - before);
    }
    transaction.commit().await.unwrap();
    assert_eq!(sent.len(), 12);
}

#[tokio::test]
async fn a_large_claim_reads_only_its_own_messages() {
    let (bus, _database) = with_a_past().await;
    bus.enqueue_many(&numbered(100)).await.unwrap();
    let mut transaction = bus.pool().begin().await.unwrap();
    let before = read(&mut transaction).await;
    assert_eq!(claim_in(&mut transaction, 100).await.len(), 100);
    let read = read(&mut transaction).await - before;
    assert!(read < FEW, "{read} messages were read");
}

#[tokio::test]
async fn reading_everything_is_noticed() {
    let (bus, _database) = with_a_past().await;
    let mut transaction = bus.pool().begin().await.unwrap();
    let before = read(&mut transaction).await;
    sqlx::raw_sql("select count(*) from public.agent_messages where status = 'queued'")
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert!(read(&mut transaction).await - before > FEW, "reading everything must count");
}

/// A claim is a plain read for the client: order and columns stand in the contract of the crate.
#[tokio::test]
async fn claims_come_by_priority_and_then_by_age() {
    let (bus, _database) = bus().await;
    let mut batch = numbered(6);
    batch[4].priority = Some(10);
    bus.enqueue_many(&batch).await.unwrap();
    let order: Vec<i64> = claim(&bus, "w", 6).await.iter().filter_map(number).collect();
    assert_eq!(order, [4, 0, 1, 2, 3, 5]);
}

fn number(claimed: &Claimed) -> Option<i64> {
    claimed.payload.get("number")?.as_i64()
}
