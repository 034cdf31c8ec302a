//! Joining, changing state, leaving, and what the log says of it.

use std::{collections::BTreeMap, time::Duration};

use cogo_contracts::AgentState;
use cogo_registry_core::{Error, Registry};
use cogo_test_support::database;
use sqlx::PgPool;
use uuid::Uuid;

use super::fleet::{active, claimed_by, events, last_beat, registration, state, status};

#[tokio::test]
async fn registering_twice_is_registering_once() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let registration = registration("rag-embed", 0);
    let first = registry.register(&registration).await.unwrap();
    let second = registry.register(&registration).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(first.epoch, 1);
    assert_eq!(first.holder, registration.id().holder());
    assert_eq!(events(&database.pool).await, ["agent_registered"]);
}

#[tokio::test]
async fn a_run_that_ended_cannot_register_again() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let registration = registration("rag-embed", 0);
    let membership = registry.register(&registration).await.unwrap();
    assert_eq!(registry.deregister(membership.instance_id, "stopped").await.unwrap(), Some(0));
    assert!(matches!(registry.register(&registration).await, Err(Error::Ended { .. })));
    assert!(matches!(registry.beat(&membership, 1, 0).await, Err(Error::Ended { .. })));
    assert!(matches!(registry.activate(membership.instance_id).await, Err(Error::Ended { .. })));
    assert_eq!(registry.deregister(membership.instance_id, "stopped").await.unwrap(), None);
}

#[tokio::test]
async fn deregistering_requeues_what_it_still_holds() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = active(&registry, "rag-embed", 0).await;
    let message = claimed_by(&database.pool, &membership.holder).await;
    registry.drain(membership.instance_id).await.unwrap();
    assert_eq!(registry.deregister(membership.instance_id, "stopped").await.unwrap(), Some(1));
    assert_eq!(status(&database.pool, message).await, "queued");
    let expected = ["agent_registered", "agent_active", "agent_draining", "agent_drained"];
    assert_eq!(events(&database.pool).await, expected);
    let ended = registry.ended(10).await.unwrap();
    assert_eq!(ended[0].end_reason.as_deref(), Some("stopped"));
}

#[tokio::test]
async fn only_an_active_agent_or_a_stranger_may_claim() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = registry.register(&registration("rag-embed", 0)).await.unwrap();
    let instance = membership.instance_id;
    let may = |holder: String| {
        let pool = database.pool.clone();
        async move {
            let answer: bool =
                sqlx::query_scalar("select registry.may_claim($1)").bind(holder).fetch_one(&pool).await.unwrap();
            answer
        }
    };
    assert!(may("psql".to_owned()).await);
    assert!(!may(membership.holder.clone()).await, "registered");
    registry.activate(instance).await.unwrap();
    assert!(may(membership.holder.clone()).await, "active");
    registry.suspend(instance).await.unwrap();
    assert!(!may(membership.holder.clone()).await, "suspended");
    registry.resume(instance).await.unwrap();
    assert!(may(membership.holder.clone()).await, "resumed");
    registry.drain(instance).await.unwrap();
    registry.activate(instance).await.unwrap();
    assert_eq!(state(&database.pool, &membership).await, "draining", "draining has no way back");
    assert!(!may(membership.holder.clone()).await, "draining");
    registry.deregister(instance, "stopped").await.unwrap();
    assert!(!may(membership.holder.clone()).await, "terminated");
}

#[tokio::test]
async fn a_beat_that_arrives_late_changes_nothing() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = active(&registry, "rag-embed", 0).await;
    registry.beat(&membership, 2, 7).await.unwrap();
    last_beat(&database.pool, &membership, Duration::from_secs(3600)).await;
    registry.beat(&membership, 1, 9).await.unwrap();
    let agent = registry.list().await.unwrap().remove(0);
    assert_eq!(agent.in_flight, 7);
    assert!(agent.beat_age_ms.unwrap() >= 3_600_000, "{agent:?}");
    registry.beat(&membership, 3, 9).await.unwrap();
    let agent = registry.list().await.unwrap().remove(0);
    assert_eq!(agent.in_flight, 9);
    assert!(agent.beat_age_ms.unwrap() < 3_600_000, "{agent:?}");
}

#[tokio::test]
async fn a_list_tells_what_was_registered_and_discovery_finds_the_active() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let registered = registration("rag-embed", 3)
        .capability("embed")
        .unwrap()
        .capability("language:rust")
        .unwrap()
        .endpoint("http", "http://127.0.0.1:3011")
        .parent("orchestrator-brain/0");
    let membership = registry.register(&registered).await.unwrap();
    assert!(registry.discover("language:rust").await.unwrap().is_empty(), "registered is not active");
    registry.activate(membership.instance_id).await.unwrap();
    let found = registry.discover("language:rust").await.unwrap();
    assert_eq!(
        found,
        registry
            .discover("embed")
            .await
            .unwrap()
            .iter()
            .map(|agent| {
                let mut agent = agent.clone();
                agent.beat_age_ms = found[0].beat_age_ms;
                agent
            })
            .collect::<Vec<_>>()
    );
    assert!(registry.discover("language:go").await.unwrap().is_empty());
    let agent = &found[0];
    assert_eq!((&agent.id, agent.state, agent.epoch), (registered.id(), AgentState::Active, 1));
    assert_eq!(agent.endpoints[0].url, "http://127.0.0.1:3011");
    assert_eq!((agent.level, agent.parent.as_deref()), (2, Some("orchestrator-brain/0")));
    assert_eq!(agent.location.cpus, 2);
    let parts: (i32, i32, i32, Option<String>) = sqlx::query_as(
        "select a.version_major, a.version_minor, a.version_patch, a.version_pre from registry.agents a",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!(parts, (1, 2, 3, Some("rc.1".to_owned())));
}

