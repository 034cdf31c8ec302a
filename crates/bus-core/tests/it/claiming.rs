//! Claiming: order, exclusiveness, delays, deadlines, groups and direct messages.

use std::{collections::HashSet, time::Duration};

use cogo_bus_core::{Bus, ClaimRequest, Error};
use cogo_contracts::NewMessage;
use serde_json::json;

use crate::support::{
    LEASE, PATIENCE, PAUSE, ROUTE, bus, claim, claim_one, delays_to_pass, message, numbered, times_to_live_to_pass,
};

#[tokio::test]
async fn two_workers_never_hold_one_message() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(200)).await.unwrap();
    let workers = (0..8).map(|worker| {
        let bus = bus.clone();
        async move {
            let mut mine = Vec::new();
            loop {
                let batch = claim(&bus, &format!("w{worker}"), 7).await;
                if batch.is_empty() {
                    return mine;
                }
                mine.extend(batch.into_iter().map(|claimed| claimed.id));
            }
        }
    });
    let all: Vec<_> = futures_util::future::join_all(workers).await.into_iter().flatten().collect();
    assert_eq!(all.len(), 200);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 200);
}

#[tokio::test]
async fn priority_goes_before_age() {
    let (bus, _database) = bus().await;
    for (number, priority) in [(0, None), (1, Some(200)), (2, Some(5)), (3, None)] {
        let mut one = message(json!({"number": number}));
        one.priority = priority;
        bus.enqueue(&one).await.unwrap();
    }
    let order: Vec<_> = claim(&bus, "w", 10).await.iter().map(|claimed| claimed.payload["number"].clone()).collect();
    assert_eq!(order, [2, 0, 3, 1]);
}

#[tokio::test]
async fn delayed_message_waits_and_tells_how_long() {
    let (bus, _database) = bus().await;
    let mut delayed = message(json!({}));
    delayed.delay_ms = Some(60_000);
    bus.enqueue(&delayed).await.unwrap();
    assert!(claim(&bus, "w", 1).await.is_empty());
    let due = bus.next_due(&ROUTE).await.unwrap().unwrap();
    assert!(due > Duration::from_secs(50) && due <= Duration::from_secs(60), "{due:?}");
    delays_to_pass(&bus).await;
    assert_eq!(claim(&bus, "w", 1).await.len(), 1);
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), None);
}

#[tokio::test]
async fn message_whose_ttl_passed_is_never_started() {
    let (bus, _database) = bus().await;
    let mut short = message(json!({}));
    short.ttl_ms = Some(60_000);
    let id = bus.enqueue(&short).await.unwrap().id;
    times_to_live_to_pass(&bus).await;
    assert!(claim(&bus, "w", 10).await.is_empty());
    let dead = bus.dead_letters(10).await.unwrap();
    assert_eq!((dead[0].id, dead[0].attempts), (id, 0));
    assert_eq!(dead[0].error, "time to live passed before it was started");
}

#[tokio::test]
async fn claim_tells_the_time_that_is_left() {
    let (bus, _database) = bus().await;
    let mut short = message(json!({}));
    short.ttl_ms = Some(60_000);
    bus.enqueue(&short).await.unwrap();
    let left = claim_one(&bus, "w").await.remaining_ms.unwrap();
    assert!((50_000..=60_000).contains(&left), "{left}");
}

#[tokio::test]
async fn group_runs_in_order_one_at_a_time() {
    let (bus, _database) = bus().await;
    for number in 0..3 {
        let mut one = message(json!({"number": number}));
        one.group_key = Some("account-1".to_owned());
        bus.enqueue(&one).await.unwrap();
    }
    for number in 0..3 {
        let mut batch = claim(&bus, "w", 10).await;
        assert_eq!(batch.len(), 1, "only the head of the group");
        assert!(claim(&bus, "v", 10).await.is_empty());
        let head = batch.remove(0);
        assert_eq!(head.payload["number"], number);
        assert!(bus.complete(&head.fence(), "w", &Default::default()).await.unwrap());
    }
}

