//! One owner for each slot.

use std::collections::BTreeSet;

use cogo_registry_core::{Error, Registry};
use cogo_test_support::database;
use tokio::task::JoinSet;

use super::fleet::{active, claimed_by, events, registration, state, status};

#[tokio::test]
async fn taking_over_requeues_the_work_in_the_same_transaction() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let old = active(&registry, "rag-embed", 0).await;
    let message = claimed_by(&database.pool, &old.holder).await;
    let successor = registration("rag-embed", 0);

    let mut transaction = database.pool.begin().await.unwrap();
    let epoch: i64 =
        sqlx::query_scalar("select r.epoch from registry.register($1, 'rag', 'rag-embed', 0, '2.0.0') as r")
            .bind(successor.id().instance_id)
            .fetch_one(&mut *transaction)
            .await
            .unwrap();
    assert_eq!(epoch, 2);
    assert_eq!(state(&database.pool, &old).await, "active", "nothing is visible before the commit");
    assert_eq!(status(&database.pool, message).await, "claimed");
    transaction.commit().await.unwrap();

    assert_eq!(state(&database.pool, &old).await, "terminated");
    assert_eq!(status(&database.pool, message).await, "queued");
    let expected = ["agent_registered", "agent_active", "agent_superseded", "agent_registered"];
    assert_eq!(events(&database.pool).await, expected);
    assert!(matches!(registry.beat(&old, 1, 1).await, Err(Error::Ended { .. })));
    let completed: bool = sqlx::query_scalar("select bus.complete($1, $2, 1::smallint)")
        .bind(message)
        .bind(&old.holder)
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert!(!completed, "a completion by the old owner is refused");
}

#[tokio::test]
async fn many_that_register_at_once_leave_one_owner() {
    let database = database().await;
    let mut racers = JoinSet::new();
    for _ in 0..8 {
        let registry = Registry::new(database.pool.clone());
        racers.spawn(async move { registry.register(&registration("rag-embed", 0)).await.unwrap().epoch });
    }
    let epochs: BTreeSet<i64> = racers.join_all().await.into_iter().collect();
    assert_eq!(epochs, (1..=8).collect());
    let living = Registry::new(database.pool.clone()).list().await.unwrap();
    assert_eq!(living.len(), 1);
    assert_eq!(living[0].epoch, 8, "the last one owns it");
}

#[tokio::test]
async fn a_second_living_owner_is_impossible_even_by_hand() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    registry.register(&registration("rag-embed", 0)).await.unwrap();
    let by_hand = sqlx::query(
        "insert into registry.agents (instance_id, domain, name, slot, epoch, version)
         values (gen_random_uuid(), 'rag', 'rag-embed', 0, 9, '1.0.0')",
    )
    .execute(&database.pool)
    .await;
    assert!(by_hand.is_err());
}

#[tokio::test]
async fn one_that_lost_its_place_never_takes_it_from_another() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let old = active(&registry, "rag-embed", 0).await;
    let other = active(&registry, "rag-embed", 0).await;
    let again = registration("rag-embed", 0);
    let refused = registry.rejoin(&again, old.instance_id).await;
    assert!(matches!(refused, Err(Error::Occupied { by }) if by == other.holder));
    assert_eq!(state(&database.pool, &other).await, "active");

    registry.deregister(other.instance_id, "stopped").await.unwrap();
    let joined = registry.rejoin(&again, old.instance_id).await.unwrap();
    assert_eq!(joined.epoch, 3);
}

#[tokio::test]
async fn slots_and_names_do_not_disturb_each_other() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    for (name, slot) in [("rag-embed", 0), ("rag-embed", 1), ("kg-builder", 0)] {
        assert_eq!(active(&registry, name, slot).await.epoch, 1);
    }
    assert_eq!(registry.list().await.unwrap().len(), 3);
}
