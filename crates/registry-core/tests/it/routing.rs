//! Where messages go, also when the one that they are for is gone.

use cogo_contracts::Route;
use cogo_registry_core::{AgentAddress, NoDestination, Query, Registry, WhenGone};
use cogo_test_support::database;
use uuid::Uuid;

use super::{fleet::registration, view::Following};

const ROUTE: Route = Route::constant("rag", "embed");

async fn worker(registry: &Registry, slot: u32) -> Uuid {
    let joining = registration("rag-embed", slot)
        .capability("route:rag/embed/0")
        .unwrap()
        .endpoint("http", "http://127.0.0.1:3011");
    let membership = registry.register(&joining).await.unwrap();
    registry.activate(membership.instance_id).await.unwrap();
    membership.instance_id
}

#[tokio::test]
async fn a_message_for_one_agent_goes_to_it_alone_or_as_the_sender_chose() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let (first, second) = (worker(&registry, 0).await, worker(&registry, 1).await);
    let following = Following::start(&registry).await;
    let view = &following.view;
    let direct = view.direct("rag-embed/1", &ROUTE, WhenGone::Refuse).unwrap();
    assert_eq!(direct.target_instance.as_deref(), Some("rag-embed/1"));
    assert_eq!(direct.agent.as_ref().unwrap().id.instance_id, second);
    assert_eq!((direct.registry_version, &direct.route), (4, &ROUTE));

    // on the bus that means: nobody else gets it
    let sent: Uuid = sqlx::query_scalar(
        "insert into public.agent_messages (service, role, shard, tenant, payload, target_instance)
         values ('rag', 'embed', 0, 'acme', '{}', $1) returning id",
    )
    .bind(&direct.target_instance)
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let claimed = async |run: Uuid, slot: u32| -> Vec<Uuid> {
        sqlx::query_scalar("select c.id from bus.claim('rag', 'embed', 0, $1, instance => $2) as c")
            .bind(format!("rag-embed/{slot}#{}", run.simple()))
            .bind(format!("rag-embed/{slot}"))
            .fetch_all(&database.pool)
            .await
            .unwrap()
    };
    assert!(claimed(first, 0).await.is_empty());
    assert_eq!(claimed(second, 1).await, [sent]);

    let other = Route::constant("kg", "build");
    let refused = view.direct("rag-embed/1", &other, WhenGone::LoadBalanced);
    assert!(matches!(refused, Err(NoDestination::OtherRoute { .. })), "{refused:?}");
    registry.suspend(second).await.unwrap();
    following.caught_up(&registry).await;
    let refused = view.direct("rag-embed/1", &ROUTE, WhenGone::Refuse);
    assert!(matches!(refused, Err(NoDestination::Gone { ref state, .. }) if state == "suspended"), "{refused:?}");
    let refused = view.direct("rag-embed/9", &ROUTE, WhenGone::Refuse);
    assert!(matches!(refused, Err(NoDestination::Gone { ref state, .. }) if state == "not in the registry"));
    let instead = view.direct("rag-embed/9", &ROUTE, WhenGone::LoadBalanced).unwrap();
    assert_eq!((instead.target_instance, instead.agent), (None, None));
    following.stop().await;
}

#[tokio::test]
async fn a_message_for_anybody_needs_somebody_who_claims_there() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let run = worker(&registry, 0).await;
    let following = Following::start(&registry).await;
    let view = &following.view;
    let anybody = view.load_balanced(&ROUTE).unwrap();
    assert_eq!(anybody.address(), AgentAddress::BusRoute { route: ROUTE, target_instance: None });
    let chosen = view.least_busy(&ROUTE, &Query::domain("rag")).unwrap();
    assert_eq!(chosen.target_instance.as_deref(), Some("rag-embed/0"));
    let nobody = view.least_busy(&ROUTE, &Query::domain("kg"));
    assert!(matches!(nobody, Err(NoDestination::Nobody { .. })), "{nobody:?}");

    registry.drain(run).await.unwrap();
    following.caught_up(&registry).await;
    assert_eq!(view.load_balanced(&ROUTE), Err(NoDestination::Nobody { route: "rag/embed/0".to_owned() }));
    following.stop().await;
}

#[tokio::test]
async fn an_agent_is_reached_inside_the_process_by_its_routes_and_by_its_endpoints() {
    let database = database().await;
    let registry = Registry::new(database.pool.clone());
    let run = worker(&registry, 0).await;
    let rider = registry.register(&registration("rag-rider", 0).carried_by(run)).await.unwrap().instance_id;
    let snapshot = registry.snapshot().await.unwrap();
    let addresses = snapshot.run(run).unwrap().addresses(Some(run));
    let [inside, by_route, by_endpoint] = addresses.as_slice() else { panic!("{addresses:?}") };
    assert_eq!(*inside, AgentAddress::InProcess(run));
    let target_instance = Some("rag-embed/0".to_owned());
    assert_eq!(*by_route, AgentAddress::BusRoute { route: ROUTE, target_instance });
    assert!(matches!(by_endpoint, AgentAddress::Endpoint(endpoint) if endpoint.protocol == "http"));
    assert_eq!(snapshot.run(rider).unwrap().addresses(Some(run)), [AgentAddress::InProcess(rider)]);
    assert!(snapshot.run(rider).unwrap().addresses(None).is_empty());
}