#[tokio::test]
async fn group_keeps_its_order_when_senders_commit_out_of_order() {
    let (bus, _database) = bus().await;
    let grouped = |number: u32| {
        let mut one = message(json!({"number": number}));
        one.group_key = Some("account-1".to_owned());
        one
    };
    let mut first = bus.pool().begin().await.unwrap();
    Bus::enqueue_in(&mut first, &grouped(0)).await.unwrap();
    let second = tokio_util::task::TaskTracker::new().spawn({
        let (bus, message) = (bus.clone(), grouped(1));
        async move { bus.enqueue(&message).await.unwrap() }
    });
    // the second sender waits for the first one's commit, so nothing of the group can be claimed before it
    tokio::time::timeout(PATIENCE, async {
        let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted
                       and database = (select oid from pg_database where datname = current_database()))";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(bus.pool()).await.unwrap() {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .unwrap();
    assert!(claim(&bus, "w", 10).await.is_empty());
    first.commit().await.unwrap();
    second.await.unwrap();
    let head = claim(&bus, "w", 10).await;
    assert_eq!(head.iter().map(|claimed| claimed.payload["number"].clone()).collect::<Vec<_>>(), [0]);
}

#[tokio::test]
async fn group_goes_on_after_every_kind_of_end() {
    let (bus, _database) = bus().await;
    let mut messages = crate::support::numbered(5);
    for one in &mut messages {
        one.group_key = Some("account-1".to_owned());
    }
    messages[3].ttl_ms = Some(60_000);
    let sent = bus.enqueue_many(&messages).await.unwrap();
    times_to_live_to_pass(&bus).await;
    let next = async |number: u32| {
        let mut batch = claim(&bus, "w", 10).await;
        assert_eq!(batch.len(), 1);
        assert_eq!(batch[0].payload["number"], number);
        batch.remove(0)
    };
    let done = next(0).await;
    assert!(bus.complete(&done.fence(), "w", &Default::default()).await.unwrap());
    let failed = next(1).await;
    let reject = cogo_bus_core::Failure { reason: "no".to_owned(), retriable: false, retry_after: None };
    bus.fail(&failed.fence(), "w", &reject).await.unwrap();
    assert_eq!(bus.cancel(sent[2].id).await.unwrap(), 1);
    // the fourth outlived its time while it was blocked
    let last = next(4).await;
    assert_eq!(bus.release(&[last.fence()], "w").await.unwrap(), 1);
    next(4).await;
}

#[tokio::test]
async fn direct_message_goes_to_its_instance_only() {
    let (bus, _database) = bus().await;
    let mut direct = message(json!({}));
    direct.target_instance = Some("worker/1".to_owned());
    bus.enqueue(&direct).await.unwrap();
    let mut request =
        ClaimRequest { route: &ROUTE, holder: "w", instance: Some("worker/0"), max_messages: 1, lease: LEASE };
    assert!(bus.claim(&request).await.unwrap().is_empty());
    request.instance = Some("worker/1");
    assert_eq!(bus.claim(&request).await.unwrap().len(), 1);
}

#[tokio::test]
async fn routes_and_shards_do_not_mix() {
    let (bus, _database) = bus().await;
    let mut other = message(json!({}));
    other.route = ROUTE.on_shard(1);
    bus.enqueue(&other).await.unwrap();
    assert!(claim(&bus, "w", 10).await.is_empty());
}

#[tokio::test]
async fn claim_without_limits_of_reason_is_refused() {
    let (bus, _database) = bus().await;
    let long = "w".repeat(201);
    for (holder, max_messages, lease) in [
        ("", 1, LEASE),
        (long.as_str(), 1, LEASE),
        ("w", 0, LEASE),
        ("w", 1001, LEASE),
        ("w", 1, Duration::ZERO),
        ("w", 1, Duration::MAX),
    ] {
        let request = ClaimRequest { route: &ROUTE, holder, instance: None, max_messages, lease };
        assert!(matches!(bus.claim(&request).await, Err(Error::Refused { .. })), "{request:?}");
    }
}

#[tokio::test]
async fn payload_that_cannot_be_read_costs_only_its_own_message() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    for payload in [format!("{{\"deep\": {}1{}}}", "[".repeat(200), "]".repeat(200)), "{\"huge\": 1e400}".to_owned()] {
        sqlx::query("select bus.enqueue('test', 'work', 'acme', $1::jsonb)")
            .bind(payload)
            .execute(bus.pool())
            .await
            .unwrap();
    }
    bus.enqueue_many(&numbered(1)).await.unwrap();
    assert_eq!(claim(&bus, "w", 10).await.len(), 3);
    let dead = bus.dead_letters(10).await.unwrap();
    assert_eq!(dead.len(), 2);
    for letter in dead {
        assert!(letter.error.starts_with("payload cannot be read: ") && letter.attempts == 1, "{letter:?}");
    }
}

#[tokio::test]
async fn work_behind_what_has_ended_is_looked_for_at_once() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    // as when its end and its claim meet
    let end = "update public.agent_messages set status = 'cancelled', done_at = clock_timestamp() where payload = '{\"number\": 0}'";
    sqlx::query(end).execute(bus.pool()).await.unwrap();
    assert!(claim(&bus, "w", 1).await.is_empty());
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), Some(Duration::ZERO));
    bus.pause_route(&ROUTE, "test").await.unwrap();
    bus.enqueue(&NewMessage { delay_ms: Some(1), ..message(json!({})) }).await.unwrap();
    delays_to_pass(&bus).await;
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), None, "nobody may have it");
    bus.resume_route(&ROUTE, "test").await.unwrap();
    assert_eq!(claim(&bus, "w", 2).await.len(), 2);
    assert_eq!(bus.next_due(&ROUTE).await.unwrap(), None);
}
