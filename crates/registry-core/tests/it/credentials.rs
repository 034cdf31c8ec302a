//! Keys for joining, and tokens that die with the run that made them.

use std::time::Duration;

use cogo_registry_core::{AgentKey, Error, Refused, Registry, Standing};
use cogo_test_support::database;
use tokio::time::timeout;

use super::{
    fleet::{active, registration},
    heartbeat::{PAUSE, Running},
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
    // none while there is no contact, as on a machine that stands still
    let ends = || {
        let token = running.member.token("gateway")?;
        Some(following.view.verify(&token, "gateway").ok()?.0.exp)
    };
    let renewed = async {
        let mut first = None;
        loop {
            let now = ends();
            first = first.or(now);
            if now > first {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(Duration::from_secs(60), renewed).await.expect("later beats make later ends");
    following.stop().await;
}

#[tokio::test]
async fn revoking_a_key_ends_who_joined_with_it_and_closes_the_name() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (key_id, key) = registry.issue_key("rag-embed", "the cellar").await.unwrap();
    let (other_id, other) = registry.issue_key("rag-embed", "the attic").await.unwrap();
    let joined = registry.register(&registration("rag-embed", 0).key(&key)).await.unwrap();
    let stays = registry.register(&registration("rag-embed", 1).key(&other)).await.unwrap();
    registry.activate(joined.instance_id).await.unwrap();
    let sent: uuid::Uuid =
        sqlx::query_scalar("select bus.enqueue('rag', 'embed', 'acme', '{}')").fetch_one(&database.pool).await.unwrap();
    let claimed: Vec<uuid::Uuid> =
        sqlx::query_scalar("select c.id from bus.claim('rag', 'embed', 0, $1, instance => 'rag-embed/0') as c")
            .bind(&joined.holder)
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(claimed, [sent]);
    let in_with = |keys: &[cogo_registry_core::KeyRecord]| keys.iter().map(|it| it.agents.clone()).collect::<Vec<_>>();
    assert_eq!(in_with(&registry.keys().await.unwrap()), [["rag-embed/0"], ["rag-embed/1"]]);

    let revoked = registry.revoke_key_and_end(key_id, "ops").await.unwrap();
    assert_eq!((revoked.revoked, revoked.ended, revoked.requeued), (true, 1, 1));
    let again = registry.revoke_key_and_end(key_id, "ops").await.unwrap();
    assert_eq!((again.revoked, again.ended), (false, 0));
    assert!(matches!(registry.beat(&joined, 1, 0).await, Err(Error::Ended { .. })));
    registry.beat(&stays, 1, 0).await.unwrap();
    let ended = registry.ended(1).await.unwrap().remove(0);
    assert_eq!(ended.end_reason.as_deref(), Some("key revoked by ops"));

    // the last key is gone: the name does not fall open, neither to the old key nor to none
    assert!(registry.revoke_key(other_id).await.unwrap());
    registry.beat(&stays, 2, 0).await.unwrap();
    for shown in [registration("rag-embed", 0).key(&key), registration("rag-embed", 0)] {
        assert!(matches!(registry.register(&shown).await, Err(Error::KeyRefused)));
    }
    let late = registry.revoke_key_and_end(other_id, "ops").await.unwrap();
    assert_eq!((late.revoked, late.ended), (false, 1), "a key that was revoked gently can still end its runs");
    let (_, third) = registry.issue_key("rag-embed", "new").await.unwrap();
    assert_eq!(registry.open_name("rag-embed").await.unwrap(), None, "one of its keys opens");
    registry.register(&registration("rag-embed", 0).key(&third)).await.unwrap();
    for key in registry.keys().await.unwrap() {
        registry.revoke_key(key.key_id).await.unwrap();
    }
    assert_eq!(registry.open_name("rag-embed").await.unwrap(), Some(3));
    registry.register(&registration("rag-embed", 0)).await.unwrap();
}

#[tokio::test]
async fn a_token_is_dead_once_the_key_behind_it_is_revoked() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (key_id, key) = registry.issue_key("rag-embed", "the cellar").await.unwrap();
    let following = Following::start(&registry).await;
    let mut running = Running::with(&registry, registration("rag-embed", 0).key(&key));
    running.member.activate();
    running.until_active().await;
    let token = running.member.token("gateway").unwrap();
    following.caught_up(&registry).await;
    following.view.verify(&token, "gateway").unwrap();
    assert_eq!(registry.revoke_key_and_end(key_id, "ops").await.unwrap().ended, 1);
    following.caught_up(&registry).await;
    assert_eq!(following.view.verify(&token, "gateway").unwrap_err(), Refused::NotLiving);
    running.until("fenced", |standing| matches!(standing, Standing::Fenced)).await;
    assert_eq!(running.member.token("gateway"), None, "it makes no more tokens");
    assert!(registry.list().await.unwrap().is_empty(), "it does not come back with that key");
    following.stop().await;
}

#[tokio::test]
async fn the_service_role_may_manage_keys_and_see_none_of_their_hashes() {
    let database = database().await;
    let statements = [
        ("select count(*) from registry.list_keys()", true),
        ("select * from registry.revoke_key_and_end(gen_random_uuid(), 'ops')", true),
        ("select registry.open_name('rag-embed')", true),
        ("select * from registry.agent_keys", false),
        ("select * from registry.agent_key_uses", false),
        ("select registry.key_of('rag-embed', 'x')", false),
    ];
    for (role, allowed) in [("service_role", true), ("anon", false), ("authenticated", false)] {
        for (statement, for_service) in statements {
            let mut transaction = database.pool.begin().await.unwrap();
            let become_it = sqlx::AssertSqlSafe(format!("set local role {role}"));
            sqlx::query(become_it).execute(&mut *transaction).await.unwrap();
            let outcome = sqlx::query(statement).execute(&mut *transaction).await;
            assert_eq!(outcome.is_ok(), allowed && for_service, "{role}: {statement}: {outcome:?}");
        }
    }
}
