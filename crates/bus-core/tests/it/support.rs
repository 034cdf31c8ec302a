//! What the tests of the bus share.

use std::time::Duration;

use cogo_bus_core::{Bus, ClaimRequest, Claimed};
use cogo_contracts::{NewMessage, Route, Tenant};
use cogo_test_support::TestDatabase;
use serde_json::{Value, json};

pub(crate) const ROUTE: Route = Route::constant("test", "work");
/// Longer than a test takes on a busy machine, and less than the minute by which tests extend it.
pub(crate) const LEASE: Duration = Duration::from_secs(50);
/// Shortest lease that the database grants.
pub(crate) const SHORT_LEASE: Duration = Duration::from_millis(100);

/// Nothing here takes this long unless it is broken, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the database.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

pub(crate) async fn bus() -> (Bus, TestDatabase) {
    let database = cogo_test_support::database().await;
    (Bus::new(database.pool.clone()), database)
}

pub(crate) fn message(payload: Value) -> NewMessage {
    NewMessage::new(ROUTE, Some(Tenant::new("acme").unwrap()), payload)
}

pub(crate) fn numbered(count: u32) -> Vec<NewMessage> {
    (0..count).map(|number| message(json!({"number": number}))).collect()
}

pub(crate) async fn claim(bus: &Bus, holder: &str, max_messages: u16) -> Vec<Claimed> {
    claim_for(bus, holder, max_messages, LEASE).await
}

pub(crate) async fn claim_for(bus: &Bus, holder: &str, max_messages: u16, lease: Duration) -> Vec<Claimed> {
    let request = ClaimRequest { route: &ROUTE, holder, instance: None, max_messages, lease };
    bus.claim(&request).await.unwrap()
}

pub(crate) async fn claim_one(bus: &Bus, holder: &str) -> Claimed {
    let mut claimed = claim(bus, holder, 1).await;
    assert_eq!(claimed.len(), 1, "nothing to claim");
    claimed.remove(0)
}

/// Waits until the database's own clock has passed the lease of everything that is claimed.
pub(crate) async fn leases_to_pass(bus: &Bus) {
    sqlx::query("update bus.claims set lease_until = clock_timestamp()").execute(bus.pool()).await.unwrap();
}

/// Makes everything that is delayed due.
pub(crate) async fn delays_to_pass(bus: &Bus) {
    sqlx::query("update bus.delayed set due = clock_timestamp()").execute(bus.pool()).await.unwrap();
}

pub(crate) async fn times_to_live_to_pass(bus: &Bus) {
    let passed = "with over as (update bus.expiring set at = clock_timestamp() returning id)
                  update public.agent_messages m set expires_at = clock_timestamp()
                    from over where m.id = over.id and m.done_at is null";
    sqlx::query(passed).execute(bus.pool()).await.unwrap();
}

pub(crate) async fn statuses(bus: &Bus) -> Vec<(String, i64)> {
    sqlx::query_as("select status, count(*) from public.agent_messages group by status order by status")
        .fetch_all(bus.pool())
        .await
        .unwrap()
}

/// Messages that are nowhere, in two places, or ended and still somewhere.
pub(crate) async fn misplaced(bus: &Bus) -> i64 {
    sqlx::query_scalar("select count(*) from bus.misplaced()").fetch_one(bus.pool()).await.unwrap()
}

/// Waits until a statement that contains these words waits for a lock.
pub(crate) async fn until_somebody_waits_for_a_lock(bus: &Bus, words: &str) {
    let waits = "select exists (select from pg_stat_activity where datname = current_database()
                   and wait_event_type = 'Lock' and position($1 in query) > 0)";
    tokio::time::timeout(PATIENCE, async {
        while !sqlx::query_scalar::<_, bool>(waits).bind(words).fetch_one(bus.pool()).await.unwrap() {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
    .expect("a statement that waits");
}
