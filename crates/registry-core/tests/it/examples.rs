//! The example that the documents show does what they say.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Claimed, Completion, WakeUps};
use cogo_contracts::{Route, Tenant};
use cogo_registry_core::{Membership, Registration, Registry, detect_location};
use cogo_test_support::database;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{heartbeat::spawn, view::Following};

#[path = "../../examples/routing.rs"]
#[expect(dead_code, reason = "the test calls what the example's own start calls")]
mod routing;

const EMBED: Route = Route::constant("rag", "embed");

async fn worker(registry: &Registry, slot: u32) -> Membership {
    let version = semver::Version::new(1, 2, 3);
    let joining = Registration::new("rag", "rag-embed", slot, version, detect_location(|_| None)).unwrap();
    let joining = joining.capability("route:rag/embed/0").unwrap();
    let membership = registry.register(&joining).await.unwrap();
    registry.activate(membership.instance_id).await.unwrap();
    registry.beat(&membership, 1, 0).await.unwrap();
    membership
}

async fn claim(bus: &Bus, slot: u32, worker: &Membership) -> Vec<Claimed> {
    let instance = format!("rag-embed/{slot}");
    bus.claim(&ClaimRequest {
        route: &EMBED,
        holder: &worker.holder,
        instance: Some(&instance),
        max_messages: 10,
        lease: Duration::from_secs(30),
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn the_patterns_of_the_documents_reach_whom_they_name() {
    let database = database().await;
    let (bus, registry) = (Bus::new(database.pool.clone()), Registry::new(database.pool.clone()));
    let tenant: Tenant = "acme".parse().unwrap();
    let following = Following::start(&registry).await;
    assert!(routing::direct(&bus, &following.view, &tenant).await.is_err(), "nobody is there");
    assert!(routing::load_balanced(&bus, &following.view, &tenant).await.is_err());

    let (first, second) = (worker(&registry, 0).await, worker(&registry, 1).await);
    following.caught_up(&registry).await;
    let mut healthy = routing::lookups(&following.view).unwrap();
    healthy.sort();
    assert_eq!(healthy, ["rag-embed/0", "rag-embed/1"]);
    let sent = routing::direct(&bus, &following.view, &tenant).await.unwrap();
    assert!(claim(&bus, 1, &second).await.is_empty(), "it is for the other one");
    assert_eq!(claim(&bus, 0, &first).await[0].id, sent);
    let sent = routing::load_balanced(&bus, &following.view, &tenant).await.unwrap();
    assert_eq!(claim(&bus, 1, &second).await[0].id, sent);

    assert!(routing::shared_value(database.pool.clone()).await.unwrap());
    let (hints, stop) = (WakeUps::default(), CancellationToken::new());
    let listening = spawn(hints.clone().run(database.pool.clone(), stop.clone()));
    assert_eq!(routing::broadcast(&bus, &hints, &tenant).await.unwrap(), [json!({"model": "small"})]);
    let answering = async {
        let asked = loop {
            if let Some(asked) = claim(&bus, 0, &first).await.pop() {
                break asked;
            }
        };
        let completion = Completion { result: Some(json!({"chunks": 0})), ..Completion::default() };
        assert!(bus.complete(&asked.fence(), &first.holder, &completion).await.unwrap());
    };
    let (reply, ()) = tokio::join!(routing::request(&bus, &hints, &tenant), answering);
    assert_eq!(reply.unwrap().result, Some(json!({"chunks": 0})));
    stop.cancel();
    listening.await.unwrap();
    following.stop().await;
}
