//! Tenants in turn: who sends much does not make the others wait.

use cogo_bus_core::Bus;
use cogo_contracts::{NewMessage, Tenant};
use cogo_test_support::TestDatabase;
use serde_json::json;
use sqlx::postgres::PgPoolOptions;

use crate::support::{bus, claim, claim_one, message};

fn of(tenant: &str, count: u32) -> Vec<NewMessage> {
    let tenant = Tenant::new(tenant).unwrap();
    (0..count).map(|_| NewMessage { tenant: Some(tenant.clone()), ..message(json!({})) }).collect()
}

/// A bus whose every claim goes through the same session.
async fn one_session(database: &TestDatabase) -> Bus {
    Bus::new(PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap())
}

async fn tenants_of_claim(bus: &Bus, max_messages: u16) -> Vec<String> {
    claim(bus, "w", max_messages).await.into_iter().map(|claimed| claimed.tenant).collect()
}

#[tokio::test]
async fn tenant_with_nearly_everything_does_not_delay_another() {
    let (bus, database) = bus().await;
    for part in of("loud", 9_900).chunks(990) {
        bus.enqueue_many(part).await.unwrap();
    }
    bus.enqueue_many(&of("quiet", 100)).await.unwrap();
    let bus = one_session(&database).await;
    let mut left = 100;
    for _ in 0..100 {
        let tenants = tenants_of_claim(&bus, 10).await;
        assert_eq!(tenants.len(), 10);
        let quiet = tenants.iter().filter(|tenant| *tenant == "quiet").count();
        left -= quiet;
        assert!((1..10).contains(&quiet), "both are in each claim: {tenants:?}");
        if left == 0 {
            return;
        }
    }
    panic!("{left} of the quiet tenant still wait after 1000 messages");
}

#[tokio::test]
async fn claims_of_one_go_to_the_tenants_in_turn() {
    let (bus, database) = bus().await;
    bus.enqueue_many(&of("loud", 200)).await.unwrap();
    bus.enqueue_many(&of("quiet", 10)).await.unwrap();
    bus.enqueue_many(&of("third", 10)).await.unwrap();
    let bus = one_session(&database).await;
    let mut order = Vec::new();
    for _ in 0..30 {
        order.push(claim_one(&bus, "w").await.tenant);
    }
    for (turn, tenants) in order.chunks(3).enumerate() {
        let mut tenants = tenants.to_vec();
        tenants.sort();
        assert_eq!(tenants, ["loud", "quiet", "third"], "turn {turn} of {order:?}");
    }
}

#[tokio::test]
async fn many_sessions_that_claim_one_each_leave_nobody_out() {
    let (bus, database) = bus().await;
    bus.enqueue_many(&of("loud", 400)).await.unwrap();
    bus.enqueue_many(&of("quiet", 20)).await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(one_session(&database).await);
    }
    let mut quiet = 0;
    for _ in 0..12 {
        for session in &sessions {
            quiet += usize::from(claim_one(session, "w").await.tenant == "quiet");
        }
    }
    assert_eq!(quiet, 20, "within 48 claims all of them had their turn");
}

#[tokio::test]
async fn limits_of_a_route_leave_the_tenants_their_turns() {
    let (bus, database) = bus().await;
    let limit = cogo_bus_core::Limit {
        counted_by: cogo_bus_core::CountedBy::Route,
        subject: None,
        max_running: Some(1000),
        per_second: None,
        burst: None,
    };
    bus.set_limit(&crate::support::ROUTE, &limit, "test").await.unwrap();
    bus.enqueue_many(&of("loud", 500)).await.unwrap();
    bus.enqueue_many(&of("quiet", 10)).await.unwrap();
    let bus = one_session(&database).await;
    let mut quiet = 0;
    for _ in 0..4 {
        let tenants = tenants_of_claim(&bus, 10).await;
        quiet += tenants.iter().filter(|tenant| *tenant == "quiet").count();
        assert!(quiet == 10 || tenants.iter().any(|tenant| tenant == "quiet"), "{tenants:?}");
    }
    assert_eq!(quiet, 10);
}

#[tokio::test]
async fn keys_of_a_tenant_have_one_turn_together() {
    let (bus, database) = bus().await;
    let limit = cogo_bus_core::Limit {
        counted_by: cogo_bus_core::CountedBy::Key,
        subject: None,
        max_running: Some(1000),
        per_second: None,
        burst: None,
    };
    bus.set_limit(&crate::support::ROUTE, &limit, "test").await.unwrap();
    let mut loud = of("loud", 400);
    for (number, message) in loud.iter_mut().enumerate() {
        message.limit_key = Some(format!("key {}", number % 100));
    }
    bus.enqueue_many(&loud).await.unwrap();
    let mut quiet = of("quiet", 10);
    quiet.iter_mut().for_each(|message| message.limit_key = Some("only".to_owned()));
    bus.enqueue_many(&quiet).await.unwrap();
    let bus = one_session(&database).await;
    let mut served = 0;
    for _ in 0..2 {
        let tenants = tenants_of_claim(&bus, 10).await;
        assert_eq!(tenants.len(), 10);
        served += tenants.iter().filter(|tenant| *tenant == "quiet").count();
    }
    assert_eq!(served, 10, "half of each claim");
    let mut left = 390;
    while left > 0 {
        let got = tenants_of_claim(&bus, 100).await.len();
        assert_ne!(got, 0, "{left} are left");
        left -= got;
    }
}

#[tokio::test]
async fn keys_of_a_tenant_have_their_turns_whatever_they_hash_to() {
    let (bus, database) = bus().await;
    let limit = cogo_bus_core::Limit {
        counted_by: cogo_bus_core::CountedBy::Key,
        subject: None,
        max_running: Some(1000),
        per_second: None,
        burst: None,
    };
    bus.set_limit(&crate::support::ROUTE, &limit, "test").await.unwrap();
    let keys = ["github", "gmail", "jira", "notion", "slack"];
    let mut messages = of("acme", 1000);
    for (number, message) in messages.iter_mut().enumerate() {
        message.limit_key = Some(keys[number % keys.len()].to_owned());
    }
    bus.enqueue_many(&messages).await.unwrap();
    let bus = one_session(&database).await;
    for _ in 0..200 {
        claim_one(&bus, "w").await;
    }
    let served: Vec<(String, i64)> = sqlx::query_as(
        "select limit_key, count(*) from public.agent_messages where status = 'claimed' group by 1 order by 1",
    )
    .fetch_all(bus.pool())
    .await
    .unwrap();
    // 40 each; as few as 10 is a matter of once in millions of runs
    assert!(served.len() == keys.len() && served.iter().all(|(_, count)| *count >= 10), "{served:?}");
}
