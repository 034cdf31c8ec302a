//! What a run that was superseded, or declared dead, can still do to the database: nothing.

use cogo_registry_core::{Error, Membership, Registry};
use cogo_test_support::{TestDatabase, database};
use uuid::Uuid;

use super::fleet::{active, claimed_by, status};

/// An owner with a message in hand, and the successor that took its slot.
async fn superseded(database: &TestDatabase) -> (Registry, Membership, Uuid) {
    let registry = Registry::new(database.pool.clone());
    let old = active(&registry, "rag-embed", 0).await;
    let message = claimed_by(&database.pool, &old.holder).await;
    let new = active(&registry, "rag-embed", 0).await;
    assert_eq!((old.epoch, new.epoch), (1, 2));
    (registry, old, message)
}

#[tokio::test]
async fn its_beat_is_refused() {
    let database = database().await;
    let (registry, old, _) = superseded(&database).await;
    assert!(matches!(registry.beat(&old, 1, 0).await, Err(Error::Ended { .. })));
    let wrong_epoch = Membership { epoch: 2, ..old };
    assert!(matches!(registry.beat(&wrong_epoch, 2, 0).await, Err(Error::Ended { .. })), "an epoch cannot be borrowed");
}

#[tokio::test]
async fn its_claim_is_refused() {
    let database = database().await;
    let (_, old, message) = superseded(&database).await;
    let claim = sqlx::query("select c.id from bus.claim('rag', 'embed', 0, $1) as c")
        .bind(&old.holder)
        .execute(&database.pool)
        .await;
    let refused = claim.unwrap_err();
    assert!(refused.to_string().contains("is not active in the registry"), "{refused}");
    assert_eq!(status(&database.pool, message).await, "queued", "the successor can have it");
}

#[tokio::test]
async fn its_extension_completion_failure_and_release_are_refused() {
    let database = database().await;
    let (_, old, message) = superseded(&database).await;
    for statement in [
        "select count(*) > 0 from bus.extend(array[$1], array[1::smallint], $2, 30000) as e",
        "select bus.complete($1, $2, 1::smallint)",
        "select bus.fail($1, $2, 1::smallint, 'too late') is not null",
        "select bus.release(array[$1], array[1::smallint], $2) > 0",
    ] {
        let accepted: bool = sqlx::query_scalar(statement)
            .bind(message)
            .bind(&old.holder)
            .fetch_one(&database.pool)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert!(!accepted, "{statement}");
        assert_eq!(status(&database.pool, message).await, "queued", "{statement}");
    }
}
