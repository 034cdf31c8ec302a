//! Ending a claim: the fence, follow-ups, failures, releases.

use std::time::Duration;

use cogo_bus_core::{Bus, Claimed, Completion, Error, Failure, Fence, Settled};
use cogo_contracts::{NewMessage, Route};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    LEASE, bus, claim, claim_one, delays_to_pass, leases_to_pass, message, misplaced, numbered, statuses,
    times_to_live_to_pass,
};

fn failure(retriable: bool) -> Failure {
    Failure { reason: "boom".to_owned(), retriable, retry_after: Some(Duration::ZERO) }
}

#[tokio::test]
async fn completion_is_recorded_once() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    let completion = Completion { result: Some(json!({"answer": 42})), ..Completion::default() };
    assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
    assert!(!bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
    let row = bus.message(claimed.id).await.unwrap().unwrap();
    assert_eq!((row["status"].as_str(), &row["result"]["answer"]), (Some("done"), &json!(42)));
}

#[tokio::test]
async fn stale_worker_is_refused_whatever_it_writes() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let stale = claim_one(&bus, "w").await;
    leases_to_pass(&bus).await;
    // not even reclaimed yet: the lease alone decides
    assert!(!bus.complete(&stale.fence(), "w", &Completion::default()).await.unwrap());
    assert!(bus.extend(&[stale.fence()], "w", LEASE).await.unwrap().is_empty());
    assert_eq!(bus.reclaim(10).await.unwrap(), 1);
    let fresh = claim_one(&bus, "w").await;
    assert_eq!(fresh.attempt, 2);
    for (fence, holder) in [(stale.fence(), "w"), (fresh.fence(), "v"), (Fence { id: fresh.id, attempt: 3 }, "w")] {
        assert!(!bus.complete(&fence, holder, &Completion::default()).await.unwrap());
        assert_eq!(bus.fail(&fence, holder, &failure(true)).await.unwrap(), None);
        assert!(bus.extend(std::slice::from_ref(&fence), holder, LEASE).await.unwrap().is_empty());
        assert_eq!(bus.release(&[fence], holder).await.unwrap(), 0);
    }
    assert!(bus.complete(&fresh.fence(), "w", &Completion::default()).await.unwrap());
}

#[tokio::test]
async fn follow_ups_exist_if_and_only_if_the_completion_does() {
    let (bus, _database) = bus().await;
    let root = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let child = NewMessage::new(Route::constant("test", "child"), None, json!({"x": 1}));
    let completion = Completion { follow_ups: vec![child], ..Completion::default() };
    assert!(!bus.complete(&claimed.fence(), "thief", &completion).await.unwrap());
    assert_eq!(bus.task(root).await.unwrap().unwrap().steps.len(), 1);
    assert!(bus.complete(&claimed.fence(), "w", &completion).await.unwrap());
    let task = bus.task(root).await.unwrap().unwrap();
    assert_eq!(task.steps.len(), 2);
    assert_eq!((task.steps[1].parent_id, task.tenant.as_str()), (Some(root), "acme"));
}

#[tokio::test]
async fn bad_follow_up_leaves_the_claim_as_it_was() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    let bad = NewMessage::new(Route::constant("test", "child"), None, json!("not an object"));
    let completion = Completion { follow_ups: vec![bad], ..Completion::default() };
    assert!(matches!(bus.complete(&claimed.fence(), "w", &completion).await, Err(Error::Refused { .. })));
    assert_eq!(statuses(&bus).await, [("claimed".to_owned(), 1)]);
}

#[tokio::test]
async fn completion_in_a_transaction_stands_or_falls_with_it() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    let mut transaction = bus.pool().begin().await.unwrap();
    assert!(Bus::complete_in(&mut transaction, &claimed.fence(), "w", &Completion::default()).await.unwrap());
    transaction.rollback().await.unwrap();
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
}

#[tokio::test]
async fn failure_is_tried_again_until_attempts_are_used_up() {
    let (bus, _database) = bus().await;
    let mut twice = message(json!({"__assignment": {}}));
    twice.max_attempts = Some(2);
    let id = bus.enqueue(&twice).await.unwrap().id;
    let first = claim_one(&bus, "w").await;
    assert_eq!(bus.fail(&first.fence(), "w", &failure(true)).await.unwrap(), Some(Settled::Again));
    let second = claim_one(&bus, "w").await;
    assert_eq!(bus.fail(&second.fence(), "w", &failure(true)).await.unwrap(), Some(Settled::DeadLetter));
    assert!(claim(&bus, "w", 1).await.is_empty());
    let kinds: Vec<_> =
        cogo_bus_core::events_of_task(bus.pool(), id).await.unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["execute_retry", "execute_failed"]);
}

