//! Orders to agents: by run or by slot, compare-and-set, each in the log and in the audit with who, from, to and why.

use cogo_contracts::AgentState;
use cogo_registry_core::{Error, Registry, Target};
use cogo_test_support::database;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fleet::{active, events, registration};

#[tokio::test]
async fn a_slot_is_suspended_resumed_and_drained_by_its_name() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let membership = active(&registry, "rag-embed", 3).await;
    let slot = || "rag-embed/3".parse::<Target>().unwrap();
    let suspended = registry.suspend(slot().because("disk is full")).await.unwrap();
    assert_eq!((suspended.before, suspended.state), (AgentState::Active, AgentState::Suspended));
    assert_eq!(suspended.membership, membership);
    let again = registry.suspend(membership.instance_id).await.unwrap();
    assert_eq!(
        (again.before, again.state, again.registry_version),
        (AgentState::Suspended, AgentState::Suspended, suspended.registry_version),
        "asking twice changes nothing"
    );
    registry.resume(slot()).await.unwrap();
    registry.drain(slot().because("new release")).await.unwrap();
    let refused = registry.resume(slot()).await;
    assert!(matches!(refused, Err(Error::NotAllowed { ref state, .. }) if state == "draining"), "{refused:?}");

    let log = registry.log(0, 100).await.unwrap();
    let said: Vec<_> = log
        .iter()
        .map(|change| (change.op.as_str(), change.from.as_str(), change.to.as_str(), change.reason.as_deref()))
        .collect();
    assert_eq!(
        said,
        [
            ("registered", "registering", "registered", None),
            ("activated", "registered", "active", None),
            ("suspended", "active", "suspended", Some("disk is full")),
            ("resumed", "suspended", "active", None),
            ("draining", "active", "draining", Some("new release")),
        ]
    );
    assert!(log.iter().all(|change| {
        (change.instance_id, change.epoch, change.asked_by.as_deref()) == (membership.instance_id, 1, Some("test"))
            && change.holder == membership.holder
    }));
    assert!(log.iter().map(|change| change.version).eq(1..=5));
    let expected = ["agent_registered", "agent_active", "agent_suspended", "agent_resumed", "agent_draining"];
    assert_eq!(events(&database.pool).await, expected);
    let detail: Value = sqlx::query_scalar("select e.detail from public.bus_events e where e.kind = 'agent_suspended'")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(
        (&detail["from"], &detail["to"], &detail["reason"]),
        (&json!("active"), &json!("suspended"), &json!("disk is full"))
    );
}

#[tokio::test]
async fn an_order_to_nobody_or_at_the_wrong_time_is_an_error() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    assert!(matches!(registry.suspend(Uuid::now_v7()).await, Err(Error::NoSuchAgent { .. })));
    assert!(matches!(registry.drain(Target::slot("rag-embed", 0)).await, Err(Error::NoSuchAgent { .. })));
    let membership = registry.register(&registration("rag-embed", 0)).await.unwrap();
    assert!(matches!(registry.suspend(membership.instance_id).await, Err(Error::NotAllowed { .. })), "registered");
    registry.activate(membership.instance_id).await.unwrap();
    assert_eq!(registry.resume(membership.instance_id).await.unwrap().before, AgentState::Active, "is active");
    registry.deregister(membership.instance_id, "stopped").await.unwrap();
    assert!(matches!(registry.drain(membership.instance_id).await, Err(Error::NotAllowed { .. })), "terminated");
    assert!(
        matches!(registry.suspend(Target::slot("rag-embed", 0)).await, Err(Error::NoSuchAgent { .. })),
        "the slot has no living owner"
    );
}
