//! Many at once: claimers on few messages, reclaimers on the same leases, retention beside the work.

use std::time::Duration;

use cogo_bus_check::{KeeperSettings, Role, Start};
use cogo_bus_core::Completion;
use futures_util::future::join_all;

use crate::support::{SHORT_LEASE, Stage, claim, plain};

const HERD: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn thundering_herd_gets_each_message_once() {
    let mut stage = Stage::new().await;
    let bus = stage.local("herd");
    for _ in 0..5 {
        bus.enqueue_many(&plain(30)).await.unwrap();
        let taken = join_all((0..HERD).map(|number| {
            let bus = bus.clone();
            async move {
                let holder = format!("herd-{number}");
                let claimed = claim(&bus, &holder, 3, Duration::from_secs(30)).await;
                for message in &claimed {
                    assert!(bus.complete(&message.fence(), &holder, &Completion::default()).await.unwrap());
                }
                claimed.len()
            }
        }))
        .await;
        assert_eq!(taken.iter().sum::<usize>(), 30, "a herd of {HERD} takes everything at once: {taken:?}");
    }
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reclaimers_at_once_give_each_lease_back_once() {
    let mut stage = Stage::new().await;
    let bus = stage.local("reclaimers");
    bus.enqueue_many(&plain(120)).await.unwrap();
    for number in 0..12 {
        claim(&bus, &format!("gone-{number}"), 10, SHORT_LEASE).await;
    }
    tokio::time::sleep(SHORT_LEASE).await;
    let reclaimed = join_all((0..6).map(|_| {
        let bus = bus.clone();
        async move {
            let mut mine = 0;
            loop {
                match bus.reclaim(7).await.unwrap() {
                    0 => return mine,
                    some => mine += some,
                }
            }
        }
    }))
    .await;
    assert_eq!(reclaimed.iter().sum::<u64>(), 120, "{reclaimed:?}");
    stage.workers(2).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_during_load_removes_finished_tasks_only() {
    let mut stage = Stage::new().await;
    for keep_ms in [0, 50] {
        let sweeper = KeeperSettings { every_ms: 10, replays: 2, keep_ms: Some(keep_ms) };
        stage.start(Start::new(Role::Keeper(sweeper))).await;
    }
    stage.workers(2).await;
    stage.produce(400).await;
    stage.all_ended().await;
    // something that is there at the end, so that the verdict is not about an empty table
    let bus = stage.local("last");
    stage.scene.stop().await.unwrap();
    bus.enqueue_many(&plain(3)).await.unwrap();
    for message in claim(&bus, "last", 3, Duration::from_secs(60)).await {
        bus.complete(&message.fence(), "last", &Completion::default()).await.unwrap();
    }
    let report = stage.holds().await;
    assert!(report.messages < 400, "retention did nothing");
    assert!(report.not_applicable.iter().all(|(invariant, _)| *invariant != cogo_bus_check::Invariant::I9));
}
