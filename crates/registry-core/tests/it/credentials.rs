//! Keys for joining, and tokens that die with the run that made them.

use std::time::Duration;

use cogo_registry_core::{AgentKey, Error, Refused, Registry, Standing};
use cogo_test_support::database;
use tokio::time::timeout;

use super::{
    fleet::{active, registration},
    heartbeat::Running,
    view::Following,
};

#[tokio::test]
async fn a_name_with_keys_joins_with_one_of_them_only() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (key_id, key) = registry.issue_key("rag-embed", "the worker in the cellar").await.unwrap();
    let (_, other) = registry.issue_key("kg-builder", "another").await.unwrap();
    let refused = |outcome| matches!(outcome, Err(Error::KeyRefused));
    assert!(refused(registry.register(&registration("rag-embed", 0)).await), "no key");
    assert!(refused(registry.register(&registration("rag-embed", 0).key(&other)).await), "a key of another name");
    assert!(refused(registry.register(&registration("rag-embed", 0).key(&AgentKey::generate())).await), "made up");
    let joined = registry.register(&registration("rag-embed", 0).key(&key)).await.unwrap();
    registry.register(&registration("free", 0)).await.unwrap();

    let stored: Vec<Vec<u8>> =
        sqlx::query_scalar("select k.proof_hash from registry.agent_keys k").fetch_all(&database.pool).await.unwrap();
    let replayed: Result<_, sqlx::Error> = sqlx::query(
        "select r.outcome from registry.register(gen_random_uuid(), 'rag', 'rag-embed', 1, '1.0.0', key_proof => $1) as r",
    )
    .bind(&stored[0])
    .execute(&database.pool)
    .await;
    assert!(replayed.is_err(), "what the table holds opens nothing");

    let (_, second) = registry.issue_key("rag-embed", "its successor").await.unwrap();
    assert!(registry.revoke_key(key_id).await.unwrap());
    assert!(!registry.revoke_key(key_id).await.unwrap());
    assert!(refused(registry.register(&registration("rag-embed", 1).key(&key)).await), "revoked");
    registry.register(&registration("rag-embed", 1).key(&second)).await.unwrap();
    registry.beat(&joined, 1, 0).await.unwrap();
}

#[tokio::test]
async fn neither_log_nor_audit_hold_a_key() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (_, key) = registry.issue_key("rag-embed", "label").await.unwrap();
    let registration = registration("rag-embed", 0).key(&key);
    registry.register(&registration).await.unwrap();
    let written: String = sqlx::query_scalar(
        "select coalesce(string_agg(l::text, ''), '') || (select string_agg(e::text, '') from public.bus_events e)
                || (select string_agg(a::text, '') from registry.agents a) from registry.log l",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let secret = key.reveal().trim_start_matches("cogo_ak_");
    assert!(!written.contains(secret));
    assert!(!format!("{registration:?}").contains(secret));
}

#[tokio::test]
async fn a_token_is_believed_while_its_run_lives_and_not_a_moment_longer() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let following = Following::start(&registry).await;
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    let membership = running.until_active().await;
    let token = running.member.token("gateway").unwrap();
    following.caught_up(&registry).await;
    let (claims, entry) = following.view.verify(&token, "gateway").unwrap();
    assert_eq!((claims.inst, claims.epoch, claims.sub.as_str()), (membership.instance_id, 1, "rag-embed/0"));
    assert_eq!(entry.holder, membership.holder);
    assert_eq!(following.view.verify(&token, "elsewhere").unwrap_err(), Refused::Audience);

    let successor = active(&registry, "rag-embed", 0).await;
    following.caught_up(&registry).await;
    let dead = following.view.verify(&token, "gateway").unwrap_err();
    assert_eq!(dead, Refused::Superseded { epoch: 1, newest: 2 });
    running.until("superseded", |standing| matches!(standing, Standing::Superseded { .. })).await;
    assert_eq!(running.member.token("gateway"), None, "it makes no more tokens");
    registry.deregister(successor.instance_id, "stopped").await.unwrap();
    following.caught_up(&registry).await;
    assert_eq!(following.view.verify(&token, "gateway").unwrap_err(), Refused::NotLiving);
    following.stop().await;
}

#[tokio::test]
async fn the_heartbeat_renews_what_a_token_says() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let following = Following::start(&registry).await;
    let mut running = Running::start(&registry, "rag-embed", 0);
    running.member.activate();
    running.until_active().await;
    following.caught_up(&registry).await;
    let ends = || following.view.verify(&running.member.token("gateway").unwrap(), "gateway").unwrap().0.exp;
    let first = ends();
    let renewed = async {
        while ends() <= first {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), renewed).await.expect("later beats make later ends");
    following.stop().await;
}
