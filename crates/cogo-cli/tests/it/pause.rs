//! `cogo suspend` and `cogo resume`, which the registry holds.

use cogo_contracts::AgentState;
use cogo_registry_core::Registry;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{Cogo, registration};

pub(crate) async fn join(registry: &Registry, domain: &str, name: &str, slot: u32) -> Uuid {
    let registration = registration(domain, name, slot);
    let membership = registry.register(&registration).await.unwrap();
    registry.activate(membership.instance_id).await.unwrap();
    membership.instance_id
}

pub(crate) async fn suspended(registry: &Registry) -> Vec<String> {
    let agents = registry.list().await.unwrap();
    let suspended = agents.iter().filter(|agent| agent.state == AgentState::Suspended);
    suspended.map(|agent| agent.id.instance()).collect()
}

#[tokio::test]
async fn agents_are_suspended_and_resumed_by_instance_process_and_domain() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    for (name, slot) in [("rag-embed", 0), ("rag-embed", 1), ("rag-dispatcher", 0)] {
        join(&registry, "rag", name, slot).await;
    }
    join(&registry, "kg", "kg-builder", 0).await;
    let cogo = Cogo::on(&database.url);
    let told = cogo.run(&["suspend", "rag-embed/1", "--json"]).await.expect(0).json();
    assert_eq!(
        (&told[0]["agent"], &told[0]["before"], &told[0]["state"], told.as_array().unwrap().len()),
        (&Value::from("rag-embed/1"), &Value::from("active"), &Value::from("suspended"), 1)
    );
    assert_eq!(suspended(&registry).await, ["rag-embed/1"]);
    // once more is no harm
    cogo.run(&["suspend", "rag-embed"]).await.expect(0);
    assert_eq!(suspended(&registry).await, ["rag-embed/0", "rag-embed/1"]);
    let table = cogo.run(&["suspend", "rag"]).await.expect(0).stdout;
    assert!(table.contains("rag-dispatcher/0") && !table.contains("kg-builder"), "{table}");
    cogo.run(&["resume", "rag"]).await.expect(0);
    assert_eq!(suspended(&registry).await, Vec::<String>::new());
}

#[tokio::test]
async fn agents_that_cannot_be_told_and_names_without_agents_are_said() {
    let database = cogo_test_support::database().await;
    let registry = Registry::new(database.pool.clone());
    let cogo = Cogo::on(&database.url);
    let nobody = cogo.run(&["suspend", "rag-embed"]).await.expect(3);
    assert!(nobody.stderr.contains("`cogo up`"), "{nobody:?}");
    let draining = join(&registry, "rag", "rag-embed", 0).await;
    registry.drain(draining).await.unwrap();
    let refused = cogo.run(&["suspend", "rag-embed", "--json"]).await.expect(4);
    assert!(refused.problem()["detail"].as_str().unwrap().contains("rag-embed/0 is draining"), "{refused:?}");
    let unknown = cogo.run(&["resume", "kg"]).await.expect(3);
    assert!(unknown.stderr.contains("rag-embed"), "{unknown:?}");
}
