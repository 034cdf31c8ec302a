//! Producers and reclaimers that are killed at each step.

use cogo_bus_check::{Point, Start};

use crate::support::{Stage, keeper, kill_at, producer, worker};

#[tokio::test(flavor = "multi_thread")]
async fn producer_killed_at_any_step_loses_nothing_that_was_acknowledged() {
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    stage.workers(2).await;
    let mut victims = Vec::new();
    for (point, nth) in [
        (Point::Enqueueing, 3),
        (Point::Enqueueing, 7),
        (Point::Enqueueing, 12),
        (Point::Enqueued, 4),
        (Point::InTransaction, 1),
        (Point::InTransaction, 3),
    ] {
        victims.push(stage.start(Start::new(producer(2_000)).with_fault(kill_at(point, nth))).await);
    }
    for victim in &victims {
        stage.scene.ended(victim).await.unwrap();
    }
    assert_eq!(stage.scene.deaths().len(), victims.len());
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reclaimer_killed_while_it_reclaims_loses_nothing() {
    let mut stage = Stage::new().await;
    for nth in [1, 2] {
        stage.start(Start::new(worker()).with_fault(kill_at(Point::Claimed, nth))).await;
    }
    stage.produce(100).await;
    let mut victims = Vec::new();
    for nth in [1, 3, 10, 25] {
        victims.push(stage.start(Start::new(keeper()).with_fault(kill_at(Point::Reclaiming, nth))).await);
    }
    for victim in &victims {
        stage.scene.ended(victim).await.unwrap();
    }
    stage.keepers(2).await;
    stage.workers(2).await;
    stage.holds().await;
}
