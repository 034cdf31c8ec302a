//! Deadlocks and serialization failures of the callers' own transactions: one side fails as a whole and asks again.

use std::time::Duration;

use cogo_bus_check::{Outcome, RecordedBus, completing, enqueue, enqueued, still};
use cogo_bus_core::{Bus, Completion, Fence};
use cogo_contracts::NewMessage;
use futures_util::future::join_all;
use sqlx::PgPool;
use tokio::sync::Barrier;
use uuid::Uuid;

use crate::support::{Stage, claim, plain};

const LEASE: Duration = Duration::from_secs(60);

/// Completes in the given order within one transaction; false if the database broke it off.
async fn complete_in_order(bus: &RecordedBus, pool: &PgPool, fences: [&Fence; 2], between: Option<&Barrier>) -> bool {
    let completion = Completion::default();
    let numbers = fences.map(|fence| bus.journal().invoked(completing("w", [(fence, &completion)])));
    let within = async {
        let mut transaction = pool.begin().await?;
        let mut recorded = Vec::new();
        for (position, fence) in fences.into_iter().enumerate() {
            recorded.push(Bus::complete_in(&mut transaction, fence, "w", &completion).await?);
            if let Some(barrier) = between.filter(|_| position == 0) {
                tokio::time::timeout(LEASE, barrier.wait())
                    .await
                    .expect("two messages have nothing to do with each other");
            }
        }
        transaction.commit().await?;
        Ok::<_, cogo_bus_core::Error>(recorded)
    };
    let told = within.await;
    for (position, number) in numbers.into_iter().enumerate() {
        bus.journal().returned(
            number,
            match &told {
                Ok(recorded) => Outcome::Ok(still(fences[position].id, recorded[position])),
                Err(error) => Outcome::Failed(error.to_string()),
            },
        );
    }
    told.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlock_of_two_transactions_costs_one_of_them_and_no_message() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    bus.enqueue_many(&plain(2)).await.unwrap();
    // each in a claim of its own, so that nothing but the messages is shared
    let (one, other) = (claim(&bus, "w", 1, LEASE).await[0].fence(), claim(&bus, "w", 1, LEASE).await[0].fence());
    let both_hold_one = Barrier::new(2);
    let (forth, back) = tokio::join!(
        complete_in_order(&bus, &stage.pool, [&one, &other], Some(&both_hold_one)),
        complete_in_order(&bus, &stage.pool, [&other, &one], Some(&both_hold_one)),
    );
    assert!(forth != back, "exactly one is the victim");
    // the victim asks again and is told that it is done
    assert!(complete_in_order(&bus, &stage.pool, [&one, &other], None).await);
    stage.holds().await;
}

/// Who reads by one snapshot and meets what was changed since.
const SERIALIZATION_FAILURE: &str = "40001";

fn code(error: &cogo_bus_core::Error) -> Option<String> {
    let cogo_bus_core::Error::Database(cause) = error else { return None };
    Some(cause.as_database_error()?.code()?.into_owned())
}

/// What comes between the snapshot of a transaction and its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Extension,
    Completion,
    Cancel,
}

/// Completes by a snapshot from before the other call, in a transaction that has sent something by then; answers the SQLSTATE
/// by which that failed, if it did.
async fn complete_after(between: Between, isolation: &'static str, bus: &RecordedBus, pool: &PgPool) -> Option<String> {
    let root = bus.enqueue_many(&plain(1)).await.unwrap()[0].id;
    let fence = claim(bus, "w", 1, LEASE).await[0].fence();
    let mut transaction = pool.begin_with(isolation).await.unwrap();
    let sent = [NewMessage { id: Some(Uuid::now_v7()), ..plain(1).remove(0) }];
    let sending = bus.journal().invoked(enqueue(&sent));
    let accepted = Bus::enqueue_many_in(&mut transaction, &sent).await.unwrap();
    let completion = Completion::default();
    let still_owned = match between {
        Between::Extension => bus.extend(std::slice::from_ref(&fence), "w", LEASE).await.unwrap() == [fence.id],
        Between::Completion => !bus.complete(&fence, "w", &completion).await.unwrap(),
        Between::Cancel => bus.cancel(root).await.unwrap() == 0,
    };
    assert_eq!(still_owned, between == Between::Extension);
    let completing = bus.journal().invoked(completing("w", [(&fence, &completion)]));
    match Bus::complete_in(&mut transaction, &fence, "w", &completion).await {
        Err(error) => {
            transaction.rollback().await.unwrap();
            for number in [sending, completing] {
                bus.journal().returned(number, Outcome::Failed(error.to_string()));
            }
            assert_eq!(bus.complete(&fence, "w", &completion).await.unwrap(), still_owned, "{between:?}");
            code(&error)
        }
        Ok(recorded) => {
            assert_eq!(recorded, still_owned, "{between:?}");
            transaction.commit().await.unwrap();
            bus.journal().returned(sending, Outcome::Ok(enqueued(&accepted)));
            bus.journal().returned(completing, Outcome::Ok(still(fence.id, recorded)));
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serialization_failure_leaves_nothing_half_done() {
    let mut stage = Stage::new().await;
    let bus = stage.local("w");
    for isolation in ["begin isolation level repeatable read", "begin isolation level serializable"] {
        // a layout may keep an extension apart from its message
        complete_after(Between::Extension, isolation, &bus, &stage.pool).await;
        for between in [Between::Completion, Between::Cancel] {
            let failed_as = complete_after(between, isolation, &bus, &stage.pool).await;
            assert_eq!(failed_as.as_deref(), Some(SERIALIZATION_FAILURE), "{isolation}, {between:?}");
        }
    }
    stage.workers(1).await;
    stage.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_over_the_same_groups_in_any_order_all_get_through() {
    let mut stage = Stage::new().await;
    let bus = stage.local("groups");
    stage.keepers(1).await;
    stage.workers(2).await;
    let senders = (0..4_usize).map(|sender| {
        let bus = bus.clone();
        async move {
            for round in 0..10_usize {
                let mut batch = plain(4);
                for (position, message) in batch.iter_mut().enumerate() {
                    message.group_key = Some(format!("g{}", (position * (sender + 1) + round) % 4));
                }
                // broken off by a deadlock, it is sent again
                while bus.enqueue_many(&batch).await.is_err() {}
            }
        }
    });
    join_all(senders).await;
    stage.holds().await;
}
