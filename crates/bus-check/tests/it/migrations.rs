//! Every migration applied under load, with workers of the first release, and after it those of this one beside them.

use std::time::Duration;

use cogo_bus_check::{Answer, Held, Journal, Operation, Outcome, ROUTE, RecordedBus, Taken, still};
use cogo_bus_core::{ClaimRequest, Claimed, Completion};
use cogo_contracts::NewMessage;
use cogo_db::MIGRATOR;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{Stage, message};

/// The first release of the bus and of the registry that it asks; nothing older can work.
const FIRST_RELEASE: i64 = 20_261_121_000_200;
const OLD_LEASE_MS: i64 = 800;
/// For what only this test may claim.
const INSTANCE: &str = "late";

/// A worker as the first release wrote it, statement by statement; these texts never change.
async fn old_worker(pool: PgPool, journal: Journal, most: i32, stop: CancellationToken) {
    const CLAIM: &str = "select id, attempt, max_attempts, tenant, payload::text as payload, headers::text as headers,
        root_id, parent_id, reply_to, waited_ms, remaining_ms from bus.claim($1, $2, $3, $4, $5, $6, $7)
        order by priority, created_at, id";
    while !stop.is_cancelled() {
        let asked = journal.invoked(Operation::Claim { holder: "old".to_owned(), lease_ms: OLD_LEASE_MS });
        let told = sqlx::query_as::<_, (Uuid, i16, i16, String)>(CLAIM)
            .bind("check")
            .bind("work")
            .bind(0_i32)
            .bind("old")
            .bind(most)
            .bind(OLD_LEASE_MS)
            .bind(None::<&str>)
            .fetch_all(&pool)
            .await;
        let Ok(claimed) = told else { continue };
        let taken = claimed.iter().map(|(id, attempt, _, tenant)| Taken {
            held: Held { id: *id, attempt: *attempt },
            tenant: tenant.clone(),
            remaining_ms: None,
            mark: None,
        });
        journal.returned(asked, Outcome::Ok(Answer::Taken(taken.collect())));
        for (id, attempt, _, _) in &claimed {
            old_completion(&pool, &journal, Held { id: *id, attempt: *attempt }).await;
        }
        if claimed.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn old_completion(pool: &PgPool, journal: &Journal, held: Held) {
    let ending = cogo_bus_check::Ending { held, result: None, follow_ups: 0 };
    let asked = journal.invoked(Operation::Complete { holder: "old".to_owned(), ended: vec![ending] });
    let told = sqlx::query_scalar::<_, bool>("select bus.complete($1, $2, $3, $4, $5, $6, $7)")
        .bind(held.id)
        .bind("old")
        .bind(held.attempt)
        .bind(None::<serde_json::Value>)
        .bind(None::<&str>)
        .bind(None::<&str>)
        .bind(serde_json::json!([]))
        .fetch_one(pool)
        .await;
    if let Ok(recorded) = told {
        journal.returned(asked, Outcome::Ok(still(held.id, recorded)));
    }
}

fn directed() -> NewMessage {
    NewMessage { target_instance: Some(INSTANCE.to_owned()), ..message(serde_json::json!({"act": "plain"})) }
}

async fn claim_directed(bus: &RecordedBus, max_messages: u16) -> Vec<Claimed> {
    // longer than all migrations take on a busy machine
    let lease = Duration::from_secs(3600);
    let request = ClaimRequest { route: &ROUTE, holder: "late", instance: Some(INSTANCE), max_messages, lease };
    let claimed = bus.claim(&request).await.unwrap();
    let (directed, others): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|one| one.payload["act"] == "directed");
    // those of everybody are not meant
    let others: Vec<_> = others.iter().map(Claimed::fence).collect();
    bus.release(&others, "late").await.unwrap();
    directed
}

/// Messages that nobody but this test may claim: held, ready, delayed, in a group, finished.
async fn messages_of_every_state(bus: &RecordedBus) -> Vec<Claimed> {
    let of = |message: NewMessage| NewMessage { payload: serde_json::json!({"act": "directed"}), ..message };
    bus.enqueue_many(&vec![NewMessage { priority: Some(0), ..of(directed()) }; 4]).await.unwrap();
    let mut held = Vec::new();
    // others claim on the same route, and what they look at in that moment is left out
    while held.len() < 4 {
        held.extend(claim_directed(bus, u16::try_from(4 - held.len()).unwrap()).await);
    }
    let done = held.pop().expect("four were sent for this instance");
    assert!(bus.complete(&done.fence(), "late", &Completion::default()).await.unwrap());
    let grouped = NewMessage { group_key: Some("late".to_owned()), ..of(directed()) };
    let delayed = NewMessage { delay_ms: Some(300), ..of(directed()) };
    bus.enqueue_many(&[of(directed()), of(directed()), delayed, grouped.clone(), grouped]).await.unwrap();
    held
}

/// What was held is completed by its holder, what waited is claimed.
async fn what_was_there_goes_on(bus: &RecordedBus, held: &[Claimed]) {
    for one in held {
        assert!(
            bus.complete(&one.fence(), "late", &Completion::default()).await.unwrap(),
            "a claim outlives a migration"
        );
    }
    let mut ended = 0;
    let waiting = async {
        while ended < 5 {
            for one in claim_directed(bus, 1).await {
                assert!(bus.complete(&one.fence(), "late", &Completion::default()).await.unwrap());
                ended += 1;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, waiting).await.expect("what waited is claimed after the migration");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_under_load_lose_nothing_for_old_and_new_workers() {
    let database = cogo_test_support::empty_database().await;
    MIGRATOR.run_to(FIRST_RELEASE, &database.pool).await.unwrap();
    let mut stage = Stage::on(database.pool.clone(), database.url.clone());
    let journal = stage.local("old").journal().clone();
    let stop = CancellationToken::new();
    let mut old = JoinSet::new();
    // claims of few and of many are kept differently by some layouts
    for most in [4, 4, 100] {
        old.spawn(old_worker(database.another_pool(), journal.clone(), most, stop.clone()));
    }
    stage.keepers(1).await;
    stage.produce(100).await;
    let sender = stage.local("sender");
    let load = CancellationToken::new();
    let ended = load.clone();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        while !ended.is_cancelled() {
            // refused or not, it is in the journal
            let _ = sender.enqueue_many(&crate::support::plain(5)).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let keeper_of_old = stage.local("keeper-of-old");
    let held = messages_of_every_state(&keeper_of_old).await;
    let later = MIGRATOR.iter().map(|migration| migration.version).filter(|version| *version > FIRST_RELEASE);
    for version in later.collect::<Vec<_>>() {
        tokio::time::sleep(Duration::from_millis(150)).await;
        MIGRATOR.run_to(version, &database.another_pool()).await.unwrap();
    }
    what_was_there_goes_on(&keeper_of_old, &held).await;
    // a process of this release does not start before
    stage.workers(2).await;
    stage.produce(100).await;
    load.cancel();
    sending.join_all().await;
    stage.scene.drained(&stage.pool, crate::support::PATIENCE).await;
    stop.cancel();
    old.join_all().await;
    stage.holds().await;
}