#[tokio::test]
async fn the_database_refuses_what_is_malformed() {
    let database = database().await;
    let attempt = async |version: &str, capability: &str| {
        sqlx::query("select * from registry.register(gen_random_uuid(), 'rag', 'x', 0, $1, array[$2])")
            .bind(version)
            .bind(capability)
            .execute(&database.pool)
            .await
    };
    for (version, capability) in
        [("1.0", "ok"), ("1.0.0.0", "ok"), ("v1.0.0", "ok"), ("1.0.0", "Not ok"), ("1.0.0", "a:")]
    {
        assert!(attempt(version, capability).await.is_err(), "{version} {capability}");
    }
    attempt("1.0.0", "ok:fine").await.unwrap();
}

#[tokio::test]
async fn clients_of_the_web_may_not_touch_the_registry() {
    let database = database().await;
    for role in ["anon", "authenticated"] {
        for statement in [
            "select count(*)::text from registry.agents",
            "select registry.activate(gen_random_uuid())",
            "select registry.may_claim('x')::text",
        ] {
            let mut transaction = database.pool.begin().await.unwrap();
            let become_role = if role == "anon" { "set local role anon" } else { "set local role authenticated" };
            sqlx::query(become_role).execute(&mut *transaction).await.unwrap();
            assert!(sqlx::query(statement).execute(&mut *transaction).await.is_err(), "{role}: {statement}");
        }
    }
    let mut transaction = database.pool.begin().await.unwrap();
    sqlx::query("set local role service_role").execute(&mut *transaction).await.unwrap();
    let swept: bool =
        sqlx::query_scalar("select s.swept from registry.sweep() as s").fetch_one(&mut *transaction).await.unwrap();
    assert!(swept);
    assert!(sqlx::query("update registry.agents set state = 'active'").execute(&mut *transaction).await.is_err());
}

/// What the log says: the state of each run after its last change.
async fn replayed(pool: &PgPool) -> BTreeMap<Uuid, String> {
    let rows: Vec<(i64, String, Uuid, String)> = sqlx::query_as(
        "select l.version, l.op, l.instance_id, l.body ->> 'state' from registry.log l order by l.version",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut living = BTreeMap::new();
    for (_, op, instance, state) in rows {
        let known = if op == "terminated" { living.remove(&instance) } else { living.insert(instance, state) };
        assert_eq!(known.is_none(), op == "registered", "{op} of {instance}");
    }
    living
}

async fn living(pool: &PgPool) -> BTreeMap<Uuid, String> {
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as("select a.instance_id, a.state from registry.agents a where a.state <> 'terminated'")
            .fetch_all(pool)
            .await
            .unwrap();
    rows.into_iter().collect()
}

#[tokio::test]
async fn replaying_the_log_gives_the_living() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    // a fixed pseudo-random walk, so that a failure can be repeated
    let mut dice: u64 = 0x5eed;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let mut members = Vec::new();
    for _ in 0..150 {
        if members.is_empty() || roll(4) == 0 {
            let slot = u32::try_from(roll(5)).unwrap();
            members.push(registry.register(&registration("rag-embed", slot)).await.unwrap());
            continue;
        }
        let chosen = &members[usize::try_from(roll(members.len() as u64)).unwrap()];
        let instance = chosen.instance_id;
        let _refused = match roll(7) {
            0 => registry.suspend(instance).await.map(|_| ()),
            1 => registry.resume(instance).await.map(|_| ()),
            2 => registry.drain(instance).await.map(|_| ()),
            3 => registry.deregister(instance, "walk").await.map(|_| ()),
            _ => registry.activate(instance).await,
        };
    }
    assert_eq!(replayed(&database.pool).await, living(&database.pool).await);
    assert!(!living(&database.pool).await.is_empty());
    let (version, newest, rows): (i64, i64, i64) = sqlx::query_as(
        "select c.version, max(l.version), count(*) from registry.clock c, registry.log l group by c.version",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    assert_eq!((version, version), (newest, rows), "versions have no gap");

    let before = living(&database.pool).await;
    assert!(registry.retain(Duration::ZERO, 1000).await.unwrap() > 0);
    assert!(registry.ended(1).await.unwrap().is_empty());
    assert_eq!(living(&database.pool).await, before);
    assert_eq!(replayed(&database.pool).await, before);
}

#[tokio::test]
async fn beats_stay_in_their_page() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = active(&registry, "rag-embed", 0).await;
    let mut transaction = database.pool.begin().await.unwrap();
    for sequence in 1..=20_i64 {
        sqlx::query("select * from registry.beat($1, $2, $3)")
            .bind(membership.instance_id)
            .bind(membership.epoch)
            .bind(sequence)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    let updates: (i64, i64) = sqlx::query_as(
        "select s.n_tup_upd, s.n_tup_hot_upd from pg_stat_xact_user_tables s
          where s.schemaname = 'registry' and s.relname = 'beats'",
    )
    .fetch_one(&mut *transaction)
    .await
    .unwrap();
    assert_eq!(updates, (20, 20), "all updates are heap-only");
    let log: i64 = sqlx::query_scalar("select count(*) from registry.log").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(log, 2, "beats are not in the log");
}
