//! Retention against a real Postgres.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Completion};
use cogo_contracts::{NewMessage, Route, Tenant};
use serde_json::json;

const ROUTE: Route = Route::constant("test", "work");

#[tokio::test]
async fn batches_remove_all_that_is_finished_and_nothing_else() {
    let database = cogo_test_support::database().await;
    let bus = Bus::new(database.pool.clone());
    let tenant = Tenant::new("t").unwrap();
    let messages: Vec<_> = (0..25).map(|n| NewMessage::new(ROUTE, Some(tenant.clone()), json!({"n": n}))).collect();
    bus.enqueue_many(&messages).await.unwrap();
    let lease = Duration::from_secs(30);
    let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 20, lease };
    for claimed in bus.claim(&request).await.unwrap().into_iter().take(15) {
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.unwrap());
    }
    let (removed, _) = cogo_bus_retention::remove(&bus, Duration::ZERO, 4).await.unwrap();
    assert_eq!(removed, 15);
    assert_eq!(cogo_bus_retention::remove(&bus, Duration::ZERO, 4).await.unwrap(), (0, 0));
    let left: Vec<(String, i64)> =
        sqlx::query_as("select status, count(*) from public.agent_messages group by status order by status")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(left, [("claimed".to_owned(), 5), ("queued".to_owned(), 5)]);
}
