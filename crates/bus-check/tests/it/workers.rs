//! Workers that are killed or stopped at each step of their work.

use std::{collections::HashMap, time::Duration};

use cogo_bus_check::{Answer, Call, Fault, Held, How, Operation, Point, ProducerSettings, Role, Start};
use rustix::process::Signal;
use uuid::Uuid;

use crate::support::{LEASE, Stage, batch_worker, batch_worker_for, kill_at, worker};

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
    // it may keep what it holds, those of its group and what awaits these, and nothing else
    let others_ended = async {
        loop {
            let left: i64 = sqlx::query_scalar(
                "select count(*) from public.agent_messages
                  where done_at is null and group_key is null and not awaiting and claimed_by is distinct from $1",
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

/// The first batch that a worker was handed: who was in it, and when it asked for it.
fn first_batch<'a>(history: &'a [Call], worker: &str) -> (Vec<Held>, &'a Call) {
    let batch = history.iter().find_map(|call| match call.answer() {
        Some(Answer::Taken(taken)) if call.process == worker && !taken.is_empty() => {
            Some((taken.iter().map(|taken| taken.held).collect(), call))
        }
        _ => None,
    });
    batch.expect("it was handed a batch")
}

/// Who completed each message, in which attempt.
async fn completed_by(stage: &Stage) -> HashMap<Uuid, (String, i16)> {
    let rows: Vec<(Uuid, String, i16)> =
        sqlx::query_as("select id, claimed_by, attempts from public.agent_messages where status = 'done'")
            .fetch_all(&stage.pool)
            .await
            .unwrap();
    rows.into_iter().map(|(id, holder, attempt)| (id, (holder, attempt))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_in_the_hands_of_a_killed_worker_runs_again_as_a_whole_after_its_lease() {
    const BATCH: u16 = 50;
    // nothing that lives outlasts it, however busy the machine is: what runs again is of the dead
    const LEASE: Duration = Duration::from_secs(6);
    let mut stage = Stage::new().await;
    stage.keepers(1).await;
    let plain = ProducerSettings { messages: 400, batch: 40, plain: true, pause_ms: 0 };
    let producer = stage.start(Start::new(Role::Producer(plain))).await;
    stage.scene.ended(&producer).await.unwrap();
    let mut victims = Vec::new();
    for point in [Point::Working, Point::Completing, Point::Completed] {
        let victim = stage.start(Start::new(batch_worker_for(BATCH, LEASE)).with_fault(kill_at(point, 1))).await;
        stage.scene.ended(&victim).await.unwrap();
        victims.push(victim);
    }
    assert_eq!(stage.scene.deaths().len(), victims.len());
    for _ in 0..2 {
        stage.start(Start::new(batch_worker_for(BATCH, LEASE))).await;
    }
    stage.holds().await;
    let history = stage.scene.history().unwrap();
    let completed = completed_by(&stage).await;
    let by_the_dead = |victim: &str| {
        let (batch, _) = first_batch(&history, victim);
        assert_eq!(batch.len(), usize::from(BATCH), "{victim}");
        batch.iter().filter(|held| completed[&held.id] == (victim.to_owned(), 1)).count()
    };
    // amid the work: nothing of it counts, and all of it runs again, none of it before the lease has passed
    assert_eq!(by_the_dead(&victims[0]), 0);
    let (batch, claim) = first_batch(&history, &victims[0]);
    let lease_us = i64::try_from(LEASE.as_micros()).unwrap();
    for held in &batch {
        let next = Held { attempt: 2, ..*held };
        let again = history.iter().find(
            |call| matches!(call.answer(), Some(Answer::Taken(taken)) if taken.iter().any(|taken| taken.held == next)),
        );
        let again = again.expect("it runs again");
        assert!(again.process != victims[0]);
        assert!(again.returned_us.unwrap() >= claim.invoked_us + lease_us, "before its lease had passed");
    }
    // while the completions were under way: all of them count or none
    let during = by_the_dead(&victims[1]);
    assert!(during == 0 || during == usize::from(BATCH), "{during} of a batch were completed");
    assert_eq!(by_the_dead(&victims[2]), usize::from(BATCH), "what was acknowledged stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_which_some_fail_break_no_promise_when_their_workers_are_killed() {
    let mut stage = Stage::new().await;
    stage.keepers(2).await;
    let mut victims = Vec::new();
    for (point, nth) in [(Point::Failing, 1), (Point::Failing, 2), (Point::Working, 2), (Point::Completing, 2)] {
        victims.push(stage.start(Start::new(batch_worker(20)).with_fault(kill_at(point, nth))).await);
    }
    stage.produce(500).await;
    for victim in &victims {
        stage.scene.ended(victim).await.unwrap();
    }
    assert_eq!(stage.scene.deaths().len(), victims.len());
    for batch in [8, 150] {
        stage.start(Start::new(batch_worker(batch))).await;
    }
    stage.holds().await;
    let failures = stage.scene.history().unwrap().iter().filter(|call| is_settled_failure(call)).count();
    assert!(failures > 0, "nothing failed in a batch");
}

fn is_settled_failure(call: &Call) -> bool {
    matches!(call.operation, Operation::Fail { .. }) && matches!(call.answer(), Some(Answer::Settled(Some(_))))
}
