//! Many failures in one statement: fenced one by one, and each leads to what it would have led to alone.

use std::{collections::HashSet, time::Duration};

use cogo_bus_core::{Bus, Claimed, Failure, Fence, Settled};
use cogo_contracts::NewMessage;
use serde_json::{Value, json};
use sqlx::{PgConnection, postgres::PgListener};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::{
    PATIENCE, bus, claim, claim_one, delays_to_pass, leases_to_pass, message, misplaced, numbered, statuses,
    until_somebody_waits_for_a_lock,
};

fn failure(reason: &str, retriable: bool, retry_after: Option<Duration>) -> Failure {
    Failure { reason: reason.to_owned(), retriable, retry_after }
}

fn at_once() -> Failure {
    failure("boom", true, Some(Duration::ZERO))
}

#[tokio::test]
async fn failures_in_a_batch_are_fenced_one_by_one() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(6)).await.unwrap();
    let mine = claim(&bus, "w", 4).await;
    let others = claim(&bus, "v", 2).await;
    let mut batch: Vec<_> = mine.iter().rev().map(|claimed| (claimed.fence(), at_once())).collect();
    batch[0].0.attempt = 7;
    batch.push((others[0].fence(), at_once()));
    batch.push((Fence { id: Uuid::now_v7(), attempt: 1 }, at_once()));
    // one that is told twice is ended once
    batch.push(batch[1].clone());
    assert!(bus.complete(&mine[0].fence(), "w", &Default::default()).await.unwrap());
    let mut ours = [mine[1].id, mine[2].id];
    ours.sort_unstable();
    assert_eq!(bus.fail_many(&batch, "w").await.unwrap(), ours.map(|id| (id, Settled::Again)));
    assert!(bus.fail_many(&batch, "w").await.unwrap().is_empty(), "once");
    assert_eq!(statuses(&bus).await, [("claimed", 3), ("done", 1), ("queued", 2)].map(|(s, n)| (s.to_owned(), n)));
    let again: HashSet<_> = claim(&bus, "u", 9).await.into_iter().map(|one| (one.id, one.attempt)).collect();
    assert_eq!(again, ours.map(|id| (id, 2)).into());
    leases_to_pass(&bus).await;
    assert!(bus.fail_many(&[(others[1].fence(), at_once())], "v").await.unwrap().is_empty(), "the lease has passed");
    assert!(bus.fail_many(&[], "w").await.unwrap().is_empty());
    assert_eq!(misplaced(&bus).await, 0);
}

#[tokio::test]
async fn stale_attempt_given_beside_the_present_one_changes_nothing() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let first = claim(&bus, "w", 2).await;
    // the claim of both goes on for the other one
    bus.fail(&first[0].fence(), "w", &at_once()).await.unwrap().unwrap();
    let present = claim_one(&bus, "w").await;
    assert_eq!((present.id, present.attempt), (first[0].id, 2));
    let both = [(first[0].fence(), at_once()), (present.fence(), failure("bad", false, None))];
    assert_eq!(bus.fail_many(&both, "w").await.unwrap(), [(present.id, Settled::DeadLetter)]);
    assert_eq!(bus.message(present.id).await.unwrap().unwrap()["error"], "bad");
    assert!(
        bus.complete(&first[1].fence(), "w", &Default::default()).await.unwrap(),
        "the other is still its holder's"
    );
    assert_eq!(misplaced(&bus).await, 0);
}

/// Messages of every kind that a failure means something else to, and how each of them fails.
fn of_every_kind() -> Vec<(NewMessage, Failure)> {
    let plain = || message(json!({"kind": "plain"}));
    let assigned = || message(json!({"__assignment": {"decision_id": 7}}));
    let grouped = |group: &str| NewMessage { group_key: Some(group.to_owned()), ..plain() };
    let minute = Duration::from_secs(60);
    vec![
        (plain(), failure("slow down", true, None)),
        (plain(), at_once()),
        (plain(), failure("", true, Some(minute))),
        (plain(), failure("bad\0input", false, None)),
        (NewMessage { max_attempts: Some(1), ..plain() }, at_once()),
        (NewMessage { ttl_ms: Some(30_000), ..plain() }, failure("too late", true, Some(minute))),
        (NewMessage { ttl_ms: Some(600_000), ..plain() }, failure("in time", true, Some(minute))),
        (assigned(), failure("model is away", true, Some(minute))),
        (assigned(), failure("no such model", false, None)),
        (grouped("again"), at_once()),
        (grouped("dead"), failure("poison", false, None)),
    ]
}

