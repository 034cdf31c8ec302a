//! Arrays that belong together have one length: what one of them lacks is refused and never taken for null.

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::{bus, claim, misplaced, numbered, statuses};

#[tokio::test]
async fn arrays_of_different_lengths_are_refused_whole() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let ids: Vec<Uuid> = claim(&bus, "w", 2).await.iter().map(|held| held.id).collect();
    let before = statuses(&bus).await;
    let (both, attempts) = (format!("array['{}', '{}']::uuid[]", ids[0], ids[1]), "array[1, 1]::smallint[]");
    let of_both = |function: &str, rest: &str| format!("select bus.{function}({both}, {attempts}, 'w', {rest})");
    let short = |function: &str, rest: &str| format!("select bus.{function}({both}, array[1]::smallint[], 'w'{rest})");
    let payloads = "select bus.enqueue_payloads('a', 'b', 't', array['{}', '{}', '{}']::jsonb[]";
    for (statement, what) in [
        (of_both("complete_many", "array['{}']::jsonb[], null, null"), "2 ids and 1 results"),
        (of_both("complete_batch", "null, array['s', 's', 's'], null"), "2 ids and 3 result_snippets"),
        (of_both("complete_batch", "null, null, array['u']"), "2 ids and 1 result_urls"),
        (of_both("complete_batch", "'[0:1]={1,2}'::jsonb[], null, null"), "2 ids and 1 results"),
        (of_both("complete_batch", "null, '{{s,s}}', null"), "2 ids and 1 result_snippets"),
        (short("complete_many", ", null, null, null"), "2 ids and 1 attempts"),
        (of_both("fail_many", "array['broken']"), "2 ids and 1 reasons"),
        (of_both("fail_many", "null, array[false]"), "2 ids and 1 retriable"),
        (of_both("fail_many", "null, null, array[1, 2, 3]"), "2 ids and 3 retry_ms"),
        (short("fail_many", ""), "2 ids and 1 attempts"),
        (short("extend", ", 30000"), "2 ids and 1 attempts"),
        (format!("select bus.extend({both}, null, 'w', 30000)"), "2 ids and 0 attempts"),
        (short("defer", ", 1000, 'later'"), "2 ids and 1 attempts"),
        (short("release", ""), "2 ids and 1 attempts"),
        (format!("select bus.release({both}, null, 'w')"), "2 ids and 0 attempts"),
        (format!("select bus.partials_after({both}, array[1]::smallint[], array[0, 0])"), "2 ids and 1 attempts"),
        (format!("select bus.partials_after({both}, {attempts}, '{{}}')"), "2 ids and 0 seqs"),
        (format!("{payloads}, headers => array['{{}}']::jsonb[])"), "3 payloads and 1 headers"),
        (format!("{payloads}, ids => array[bus.uuid_v7()])"), "3 payloads and 1 ids"),
        (format!("{payloads}, ids => '{{}}')"), "3 payloads and 0 ids"),
    ] {
        let refused = sqlx::query(AssertSqlSafe(statement.clone())).execute(bus.pool()).await.expect_err(&statement);
        let refused = refused.into_database_error().unwrap();
        let words = format!("There are {what}: one for each");
        assert_eq!((refused.code().as_deref(), refused.message()), (Some("22023"), words.as_str()), "{statement}");
        assert_eq!(statuses(&bus).await, before, "{statement}");
    }
    for (held, what) in [("null", "held is null"), ("array[null]::uuid[]", "held[1] is null")] {
        let statement = format!("select bus.hand_back_unheld('w', 'test/work/0', {held})");
        let refused = sqlx::query(AssertSqlSafe(statement)).execute(bus.pool()).await.expect_err(what);
        let refused = refused.into_database_error().unwrap();
        assert!(refused.code().as_deref() == Some("22023") && refused.message().contains(what), "{refused:?}");
        assert_eq!(statuses(&bus).await, before, "{what}");
    }
    let without = of_both("complete_many", "null, '{}', null");
    let recorded: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(without)).fetch_all(bus.pool()).await.unwrap();
    assert_eq!((recorded.len(), misplaced(&bus).await), (2, 0), "null and an empty array are none for each");
}