#[tokio::test]
async fn backoff_grows_and_is_jittered() {
    let (bus, _database) = bus().await;
    let mut many = message(json!({}));
    many.max_attempts = Some(4);
    bus.enqueue(&many).await.unwrap();
    for (attempt, range) in [(1, 0.45..=1.05), (2, 0.95..=2.05), (3, 1.95..=4.05)] {
        let claimed = claim_one(&bus, "w").await;
        assert_eq!(claimed.attempt, attempt);
        let by_the_bus = Failure { reason: "boom".to_owned(), retriable: true, retry_after: None };
        bus.fail(&claimed.fence(), "w", &by_the_bus).await.unwrap();
        let delay: f64 = sqlx::query_scalar(
            "select extract(epoch from m.retry_at - m.last_error_at)::float8 from public.agent_messages m",
        )
        .fetch_one(bus.pool())
        .await
        .unwrap();
        delays_to_pass(&bus).await;
        // a little more or less, since both ends are read off the clock one after the other
        assert!(range.contains(&delay), "attempt {attempt}: {delay}");
    }
}

#[tokio::test]
async fn failure_that_no_attempt_can_mend_is_final() {
    let (bus, _database) = bus().await;
    let id = bus.enqueue(&message(json!({}))).await.unwrap().id;
    let claimed = claim_one(&bus, "w").await;
    let rejected = Failure { reason: "bad\0input".to_owned(), retriable: false, retry_after: None };
    assert_eq!(bus.fail(&claimed.fence(), "w", &rejected).await.unwrap(), Some(Settled::DeadLetter));
    let dead = bus.dead_letters(1).await.unwrap();
    assert_eq!((dead[0].id, dead[0].error.as_str()), (id, "bad\u{fffd}input"));
}

#[tokio::test]
async fn retry_beyond_the_time_to_live_is_final_and_keeps_its_reason() {
    let (bus, _database) = bus().await;
    for (ttl_ms, retry_after) in [(60_000, Duration::from_secs(120)), (60_000, Duration::ZERO)] {
        let mut short = message(json!({}));
        short.ttl_ms = Some(ttl_ms);
        bus.enqueue(&short).await.unwrap();
        let claimed = claim_one(&bus, "w").await;
        let failure = Failure { reason: "disk full".to_owned(), retriable: true, retry_after: Some(retry_after) };
        let expected = if retry_after.is_zero() { Settled::Again } else { Settled::DeadLetter };
        assert_eq!(bus.fail(&claimed.fence(), "w", &failure).await.unwrap(), Some(expected));
    }
    times_to_live_to_pass(&bus).await;
    bus.expire(10).await.unwrap();
    let reasons: Vec<String> = bus.dead_letters(2).await.unwrap().into_iter().map(|dead| dead.error).collect();
    assert_eq!(reasons, ["time to live passed before another attempt, last error: disk full", "disk full"]);
}

#[tokio::test]
async fn released_message_is_free_at_once_and_keeps_its_attempts() {
    let (bus, _database) = bus().await;
    let mut once = message(json!({}));
    once.max_attempts = Some(1);
    bus.enqueue(&once).await.unwrap();
    for round in 1..=3 {
        let claimed = claim_one(&bus, "w").await;
        assert_eq!(claimed.attempt, round, "the fence never repeats");
        assert_eq!(bus.release(&[claimed.fence()], "w").await.unwrap(), 1);
    }
    let claimed = claim_one(&bus, "w").await;
    assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
}

#[tokio::test]
async fn extension_keeps_what_is_ours_only() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&crate::support::numbered(2)).await.unwrap();
    let mine = claim_one(&bus, "w").await;
    let other = claim_one(&bus, "v").await;
    let kept = bus.extend(&[mine.fence(), other.fence()], "w", LEASE).await.unwrap();
    assert_eq!(kept, [mine.id]);
}