/// Fails all of them, in one way or the other; answers what that led to, without ids and times.
async fn led_to(in_one_batch: bool) -> Vec<Value> {
    let (bus, _database) = bus().await;
    let kinds = of_every_kind();
    let messages: Vec<NewMessage> = kinds.iter().map(|(message, _)| message.clone()).collect();
    let sent = bus.enqueue_many(&messages).await.unwrap();
    let second_of_group = NewMessage { group_key: Some("dead".to_owned()), ..message(json!({"kind": "second"})) };
    let join = NewMessage { awaits: vec![sent[3].id], ..message(json!({"kind": "join"})) };
    bus.enqueue_many(&[second_of_group, join]).await.unwrap();
    let claimed = claim(&bus, "w", 100).await;
    assert_eq!(claimed.len(), kinds.len(), "those behind wait");
    let of = |claimed: &Claimed| sent.iter().position(|sent| sent.id == claimed.id).unwrap();
    let batch: Vec<_> = claimed.iter().map(|claimed| (claimed.fence(), kinds[of(claimed)].1.clone())).collect();
    if in_one_batch {
        let settled = bus.fail_many(&batch, "w").await.unwrap();
        assert_eq!(settled.len(), batch.len());
        for (id, settled) in settled {
            let status = bus.message(id).await.unwrap().unwrap()["status"].clone();
            assert_eq!(settled == Settled::Again, status == "queued");
        }
    } else {
        for (fence, failure) in &batch {
            bus.fail(fence, "w", failure).await.unwrap().unwrap();
        }
    }
    assert_eq!(misplaced(&bus).await, 0);
    let claims: i64 = sqlx::query_scalar("select count(*) from bus.claims").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(claims, 0, "everything was let go of");
    let mut told = Vec::new();
    for sent in &sent {
        told.push(standing(&bus, sent.id).await);
    }
    let mut free: Vec<_> = claim(&bus, "v", 100).await.into_iter().map(|one| one.payload).collect();
    free.sort_by_key(ToString::to_string);
    told.push(json!(free));
    told
}

async fn standing(bus: &Bus, id: Uuid) -> Value {
    sqlx::query_scalar(
        "select jsonb_build_object(
                'row', jsonb_build_array(m.status, m.attempts, m.released, m.claimed_by, m.error, m.lease_until, m.done_at is null,
                                         m.claimed_at is null, m.last_error_at is null),
                -- the jitter takes away up to a half, and both ends are read off the clock one after the other
                'waits_s', round(log(4, extract(epoch from m.retry_at - m.last_error_at) / 0.7)),
                'dead', (select jsonb_agg(jsonb_build_array(d.route, d.tenant, d.failed_at = m.done_at))
                           from bus.dead_letters d where d.id = m.id),
                'delayed', (select count(*) from bus.delayed d where d.id = m.id and d.due = m.retry_at),
                'attempts', (select jsonb_agg(jsonb_build_array(h.attempt, h.holder, h.outcome, h.error,
                                                                h.started_at = m.claimed_at, h.ended_at is null))
                               from bus.history(m.id) h),
                'events', (select jsonb_agg(jsonb_build_array(e.kind, e.actor, e.route, e.detail - 'wait_ms' - 'run_ms' - 'retry_at',
                                                              e.detail ? 'run_ms', e.detail ? 'retry_at'))
                             from public.bus_events e where e.message_id = m.id))
           from public.agent_messages m where m.id = $1",
    )
    .bind(id)
    .fetch_one(bus.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn each_failure_of_a_batch_leads_to_what_it_would_alone() {
    let (alone, together) = (led_to(false).await, led_to(true).await);
    for (number, (alone, together)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(together, alone, "number {number}");
    }
    assert_eq!(alone.len(), together.len());
    assert_eq!(together[3]["row"][0], "failed");
    assert_eq!(together[0]["row"][0], "queued");
}

#[tokio::test]
async fn backoff_of_a_batch_grows_and_attempts_end() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&vec![NewMessage { max_attempts: Some(3), ..message(json!({})) }; 20]).await.unwrap();
    let by_the_bus = || failure("boom", true, None);
    for (attempt, range) in [(1, 0.45..=1.05), (2, 0.95..=2.05)] {
        let claimed = claim(&bus, "w", 100).await;
        assert!(claimed.len() == 20 && claimed.iter().all(|one| one.attempt == attempt));
        let batch: Vec<_> = claimed.iter().map(|one| (one.fence(), by_the_bus())).collect();
        let settled = bus.fail_many(&batch, "w").await.unwrap();
        assert!(settled.len() == 20 && settled.iter().all(|(_, settled)| *settled == Settled::Again));
        let waits: Vec<f64> = sqlx::query_scalar(
            "select extract(epoch from m.retry_at - m.last_error_at)::float8 from public.agent_messages m",
        )
        .fetch_all(bus.pool())
        .await
        .unwrap();
        // a little more or less, since both ends are read off the clock one after the other
        assert!(waits.iter().all(|wait| range.contains(wait)), "attempt {attempt}: {waits:?}");
        let different: HashSet<_> = waits.iter().map(|wait| wait.to_bits()).collect();
        assert!(different.len() > 10, "a herd spreads: {waits:?}");
        delays_to_pass(&bus).await;
    }
    let batch: Vec<_> = claim(&bus, "w", 100).await.iter().map(|one| (one.fence(), by_the_bus())).collect();
    let settled = bus.fail_many(&batch, "w").await.unwrap();
    assert!(settled.len() == 20 && settled.iter().all(|(_, settled)| *settled == Settled::DeadLetter));
    assert_eq!(bus.dead_letters(100).await.unwrap().len(), 20);
}

