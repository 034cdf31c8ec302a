//! Workers that are killed or stopped at each step of their work.

use cogo_bus_check::{Answer, Call, Fault, How, Operation, Point, Start};
use rustix::process::Signal;

use crate::support::{LEASE, Stage, kill_at, worker};

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_at_any_step_costs_nothing() {
    let mut stage = Stage::new().await;
    stage.keepers(2).await;
    let points = [
        Point::Claiming,
        Point::Claimed,
        Point::Extending,
        Point::Completing,
        Point::Completed,
        Point::Failing,
        Point::Releasing,
        Point::InTransaction,
    ];
    let mut victims = Vec::new();
    for (nth, point) in (1..).zip(points) {
        let victim = Start::new(worker()).with_fault(kill_at(point, 1 + nth % 2));
        victims.push(stage.start(victim).await);
    }
    stage.produce(700).await;
    // each has died at its step before anybody healthy takes part
    for victim in &victims {
        stage.scene.ended(victim).await.unwrap();
    }
    assert_eq!(stage.scene.deaths().len(), points.len());
    stage.workers(2).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_stopped_past_its_lease_is_refused_when_it_comes_back() {
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    let fault = Fault { point: Point::Claimed, nth: 2, how: How::Stop };
    let sleeper = stage.start(Start::new(worker()).with_fault(fault)).await;
    stage.produce(100).await;
    stage.scene.stopped(&sleeper).await.unwrap();
    stage.workers(2).await;
    // what it holds runs elsewhere, after its lease
    assert!(stage.scene.drained(&stage.pool, crate::support::PATIENCE).await.is_some());
    stage.scene.signal(&sleeper, Signal::CONT).unwrap();
    stage.holds().await;
    let history = stage.scene.history().unwrap();
    let was_refused = |call: &Call| {
        let asks =
            matches!(&call.operation, Operation::Complete { .. } | Operation::Fail { .. } | Operation::Extend { .. });
        let nothing = matches!(call.answer(), Some(Answer::Still(still)) if still.is_empty())
            || call.answer() == Some(&Answer::Settled(None));
        call.process == sleeper && asks && nothing
    };
    assert!(history.iter().any(was_refused), "the fence was not tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_stopped_within_its_transaction_blocks_nobody_elses_messages() {
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    let fault = Fault { point: Point::InTransaction, nth: 1, how: How::Stop };
    let sleeper = stage.start(Start::new(worker()).with_fault(fault)).await;
    stage.produce(200).await;
    stage.scene.stopped(&sleeper).await.unwrap();
    stage.workers(2).await;
    // it may keep what it holds, and those of its group, and nothing else
    let others_ended = async {
        loop {
            let left: i64 = sqlx::query_scalar(
                "select count(*) from public.agent_messages
                  where done_at is null and group_key is null and claimed_by is distinct from $1",
            )
            .bind(&sleeper)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
            if left == 0 {
                return;
            }
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, others_ended).await.expect("one transaction holds up everything");
    stage.scene.signal(&sleeper, Signal::CONT).unwrap();
    stage.holds().await;
}