#[tokio::test]
async fn completions_in_a_batch_are_fenced_one_by_one() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&crate::support::numbered(4)).await.unwrap();
    bus.enqueue(&message(json!({"__assignment": {}}))).await.unwrap();
    let mine = claim(&bus, "w", 3).await;
    let others = claim(&bus, "v", 2).await;
    let completion = |n: usize| Completion { result: Some(json!({"n": n})), ..Completion::default() };
    let mut batch: Vec<_> = mine.iter().enumerate().map(|(n, claimed)| (claimed.fence(), completion(n))).collect();
    batch[1].0.attempt = 7;
    batch.push((others[0].fence(), completion(9)));
    let recorded = bus.complete_many(&batch, "w").await.unwrap();
    assert_eq!(recorded.iter().collect::<std::collections::HashSet<_>>(), [mine[0].id, mine[2].id].iter().collect());
    assert_eq!(bus.message(mine[2].id).await.unwrap().unwrap()["result"]["n"], 2);
    assert_eq!(statuses(&bus).await, [("claimed".to_owned(), 3), ("done".to_owned(), 2)]);
    let again = bus.complete_many(&batch, "w").await.unwrap();
    assert!(again.is_empty());
    let stamped = bus.complete_many(&[(others[1].fence(), completion(1))], "v").await.unwrap();
    let events = cogo_bus_core::events_of_task(bus.pool(), stamped[0]).await.unwrap();
    assert_eq!(events[0].kind, "execute_done");
    assert!(bus.complete_many(&[], "w").await.unwrap().is_empty());
}

#[tokio::test]
async fn each_of_a_batch_keeps_the_address_of_its_own_result() {
    let (bus, _database) = bus().await;
    for size in [3, 100] {
        bus.enqueue_many(&numbered(u32::from(size))).await.unwrap();
        let held = claim(&bus, "w", size).await;
        let address = |claimed: &Claimed| (claimed.id == held[1].id).then(|| format!("/artifacts/{}", claimed.id));
        let ended: Vec<_> = held
            .iter()
            .map(|claimed| (claimed.fence(), Completion { result_url: address(claimed), ..Completion::default() }))
            .collect();
        assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), held.len());
        for claimed in &held {
            let recorded = bus.message(claimed.id).await.unwrap().unwrap();
            assert_eq!(recorded["result_url"].as_str(), address(claimed).as_deref());
        }
    }
}

#[tokio::test]
async fn batch_with_follow_ups_is_refused_and_names_what_sends_them() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let mine = claim(&bus, "w", 2).await;
    let sends = Completion { follow_ups: vec![message(json!({}))], ..Completion::default() };
    let batch = [(mine[0].fence(), Completion::default()), (mine[1].fence(), sends)];
    let refused = bus.complete_many(&batch, "w").await;
    assert!(matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("Bus::complete")), "{refused:?}");
    assert_eq!(statuses(&bus).await, [("claimed".to_owned(), 2)]);
    assert!(bus.complete(&mine[1].fence(), "w", &batch[1].1).await.unwrap());
    assert_eq!(statuses(&bus).await.iter().map(|(_, count)| count).sum::<i64>(), 3, "with what it sends");
}

#[tokio::test]
async fn batch_with_a_result_against_the_contract_records_nothing() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&crate::support::numbered(2)).await.unwrap();
    let mine = claim(&bus, "w", 2).await;
    let incompressible: Vec<u32> = (0..400_000_u32).map(|number| number.wrapping_mul(2_654_435_761)).collect();
    let oversized = Completion { result: Some(json!(incompressible)), ..Completion::default() };
    let batch = [(mine[0].fence(), Completion::default()), (mine[1].fence(), oversized)];
    assert!(matches!(bus.complete_many(&batch, "w").await, Err(Error::Refused { .. })));
    assert_eq!(statuses(&bus).await, [("claimed".to_owned(), 2)]);
}

#[tokio::test]
async fn message_that_is_handed_back_for_ever_is_given_up() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    for statement in
        ["update public.agent_messages set attempts = 1000, released = 1000", "update bus.ready set attempt = 1001"]
    {
        sqlx::query(statement).execute(bus.pool()).await.unwrap();
    }
    let claimed = claim_one(&bus, "w").await;
    bus.release(&[claimed.fence()], "w").await.unwrap();
    assert_eq!(bus.dead_letters(1).await.unwrap()[0].error, "handed back 1000 times");
}

