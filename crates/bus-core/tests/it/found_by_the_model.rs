//! Defects that the model of the bus led to, each by the fewest steps that show it.

use cogo_bus_core::{Bus, Completion, CountedBy, Limit};
use cogo_contracts::{NewMessage, Tenant};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;

use crate::support::{ROUTE, bus, claim, claim_one, message, misplaced, numbered};

#[tokio::test]
async fn stale_claim_beside_the_present_one_of_a_message_costs_no_other_its_claim() {
    let (bus, _database) = bus().await;
    bus.enqueue_many(&numbered(2)).await.unwrap();
    let together = claim(&bus, "w", 2).await;
    assert_eq!(bus.release(&[together[0].fence()], "w").await.unwrap(), 1);
    let again = claim_one(&bus, "w").await;
    assert_eq!((again.id, again.attempt), (together[0].id, 2));
    bus.enqueue(&message(json!({}))).await.unwrap();
    let third = claim_one(&bus, "w").await;

    let ended = [together[0].fence(), again.fence(), third.fence()].map(|fence| (fence, Completion::default()));
    assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 2);
    assert_eq!(misplaced(&bus).await, 0);
    assert!(bus.complete(&together[1].fence(), "w", &Completion::default()).await.unwrap(), "it is still the holder's");
    let left: i64 = sqlx::query_scalar("select count(*) from bus.claims").fetch_one(bus.pool()).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn limit_that_is_less_than_is_wanted_leaves_every_tenant_its_turn() {
    let (shared, database) = bus().await;
    let limit =
        Limit { counted_by: CountedBy::Route, subject: None, max_running: Some(2), per_second: None, burst: None };
    shared.set_limit(&ROUTE, &limit, "test").await.unwrap();
    let tenants = ["acme", "globex", "initech"];
    for tenant in tenants {
        let tenant = Some(Tenant::new(tenant).unwrap());
        let batch: Vec<NewMessage> =
            (0..30).map(|_| NewMessage { tenant: tenant.clone(), ..message(json!({})) }).collect();
        shared.enqueue_many(&batch).await.unwrap();
    }
    // the turn is the session's own
    let bus = Bus::new(PgPoolOptions::new().max_connections(1).connect(&database.url).await.unwrap());
    let mut served: Vec<String> = Vec::new();
    for _ in 0..tenants.len() {
        let claimed = claim(&bus, "w", 10).await;
        assert_eq!(claimed.len(), 2);
        served.extend(claimed.iter().map(|claimed| claimed.tenant.clone()));
        let ended: Vec<_> = claimed.iter().map(|claimed| (claimed.fence(), Completion::default())).collect();
        assert_eq!(bus.complete_many(&ended, "w").await.unwrap().len(), 2);
    }
    served.sort();
    served.dedup();
    assert_eq!(served, tenants, "each had a turn within three claims");
}
