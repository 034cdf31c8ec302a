//! What cannot be meant is refused in words that say what can.

use cogo_bus_core::{Completion, Error};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::support::{bus, claim, claim_one, message, statuses};

#[tokio::test]
async fn refusals_name_the_argument_and_what_it_may_be() {
    let (bus, _database) = bus().await;
    let schedule = |name: &str, rest: &str| {
        format!("select bus.upsert_schedule({name}, '0 2 * * *', 'doc', 'index', 'acme', {rest})")
    };
    for (statement, code, words) in [
        (
            "select bus.enqueue_many('[{\"groupkey\": \"g\"}]')".to_owned(),
            "22023",
            "Unknown message field groupkey: a message has id, service, role, shard, tenant, payload,",
        ),
        ("select bus.enqueue('doc', 'b', 'acme', '{}', ttl_ms => 0)".to_owned(), "22023", "ttl_ms is 0: "),
        ("select bus.enqueue('doc', 'b', 'acme', '{}', ttl_ms => -5)".to_owned(), "22023", "ttl_ms is -5: "),
        ("select bus.enqueue('A', 'b', 'acme', '{}')".to_owned(), "23514", "match_[a-z][a-z0-9-]{0,62}\""),
        ("select bus.enqueue('doc', 'b', '', '{}')".to_owned(), "23514", "tenant_has_letters_digits_then_.:@-"),
        (schedule("'nightly run'", "missed => 'skip'"), "22023", "not 'nightly run'"),
        (schedule("null", "missed => 'skip'"), "22023", "The name of a schedule"),
        (schedule("'nightly'", "missed => 'never'"), "22023", "missed can be skip, run_once or run_all, not 'never'"),
        (schedule("'nightly'", "catch_up_cap => 0"), "23514", "catch_up_cap_between_1_and_1000"),
        (
            "select bus.steer('doc', 'b', 0, null)".to_owned(),
            "22023",
            "action is pause, resume, drain or open, not null",
        ),
        ("select bus.watch(bus.uuid_v7(), null, 1000)".to_owned(), "22023", "watcher is null"),
        ("select bus.watch(bus.uuid_v7(), 'me#1', null)".to_owned(), "22023", "for_ms is null"),
        ("select bus.put_artifact('acme', 'text/plain', null)".to_owned(), "22023", "content is null"),
        ("select bus.put_artifact('acme', null, '')".to_owned(), "22023", "media_type is null"),
        (
            "select bus.emit(bus.uuid_v7(), 'w', 1::smallint, 1, array['{}', null]::jsonb[])".to_owned(),
            "22023",
            "contents[2] is null",
        ),
        ("select bus.emit(bus.uuid_v7(), 'w', 1::smallint, 1, null)".to_owned(), "22023", "contents is null"),
    ] {
        let refused = sqlx::query(AssertSqlSafe(statement.clone())).execute(bus.pool()).await.expect_err(&statement);
        let refused = refused.into_database_error().unwrap();
        assert_eq!(refused.code().as_deref(), Some(code), "{statement}: {}", refused.message());
        assert!(refused.message().contains(words), "{statement}: {}", refused.message());
    }
    assert_eq!(statuses(&bus).await, []);
}

#[tokio::test]
async fn time_to_live_of_nothing_is_refused_unless_it_is_what_a_parent_has_left() {
    let (bus, _database) = bus().await;
    let mut short = message(json!({}));
    short.ttl_ms = Some(0);
    let Err(Error::Refused { reason, .. }) = bus.enqueue(&short).await else { panic!("accepted") };
    assert!(reason.starts_with("ttl_ms is 0"), "{reason}");
    bus.enqueue(&message(json!({}))).await.unwrap();
    let parent = claim_one(&bus, "w").await;
    let completion = Completion { follow_ups: vec![short], ..Completion::default() };
    assert!(bus.complete(&parent.fence(), "w", &completion).await.unwrap());
    assert!(claim(&bus, "w", 1).await.is_empty());
    assert_eq!(bus.dead_letters(1).await.unwrap()[0].root_id, parent.id);
}

#[tokio::test]
async fn policy_of_a_schedule_may_be_said_as_at_the_command_line() {
    let (bus, _database) = bus().await;
    let upsert = "select bus.upsert_schedule('nightly', '0 2 * * *', 'doc', 'index', 'acme', missed => 'run-once')";
    sqlx::query(upsert).execute(bus.pool()).await.unwrap();
    let missed: String = sqlx::query_scalar("select missed from bus.schedules").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(missed, "run_once");
}

#[tokio::test]
async fn attempt_beyond_all_numbers_is_lost() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let held = claim_one(&bus, "w").await;
    let renew = "select bus.renew('w', jsonb_build_object($1::text, 40000), 30000) ->> 0";
    let lost: Option<String> = sqlx::query_scalar(renew).bind(held.id.to_string()).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(lost, Some(held.id.to_string()));
    assert!(bus.complete(&held.fence(), "w", &Default::default()).await.unwrap());
}