#[tokio::test]
async fn each_of_a_batch_gets_its_own_result_whatever_the_order_and_what_is_not_held_changes_nothing() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(90)).await.unwrap();
    let again = claim(&bus, "before", 70).await;
    let fences: Vec<_> = again.iter().map(|claimed| claimed.fence()).collect();
    assert_eq!(bus.release(&fences, "before").await.unwrap(), 70);
    let held = claim(&bus, "w", 90).await;
    assert_eq!(held.iter().filter(|claimed| claimed.attempt == 2).count(), 70, "attempts of one claim differ");
    assert_eq!(held.iter().filter(|claimed| claimed.attempt == 1).count(), 20);
    let end = |claimed: &Claimed| {
        let result = Some(json!({"of": claimed.payload["number"]}));
        (claimed.fence(), Completion { result, snippet: Some(claimed.id.to_string()), ..Completion::default() })
    };
    let mut ended: Vec<_> = held.iter().rev().map(end).collect();
    // twice, and under an attempt that is over
    ended.push(end(&held[3]));
    ended[40].0.attempt += 1;
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 89);
    let rows: Vec<(Uuid, i64, Option<Value>, Option<String>)> = sqlx::query_as(
        "select id, (payload ->> 'number')::bigint, result, result_snippet from public.agent_messages order by id",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    let others: Vec<Uuid> = rows.iter().filter(|(.., result, _)| result.is_none()).map(|(id, ..)| *id).collect();
    assert_eq!(others, [ended[40].0.id]);
    for (id, number, result, snippet) in rows {
        if id != others[0] {
            assert_eq!((result, snippet), (Some(json!({"of": number})), Some(id.to_string())));
        }
    }
    assert_eq!(bus.complete_many(&[end(&held[89 - 40])], "w").await.unwrap(), others);
    assert_eq!(misplaced(&bus).await, 0);
    assert_eq!(statuses(&bus).await, [("done".to_owned(), 90)]);
}

#[tokio::test]
async fn a_batch_whose_lease_has_passed_is_not_recorded_though_nobody_took_it_back_yet() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(75)).await.unwrap();
    // the rows of a small claim are marked, those of a large one are not
    let (small, large) = (claim(&bus, "w", 5).await, claim(&bus, "w", 70).await);
    assert_eq!((small.len(), large.len()), (5, 70));
    leases_to_pass(&bus).await;
    for held in [&small, &large] {
        let late: Vec<_> = held.iter().map(|claimed| (claimed.fence(), Completion::default())).collect();
        assert!(bus.complete_many(&late, "w").await.unwrap().is_empty());
    }
    assert_eq!(bus.reclaim(100).await.unwrap(), 75);
    assert_eq!(statuses(&bus).await, [("queued".to_owned(), 75)]);
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn keys_of_what_a_refused_completion_would_have_sent_stay_free() {
    let (bus, _database) = bus().await;
    let keyed = |key: &str| NewMessage { idempotency_key: Some(key.to_owned()), ..message(json!({})) };
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let held = claim(&bus, "w", 2).await;
    let completion = |key| Completion { follow_ups: vec![keyed(key), keyed(key)], ..Completion::default() };
    assert!(!bus.complete(&held[0].fence(), "stranger", &completion("one")).await.unwrap());
    let ending = |attempt: i16, key| json!({"attempt": attempt, "ending": {"follow_ups": [keyed(key)]}});
    let endings = json!({held[0].id.to_string(): ending(1, "two"), held[1].id.to_string(): ending(2, "three")});
    let settled: serde_json::Value =
        sqlx::query_scalar("select bus.settle_many('w', $1)").bind(endings).fetch_one(bus.pool()).await.unwrap();
    assert_eq!(settled, json!({held[0].id.to_string(): "done"}));
    for (key, is_used) in [("one", false), ("two", true), ("three", false)] {
        assert_eq!(bus.enqueue(&keyed(key)).await.unwrap().duplicate, is_used, "{key}");
    }
    assert!(bus.complete(&held[1].fence(), "w", &completion("four")).await.unwrap());
    let sent = claim(&bus, "w", 10).await;
    assert_eq!(sent.len(), 4, "each key once");
    // said again after its answer was lost, it takes nothing back
    assert!(!bus.complete(&held[1].fence(), "w", &completion("four")).await.unwrap());
    assert!(bus.enqueue(&keyed("four")).await.unwrap().duplicate);
}
