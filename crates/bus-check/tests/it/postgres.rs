//! Postgres killed at each step, on a durable cluster of its own.

use std::time::Duration;

use cogo_bus_check::{Chance, Outcome, RecordedBus, enqueue, enqueued, still};
use cogo_bus_core::{Bus, Completion, Failure};
use cogo_test_support::{PrivateCluster, private_cluster};
use tokio::task::JoinSet;

use crate::support::{SHORT_LEASE, Stage, claim, plain, seed};

/// Longer than many crashes take on a busy machine.
const LEASE: Duration = Duration::from_secs(600);

fn stage_on(cluster: &PrivateCluster) -> Stage {
    Stage::on(cluster.pool.clone(), cluster.url.clone())
}

/// Kills the server and brings it back; connections of the pool are dead by then.
async fn crash(cluster: &PrivateCluster) {
    cluster.kill();
    cluster.heal().await;
    // those that the pool still holds are found to be dead at their next use; they must not be taken for the answer
    while sqlx::query("select 1").execute(&cluster.pool).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_between_any_two_steps_keeps_what_it_acknowledged() {
    let cluster = private_cluster().await;
    let mut stage = stage_on(&cluster);
    let bus = stage.local("steps");

    let sent = bus.enqueue_many(&plain(6)).await.unwrap();
    crash(&cluster).await;
    let claimed = claim(&bus, "w", 6, LEASE).await;
    assert_eq!(claimed.len(), sent.len(), "acknowledged messages are there after a crash");
    crash(&cluster).await;
    let fences: Vec<_> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
    assert_eq!(bus.extend(&fences, "w", LEASE).await.unwrap().len(), 6, "a lease outlives a crash");
    crash(&cluster).await;
    assert!(bus.complete(&fences[0], "w", &Completion::default()).await.unwrap());
    let failure = Failure { reason: "once".to_owned(), retriable: true, retry_after: Some(Duration::ZERO) };
    bus.fail(&fences[1], "w", &failure).await.unwrap().unwrap();
    assert_eq!(bus.release(&fences[2..3], "w").await.unwrap(), 1);
    crash(&cluster).await;
    assert!(!bus.complete(&fences[0], "w", &Completion::default()).await.unwrap(), "it was recorded before the crash");
    assert_eq!(claim(&bus, "v", 6, SHORT_LEASE).await.len(), 2, "failed and released ones come back");
    tokio::time::sleep(SHORT_LEASE).await;
    assert_eq!(bus.reclaim(10).await.unwrap(), 2);
    crash(&cluster).await;
    in_open_transactions(&cluster, &bus, &fences[3]).await;
    bus.release(&fences[3..], "w").await.unwrap();
    stage.workers(1).await;
    stage.holds().await;
}

/// What was not committed is not there: neither the message nor the completion.
async fn in_open_transactions(cluster: &PrivateCluster, bus: &RecordedBus, fence: &cogo_bus_core::Fence) {
    let messages = plain(2);
    let completion = Completion::default();
    let sending = bus.journal().invoked(enqueue(&messages));
    let completing = bus.journal().invoked(cogo_bus_check::completing("w", [(fence, &completion)]));
    let mut transaction = cluster.pool.begin().await.unwrap();
    let sent = Bus::enqueue_many_in(&mut transaction, &messages).await.unwrap();
    assert!(Bus::complete_in(&mut transaction, fence, "w", &completion).await.unwrap());
    crash(cluster).await;
    match transaction.commit().await {
        Ok(()) => {
            bus.journal().returned(sending, Outcome::Ok(enqueued(&sent)));
            bus.journal().returned(completing, Outcome::Ok(still(fence.id, true)));
        }
        Err(_) => {
            bus.journal().returned(sending, Outcome::Failed("killed before the commit".to_owned()));
            bus.journal().returned(completing, Outcome::Failed("killed before the commit".to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_while_everything_is_under_way_loses_nothing() {
    let cluster = private_cluster().await;
    let mut stage = stage_on(&cluster);
    let mut chance = Chance::new(seed());
    stage.keepers(2).await;
    stage.workers(2).await;
    let bus = stage.local("sender");
    let mut sending = JoinSet::new();
    let sender = bus.clone();
    sending.spawn(async move {
        for _ in 0..400 {
            // acknowledged or not, it is in the journal
            let _ = sender.enqueue_many(&plain(2)).await;
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200 + chance.below(400))).await;
        crash(&cluster).await;
    }
    stage.produce(60).await;
    sending.join_all().await;
    let report = stage.holds().await;
    assert!(report.unknown > 0, "no call was under way when Postgres was killed");
}
