//! What operators ordered outlives the runs that it is about.

use cogo_contracts::AgentState;
use cogo_registry_core::{NewOrder, OrderedState, Registry, StandingOrders, Subject};
use cogo_test_support::database;
use sqlx::PgPool;

use super::fleet::{active, registration};

fn process(name: &str) -> Subject {
    Subject::Process { domain: "rag".to_owned(), process: name.to_owned() }
}

fn instance(name: &str, slot: u32) -> Subject {
    Subject::Instance { domain: "rag".to_owned(), process: name.to_owned(), slot }
}

fn order(subject: Subject, fleet: Option<u16>) -> NewOrder {
    NewOrder { subject, fleet, by: "ada@host".to_owned(), reason: None, known_version: 0 }
}

async fn state_of(registry: &Registry, name: &str, slot: u32) -> AgentState {
    let agents = registry.list().await.unwrap();
    agents.into_iter().find(|agent| agent.id.instance() == format!("{name}/{slot}")).unwrap().state
}

async fn told(pool: &PgPool) -> Vec<(String, String, String)> {
    sqlx::query_as(
        "select kind, actor, detail ->> 'target' from public.bus_events where kind like 'order%' order by id",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn order_is_changed_only_by_who_knows_it_as_it_is() {
    let database = database().await;
    let orders = StandingOrders::new(database.pool.clone());
    let first = NewOrder { reason: Some("disk is full".to_owned()), ..order(instance("rag-embed", 1), Some(0)) };
    assert_eq!(orders.give(&first).await.unwrap(), Some(1));
    assert_eq!(orders.give(&first).await.unwrap(), None, "somebody was quicker");
    let stands = orders.list().await.unwrap().remove(0);
    assert_eq!((&stands.subject, stands.fleet, stands.wish), (&first.subject, Some(0), OrderedState::Drained));
    assert_eq!((stands.by.as_str(), stands.reason.as_deref()), ("ada@host", Some("disk is full")));
    let words = stands.to_string();
    assert!(words.starts_with("rag-embed/1: drained by ada@host since 20") && words.ends_with("UTC (disk is full)"));

    let again = NewOrder { by: "bob@host".to_owned(), known_version: stands.version, ..order(first.subject, Some(0)) };
    assert_eq!(orders.give(&again).await.unwrap(), Some(2));
    assert!(!orders.lift(&stands, "ada@host").await.unwrap(), "it is not the one that was known");
    let stands = orders.list().await.unwrap().remove(0);
    assert_eq!((stands.version, stands.by.as_str(), stands.reason.as_deref()), (2, "bob@host", None));
    assert!(orders.lift(&stands, "ada@host").await.unwrap());
    assert!(!orders.lift(&stands, "ada@host").await.unwrap(), "it is gone");
    assert!(orders.list().await.unwrap().is_empty());
    let events = told(&database.pool).await;
    let events: Vec<_> = events.iter().map(|(kind, by, of)| (kind.as_str(), by.as_str(), of.as_str())).collect();
    assert_eq!(
        events,
        [
            ("order_given", "ada@host", "rag-embed/1"),
            ("order_given", "bob@host", "rag-embed/1"),
            ("order_lifted", "ada@host", "rag-embed/1"),
        ]
    );
}

#[tokio::test]
async fn order_to_drain_is_for_one_fleet() {
    let database = database().await;
    let orders = StandingOrders::new(database.pool.clone());
    for fleet in [0, 100] {
        assert_eq!(orders.give(&order(process("rag-embed"), Some(fleet))).await.unwrap(), Some(1));
    }
    let listed = orders.list().await.unwrap();
    let of = |slot: u32| listed.iter().filter(|order| order.is_for(slot)).count();
    assert_eq!((of(0), of(100), of(7)), (1, 1, 0));
}

#[tokio::test]
async fn run_that_begins_under_an_order_is_suspended_before_it_can_claim() {
    let database = database().await;
    let (registry, orders) = (Registry::new(database.pool.clone()), StandingOrders::new(database.pool.clone()));
    let domain = Subject::Domain { domain: "kg".to_owned() };
    for subject in [process("rag-embed"), instance("rag-rank", 1), domain] {
        orders.give(&order(subject, None)).await.unwrap();
    }
    // drained is a matter of who starts processes, not of the registry
    orders.give(&order(process("rag-read"), Some(0))).await.unwrap();
    for (name, slot, expected) in [
        ("rag-embed", 0, AgentState::Suspended),
        ("rag-embed", 7, AgentState::Suspended),
        ("rag-rank", 0, AgentState::Active),
        ("rag-rank", 1, AgentState::Suspended),
        ("rag-read", 0, AgentState::Active),
    ] {
        let membership = active(&registry, name, slot).await;
        assert_eq!(state_of(&registry, name, slot).await, expected, "{name}/{slot}");
        let may: bool = sqlx::query_scalar("select registry.may_claim($1)")
            .bind(&membership.holder)
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert_eq!(may, expected == AgentState::Active, "{name}/{slot}");
    }
    let reason =
        registry.log(0, 100).await.unwrap().into_iter().find(|change| change.op == "suspended").unwrap().reason;
    assert_eq!(reason.as_deref(), Some("ordered by ada@host"));

    // a run that comes after the order was taken back is active, and so is one that is resumed
    let stands = orders.list().await.unwrap().into_iter().find(|order| order.subject == process("rag-embed")).unwrap();
    assert!(orders.lift(&stands, "ada@host").await.unwrap());
    assert_eq!(
        registry.resume("rag-embed/7".parse::<cogo_registry_core::Target>().unwrap()).await.unwrap().state,
        AgentState::Active
    );
    let fresh = registry.register(&registration("rag-embed", 0)).await.unwrap();
    registry.activate(fresh.instance_id).await.unwrap();
    assert_eq!(state_of(&registry, "rag-embed", 0).await, AgentState::Active);
}

#[test]
fn subjects_hold_their_parts() {
    let domain = Subject::Domain { domain: "rag".to_owned() };
    let (embed, one) = (process("rag-embed"), instance("rag-embed", 1));
    for (whole, part, expected) in [
        (&domain, &embed, true),
        (&domain, &one, true),
        (&embed, &one, true),
        (&embed, &embed, true),
        (&one, &one, true),
        (&embed, &domain, false),
        (&one, &embed, false),
        (&one, &instance("rag-embed", 2), false),
        (&embed, &process("rag-embed-more"), false),
    ] {
        assert_eq!(whole.holds(part), expected, "{whole:?} {part:?}");
    }
}
