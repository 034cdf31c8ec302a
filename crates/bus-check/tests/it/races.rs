//! Two calls at one moment, brought about on purpose: extensions beside ends, retention beside late senders.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use cogo_bus_check::{Answer, Held, Operation, Outcome, ROUTE, RecordedBus};
use cogo_bus_core::{ClaimRequest, Completion, Fence};
use cogo_contracts::NewMessage;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::support::{Stage, claim, message, plain};

const LEASE: Duration = Duration::from_secs(60);

/// Extends within the transaction of the caller, whose commit the caller records.
async fn extend_in(connection: &mut PgConnection, fence: &Fence, lease: Duration) -> Vec<Uuid> {
    sqlx::query_scalar("select id from bus.extend($1, $2, 'w', $3)")
        .bind(vec![fence.id])
        .bind(vec![fence.attempt])
        .bind(i64::try_from(lease.as_millis()).unwrap())
        .fetch_all(connection)
        .await
        .unwrap()
}

/// Waits until somebody waits for a lock of this kind.
async fn somebody_waits(pool: &PgPool) {
    let looks = async {
        loop {
            let waits: bool = sqlx::query_scalar(
                "select exists (select from pg_locks l join pg_database d on d.oid = l.database
                                 where not l.granted and d.datname = current_database())
                     or exists (select from pg_stat_activity a
                                 where a.datname = current_database() and a.wait_event_type = 'Lock')",
            )
            .fetch_one(pool)
            .await
            .unwrap();
            if waits {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looks).await.expect("nobody waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_of_one_claim_at_once_are_both_kept() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(2)).await.unwrap();
    let lease = Duration::from_secs(12);
    let claimed = claim(&bus, "w", 2, lease).await;
    let leased = tokio::time::Instant::now();
    let fences: Vec<Fence> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
    let asked = Operation::Extend {
        holder: "w".to_owned(),
        held: vec![Held { id: fences[0].id, attempt: fences[0].attempt }],
        lease_ms: 60_000,
    };
    let number = bus.journal().invoked(asked);
    let mut first = stage.pool.begin().await.unwrap();
    let kept = extend_in(&mut first, &fences[0], LEASE).await;
    let second = bus.extend(&fences[1..], "w", LEASE);
    let commit_when_blocked = async {
        tokio::select! {
            () = somebody_waits(&stage.pool) => {}
            // a layout in which they do not touch each other
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        first.commit().await.unwrap();
        bus.journal().returned(number, Outcome::Ok(Answer::Still(kept.clone())));
    };
    let (both, ()) = tokio::join!(second, commit_when_blocked);
    assert_eq!((kept.len(), both.unwrap().len()), (1, 1));
    tokio::time::sleep_until(leased + lease + Duration::from_millis(100)).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 0, "a lease that was extended has not passed");
    for fence in &fences {
        assert!(bus.complete(fence, "w", &Completion::default()).await.unwrap(), "its lease was extended");
    }
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_of_some_beside_completion_of_the_others_loses_no_claim() {
    const CLAIM: u16 = 60;
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    for round in 0..40_u64 {
        bus.enqueue_many(&plain(CLAIM.into())).await.unwrap();
        let claimed = claim(&bus, "w", CLAIM, LEASE).await;
        let fences: Vec<Fence> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
        // heartbeat of one that runs long, while the others are done
        let (long, done) = fences.split_at(1);
        let ended: Vec<_> = done.iter().map(|fence| (fence.clone(), Completion::default())).collect();
        let heartbeat = async {
            tokio::time::sleep(Duration::from_micros(round * 100)).await;
            bus.extend(long, "w", LEASE).await.unwrap()
        };
        let (recorded, kept) = tokio::join!(bus.complete_many(&ended, "w"), heartbeat);
        assert_eq!((recorded.unwrap().len(), kept.len()), (done.len(), 1));
        let still_owned = bus.complete(&long[0], "w", &Completion::default()).await.unwrap();
        assert!(still_owned, "round {round}: the extended claim is gone");
    }
    stage.holds().await;
}

/// Waits until as many wait for locks.
async fn so_many_wait(pool: &PgPool, count: i64) {
    let looks = async {
        let waiting = "select count(*) from pg_stat_activity a
                        where a.datname = current_database() and a.wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(pool).await.unwrap() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looks).await.expect("nobody waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_that_comes_through_amid_a_reclaim_of_its_claim_costs_no_message() {
    // more than a cursor reads ahead, so that the last one is locked after the first ones are settled
    const CLAIM: u16 = 12;
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(CLAIM.into())).await.unwrap();
    let lease = Duration::from_secs(12);
    let claimed = claim(&bus, "w", CLAIM, lease).await;
    let leased = tokio::time::Instant::now();
    let last = claimed.iter().map(cogo_bus_core::Claimed::fence).max_by_key(|fence| fence.id).unwrap();

    let mut has_the_row = stage.pool.begin().await.unwrap();
    let row = "select from public.agent_messages where id = $1 for update";
    sqlx::query(row).bind(last.id).execute(&mut *has_the_row).await.unwrap();
    let extended = tokio::sync::Notify::new();
    let extending = async {
        let kept = bus.extend(std::slice::from_ref(&last), "w", LEASE).await.unwrap();
        extended.notify_one();
        kept
    };
    let taking_back = async {
        so_many_wait(&stage.pool, 1).await;
        tokio::time::sleep_until(leased + lease + Duration::from_millis(100)).await;
        let mut has_the_history = stage.pool.begin().await.unwrap();
        sqlx::query("lock table bus.attempts in share mode").execute(&mut *has_the_history).await.unwrap();
        let going_on = async {
            so_many_wait(&stage.pool, 2).await;
            has_the_row.commit().await.unwrap();
            extended.notified().await;
            has_the_history.commit().await.unwrap();
        };
        tokio::join!(bus.reclaim(500), going_on).0.unwrap()
    };
    let (kept, taken_back) = tokio::join!(extending, taking_back);
    assert_eq!(kept, [last.id], "it began in time");
    let still_owned = bus.complete(&last, "w", &Completion::default()).await.unwrap();
    assert!(still_owned, "it was extended before it was taken back");
    assert_eq!(taken_back, u64::from(CLAIM) - 1);
    let again = claim(&bus, "v", CLAIM, LEASE).await;
    assert_eq!(again.len() as u64, taken_back);
    for message in again {
        assert!(bus.complete(&message.fence(), "v", &Completion::default()).await.unwrap());
    }
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_waits_for_a_sender_whose_id_is_old() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    // a day of the past with a part of its own, as every day gets one when it begins
    let is_partitioned: bool = sqlx::query_scalar("select to_regprocedure('bus.first_id(timestamptz)') is not null")
        .fetch_one(&stage.pool)
        .await
        .unwrap();
    if is_partitioned {
        sqlx::raw_sql(
            "do $$ begin execute format(
               'create table bus.messages_20200101 partition of public.agent_messages for values from (%L) to (%L)',
               bus.first_id('2020-01-01 00:00Z'), bus.first_id('2020-01-02 00:00Z')); end $$",
        )
        .execute(&stage.pool)
        .await
        .unwrap();
    }
    let old = |random| uuid::Builder::from_unix_timestamp_millis(1_577_880_000_000, &[random; 10]).into_uuid();
    let sent = |id| NewMessage { id: Some(id), ..message(serde_json::json!({"act": "plain"})) };
    bus.enqueue_many(&[sent(old(1))]).await.unwrap();
    let first = claim(&bus, "w", 1, LEASE).await;
    assert!(bus.complete(&first[0].fence(), "w", &Completion::default()).await.unwrap());

    let late = [sent(old(2))];
    let number = bus.journal().invoked(cogo_bus_check::enqueue(&late));
    let mut transaction = stage.pool.begin().await.unwrap();
    let accepted = cogo_bus_core::Bus::enqueue_many_in(&mut transaction, &late).await.unwrap();
    let commit_when_blocked = async {
        tokio::select! {
            () = somebody_waits(&stage.pool) => {}
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        transaction.commit().await.unwrap();
        bus.journal().returned(number, Outcome::Ok(cogo_bus_check::enqueued(&accepted)));
    };
    let (removed, ()) = tokio::join!(bus.retain(Duration::ZERO, 100), commit_when_blocked);
    assert!(removed.is_ok());
    stage.workers(1).await;
    let report = stage.verdict().await;
    assert!(report.violations.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn message_that_another_transaction_has_locked_holds_up_no_others() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w").with_patience(Duration::from_secs(20));
    let sent = bus.enqueue_many(&plain(10)).await.unwrap();
    // as one does that sends a message which awaits it, and is stuck before its commit
    let mut stuck = stage.pool.begin().await.unwrap();
    sqlx::query("select from public.agent_messages where id = $1 for share")
        .bind(sent[4].id)
        .execute(&mut *stuck)
        .await
        .unwrap();
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 10, lease: LEASE };
    let claimed = bus.claim(&request).await;
    stuck.rollback().await.unwrap();
    let claimed = claimed.expect("a claim waits for the transaction of a stranger");
    assert!(claimed.len() >= 9, "{} of 10", claimed.len());
    for message in claimed {
        assert!(bus.complete(&message.fence(), "w", &Completion::default()).await.unwrap());
    }
    stage.workers(1).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transaction_of_one_message_keeps_no_other_of_its_claim_from_ending() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w").with_patience(Duration::from_secs(20));
    bus.enqueue_many(&plain(4)).await.unwrap();
    let claimed = claim(&bus, "w", 4, LEASE).await;
    let fences: Vec<Fence> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
    let completion = Completion::default();
    let number = bus.journal().invoked(cogo_bus_check::completing("w", [(&fences[0], &completion)]));
    // a handler whose own writes take their time
    let mut slow = stage.pool.begin().await.unwrap();
    assert!(cogo_bus_core::Bus::complete_in(&mut slow, &fences[0], "w", &completion).await.unwrap());
    let kept = bus.extend(&fences[1..2], "w", LEASE).await;
    let recorded = bus.complete(&fences[2], "w", &completion).await;
    slow.commit().await.unwrap();
    bus.journal().returned(number, Outcome::Ok(cogo_bus_check::still(fences[0].id, true)));
    assert_eq!(kept.expect("a heartbeat waits for the transaction of another message").len(), 1);
    assert!(recorded.expect("a completion waits for the transaction of another message"));
    for fence in [&fences[1], &fences[3]] {
        assert!(bus.complete(fence, "w", &completion).await.unwrap());
    }
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_that_had_to_wait_starts_nothing_whose_time_has_passed() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    let expiring = NewMessage { ttl_ms: Some(60_000), ..message(serde_json::json!({"act": "plain"})) };
    bus.enqueue_many(&[expiring]).await.unwrap();
    // it may look at what is ready and take it, and waits before it can say whose that is
    let mut stuck = stage.pool.begin().await.unwrap();
    sqlx::query("lock table bus.claims in share mode").execute(&mut *stuck).await.unwrap();
    let is_let_go = AtomicBool::new(false);
    let claiming = async {
        let claimed = claim(&bus, "w", 1, LEASE).await;
        assert!(is_let_go.load(Ordering::SeqCst), "the claim waited for nothing");
        claimed
    };
    let let_go_late = async {
        so_many_wait(&stage.pool, 1).await;
        // a time to live that is short by itself could pass before the claim of a busy machine begins
        sqlx::query(
            "with over as (update bus.expiring set at = clock_timestamp() returning id)
             update public.agent_messages m set expires_at = clock_timestamp() from over where m.id = over.id",
        )
        .execute(&stage.pool)
        .await
        .unwrap();
        is_let_go.store(true, Ordering::SeqCst);
        stuck.rollback().await.unwrap();
    };
    let (claimed, ()) = tokio::join!(claiming, let_go_late);
    assert_eq!(claimed, [], "its time passed while the claim waited");
    stage.keepers(1).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_and_batches_of_several_groups_do_not_wait_for_each_other() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    let of_groups = |names: &[&str]| -> Vec<NewMessage> {
        let grouped = names.iter().map(|name| NewMessage {
            group_key: Some((*name).to_owned()),
            ..message(serde_json::json!({"act": "plain"}))
        });
        grouped.collect()
    };
    for _ in 0..15 {
        // ids in one order, groups in every order
        for names in [["a", "b", "c"], ["c", "b", "a"], ["b", "a", "c"], ["c", "a", "b"]] {
            bus.enqueue_many(&of_groups(&names)).await.unwrap();
        }
        loop {
            let claimed = claim(&bus, "w", 20, LEASE).await;
            if claimed.is_empty() {
                break;
            }
            let ended: Vec<_> = claimed.iter().map(|one| (one.fence(), Completion::default())).collect();
            let more = of_groups(&["a", "b", "c"]);
            let sending = async { if claimed.len() > 2 { bus.enqueue_many(&more).await.map(|_| ()) } else { Ok(()) } };
            let (recorded, sent) = tokio::join!(bus.complete_many(&ended, "w"), sending);
            assert_eq!(recorded.expect("no deadlock").len(), ended.len());
            sent.expect("no deadlock");
            let left: i64 =
                sqlx::query_scalar("select count(*) from public.agent_messages").fetch_one(&stage.pool).await.unwrap();
            if left > 1_500 {
                break;
            }
        }
    }
    stage.workers(1).await;
    stage.holds().await;
}

/// Messages whose claim does not mark them, since it is of many.
#[tokio::test(flavor = "multi_thread")]
async fn large_claims_are_fenced_like_small_ones() {
    let mut stage = Stage::new().await;
    let bus = stage.local("large");
    bus.enqueue_many(&plain(300)).await.unwrap();
    let claimed = claim(&bus, "w", 200, Duration::from_secs(15)).await;
    assert_eq!(claimed.len(), 200);
    let fences: Vec<Fence> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
    let ends = |fences: &[Fence]| fences.iter().map(|fence| (fence.clone(), Completion::default())).collect::<Vec<_>>();
    let others: Vec<Fence> = fences.iter().map(|fence| Fence { attempt: 2, ..fence.clone() }).collect();
    assert!(bus.complete_many(&ends(&others), "w").await.unwrap().is_empty(), "of another attempt");
    assert!(bus.complete_many(&ends(&fences), "v").await.unwrap().is_empty(), "of another holder");
    assert_eq!(bus.complete_many(&ends(&fences[..50]), "w").await.unwrap().len(), 50);
    assert_eq!(bus.release(&fences[50..60], "w").await.unwrap(), 10);
    assert_eq!(bus.extend(&fences[60..70], "w", LEASE).await.unwrap().len(), 10);
    assert_eq!(bus.cancel(fences[70].id).await.unwrap(), 1);
    reclaim_all(&bus, 129).await;
    assert!(bus.complete_many(&ends(&fences[70..]), "w").await.unwrap().is_empty(), "after the lease");
    assert_eq!(bus.complete_many(&ends(&fences[60..70]), "w").await.unwrap().len(), 10, "extended");
    stage.workers(2).await;
    stage.holds().await;
}

async fn reclaim_all(bus: &RecordedBus, expected: u64) {
    let mut reclaimed = 0;
    while reclaimed < expected {
        reclaimed += bus.reclaim(40).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((reclaimed, bus.reclaim(40).await.unwrap()), (expected, 0));
}
