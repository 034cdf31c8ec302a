//! Agents that live in the process of another: found like any other, beating and ending with their carrier.

use cogo_registry_core::{Ended, Error, Heartbeat, Registry};
use cogo_test_support::database;
use tokio_util::sync::CancellationToken;

use super::{
    fleet::{active, claimed_by, registration, state, status},
    heartbeat::{PAUSE, fast, spawn},
};

#[tokio::test]
async fn they_end_with_their_carrier_and_their_work_is_queued_again() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let carrier = active(&registry, "rag-host", 0).await;
    let carried = registry.register(&registration("rag-embed", 0).carried_by(carrier.instance_id)).await.unwrap();
    registry.activate(carried.instance_id).await.unwrap();
    let message = claimed_by(&database.pool, &carried.holder).await;
    let beats: i64 = sqlx::query_scalar("select count(*) from registry.beats").fetch_one(&database.pool).await.unwrap();
    assert_eq!(beats, 1, "one beat for each process");

    assert_eq!(registry.deregister(carrier.instance_id, "stopped").await.unwrap(), Some(1));
    assert_eq!(state(&database.pool, &carried).await, "terminated");
    assert_eq!(status(&database.pool, message).await, "queued");
    let reason = &registry.log(0, 100).await.unwrap().into_iter().rev().nth(1).unwrap();
    assert_eq!(
        (reason.instance_id, reason.reason.as_deref()),
        (carried.instance_id, Some("carrier ended: stopped")),
        "the carried one ends first"
    );
}

#[tokio::test]
async fn they_claim_only_while_their_carrier_is_active() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let carrier = active(&registry, "rag-host", 0).await;
    let carried = registry.register(&registration("rag-embed", 0).carried_by(carrier.instance_id)).await.unwrap();
    registry.activate(carried.instance_id).await.unwrap();
    let may = async || -> bool {
        sqlx::query_scalar("select registry.may_claim($1)")
            .bind(&carried.holder)
            .fetch_one(&database.pool)
            .await
            .unwrap()
    };
    assert!(may().await);
    registry.suspend(carrier.instance_id).await.unwrap();
    assert!(!may().await);
    registry.resume(carrier.instance_id).await.unwrap();
    assert!(may().await);
    registry.suspend(carried.instance_id).await.unwrap();
    assert!(!may().await);
}

#[tokio::test]
async fn a_carrier_must_be_a_living_process() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let carrier = active(&registry, "rag-host", 0).await;
    let carried = registry.register(&registration("rag-embed", 0).carried_by(carrier.instance_id)).await.unwrap();
    let on_carried = registry.register(&registration("rag-embed", 1).carried_by(carried.instance_id)).await;
    assert!(matches!(on_carried, Err(Error::CarrierGone { .. })), "{on_carried:?}");
    let own_slot = registry.register(&registration("rag-host", 0).carried_by(carrier.instance_id)).await;
    assert!(own_slot.is_err(), "it would end its own carrier");
    registry.deregister(carrier.instance_id, "stopped").await.unwrap();
    let on_ended = registry.register(&registration("rag-embed", 1).carried_by(carrier.instance_id)).await;
    assert!(matches!(on_ended, Err(Error::CarrierGone { .. })), "{on_ended:?}");
}

#[tokio::test]
async fn the_heartbeat_takes_them_along_and_back() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let carrier =
        registration("rag-host", 0).carrying(registration("rag-embed", 0)).carrying(registration("rag-embed", 1));
    let (heartbeat, member) = Heartbeat::new(&registry, carrier, fast());
    member.activate();
    member.vitals().set_carried_in_flight("rag-embed/1", 4);
    let token = CancellationToken::new();
    let task = spawn(heartbeat.run(token.clone()));
    let mut standing = member.standing();
    let first = standing.wait_for(|now| now.claiming().is_some()).await.unwrap().claiming().cloned().unwrap();
    let living = registry.list().await.unwrap();
    let said: Vec<_> = living.iter().map(|agent| (agent.id.instance(), agent.state.as_str())).collect();
    let expected = [("rag-embed/0", "active"), ("rag-embed/1", "active"), ("rag-host/0", "active")];
    assert_eq!(said, expected.map(|(instance, state)| (instance.to_owned(), state)));
    let told = "select count(*) from registry.beats b where b.carried = '{\"rag-embed/1\": 4}'";
    while sqlx::query_scalar::<_, i64>(told).fetch_one(&database.pool).await.unwrap() == 0 {
        tokio::time::sleep(PAUSE).await;
    }
    let living = registry.list().await.unwrap();
    let said: Vec<_> = living.iter().map(|agent| (agent.in_flight, agent.beat_age_ms.is_some())).collect();
    assert_eq!(said, [(0, true), (4, true), (0, true)], "each has its own work and the beat of the process");

    registry.deregister(first.instance_id, "dead").await.unwrap();
    standing.wait_for(|now| now.claiming().is_some_and(|now| now.holder != first.holder)).await.unwrap();
    let living = registry.list().await.unwrap();
    assert!(living.iter().all(|agent| agent.epoch == 2), "{living:?}");
    assert_eq!(living.len(), 3, "they came back with it");
    token.cancel();
    assert_eq!(task.await.unwrap(), Ended::Left);
    assert!(registry.list().await.unwrap().is_empty());
}
