//! Agents and messages for the tests of this crate.

use std::time::Duration;

use cogo_contracts::{Environment, Location};
use cogo_registry_core::{Membership, Registration, Registry};
use sqlx::PgPool;
use uuid::Uuid;

/// A registration of `name/slot` on a made-up machine.
pub(crate) fn registration(name: &str, slot: u32) -> Registration {
    let location = Location {
        environment: Environment::Host,
        host: "test".to_owned(),
        region: None,
        cpus: 2,
        memory_bytes: 1 << 30,
        pid: 1,
    };
    Registration::new("rag", name, slot, "1.2.3-rc.1+build".parse().unwrap(), location).unwrap()
}

/// A registered and active agent.
pub(crate) async fn active(registry: &Registry, name: &str, slot: u32) -> Membership {
    let membership = registry.register(&registration(name, slot)).await.unwrap();
    registry.activate(membership.instance_id).await.unwrap();
    membership
}

/// A message that `holder` has claimed; answers its id.
pub(crate) async fn claimed_by(pool: &PgPool, holder: &str) -> Uuid {
    let sent: Uuid =
        sqlx::query_scalar("select bus.enqueue('rag', 'embed', 'acme', '{}')").fetch_one(pool).await.unwrap();
    let got: Uuid = sqlx::query_scalar("select c.id from bus.claim('rag', 'embed', 0, $1) as c")
        .bind(holder)
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(got, sent);
    sent
}

/// Status of a message.
pub(crate) async fn status(pool: &PgPool, message: Uuid) -> String {
    sqlx::query_scalar("select m.status from public.agent_messages m where m.id = $1")
        .bind(message)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// State of a run.
pub(crate) async fn state(pool: &PgPool, membership: &Membership) -> String {
    sqlx::query_scalar("select a.state from registry.agents a where a.instance_id = $1")
        .bind(membership.instance_id)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Makes the last beat of a run this old.
pub(crate) async fn last_beat(pool: &PgPool, membership: &Membership, ago: Duration) {
    sqlx::query(
        "update registry.beats set beat_at = clock_timestamp() - $2 * interval '1 second' where instance_id = $1",
    )
    .bind(membership.instance_id)
    .bind(ago.as_secs_f64())
    .execute(pool)
    .await
    .unwrap();
}

/// Kinds of the events about agents so far, in order.
pub(crate) async fn events(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select e.kind from public.bus_events e where e.kind like 'agent%' order by e.id")
        .fetch_all(pool)
        .await
        .unwrap()
}