#[tokio::test]
async fn route_is_woken_once_for_a_batch_and_each_watched_task_once() {
    let (bus, _database) = bus().await;
    let sent = bus.enqueue_many(&numbered(40)).await.unwrap();
    bus.watch(sent[0].id, "test", PATIENCE).await.unwrap();
    bus.watch(sent[1].id, "test", PATIENCE).await.unwrap();
    let claimed = claim(&bus, "w", 100).await;
    let mut hints = PgListener::connect_with(bus.pool()).await.unwrap();
    hints.listen_all(["bus_ready", "bus_task"]).await.unwrap();
    let later = |claimed: &Claimed| (claimed.fence(), failure("boom", true, Some(Duration::from_secs(9))));
    bus.fail_many(&claimed.iter().map(later).collect::<Vec<_>>(), "w").await.unwrap();
    sqlx::query("select pg_notify('bus_task', 'the end')").execute(bus.pool()).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "the end") {
        let hint = tokio::time::timeout(PATIENCE, hints.recv()).await.expect("no hint came").unwrap();
        told.push(hint.payload().to_owned());
    }
    told.sort_unstable();
    let mut expected =
        vec![sent[0].id.to_string(), sent[1].id.to_string(), "test/work/0".to_owned(), "the end".to_owned()];
    expected.sort_unstable();
    assert_eq!(told, expected);
}

/// Whether a row may be locked now.
async fn is_free(connection: &mut PgConnection, id: Uuid) -> bool {
    sqlx::query("select from public.agent_messages where id = $1 for update skip locked")
        .bind(id)
        .fetch_optional(connection)
        .await
        .unwrap()
        .is_some()
}

#[tokio::test]
async fn rows_of_a_batch_are_locked_in_the_order_of_their_ids() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(3)).await.unwrap();
    let mut claimed = claim(&bus, "w", 3).await;
    claimed.sort_by_key(|one| std::cmp::Reverse(one.id));
    let [last, middle, first] = [0, 1, 2].map(|index| claimed[index].id);
    let batch: Vec<_> = claimed.iter().map(|one| (one.fence(), at_once())).collect();
    let mut other = bus.pool().begin().await.unwrap();
    assert!(is_free(&mut other, middle).await);
    let failing = TaskTracker::new().spawn({
        let bus = bus.clone();
        async move { bus.fail_many(&batch, "w").await.unwrap() }
    });
    until_somebody_waits_for_a_lock(&bus, "bus.fail_many").await;
    let mut third = bus.pool().begin().await.unwrap();
    assert!(!is_free(&mut third, first).await, "those before are locked");
    assert!(is_free(&mut third, last).await, "those behind are not");
    third.rollback().await.unwrap();
    other.rollback().await.unwrap();
    assert_eq!(failing.await.unwrap().len(), 3);
}

#[tokio::test]
async fn endless_wait_of_one_costs_the_others_nothing() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let claimed = claim(&bus, "w", 2).await;
    let batch = [(claimed[0].fence(), failure("boom", true, Some(Duration::MAX))), (claimed[1].fence(), at_once())];
    assert_eq!(bus.fail_many(&batch, "w").await.unwrap().len(), 2);
    assert_eq!(claim_one(&bus, "w").await.id, claimed[1].id);
    let days: f64 = sqlx::query_scalar(
        "select extract(epoch from retry_at - last_error_at)::float8 / 86400 from public.agent_messages where id = $1",
    )
    .bind(claimed[0].id)
    .fetch_one(bus.pool())
    .await
    .unwrap();
    assert!((days - 365.0).abs() < 1.0, "{days}");
}

#[tokio::test]
async fn reasons_and_delays_may_be_left_out() {
    let (bus, _database) = bus().await;
    bus.enqueue(&message(json!({}))).await.unwrap();
    let claimed = claim_one(&bus, "w").await;
    let status: String = sqlx::query_scalar("select status from bus.fail_many($1, $2, 'w')")
        .bind([claimed.id])
        .bind([claimed.attempt])
        .fetch_one(bus.pool())
        .await
        .unwrap();
    assert_eq!(status, "queued");
    assert_eq!(bus.message(claimed.id).await.unwrap().unwrap()["error"], "no reason given");
}
