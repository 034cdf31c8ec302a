//! What the autoscaler asks the database at each look; little while nothing happens.

use std::time::Duration;

use cogo_bus_core::{Error, Load, Traffic, load, traffic};
use cogo_db::Kept;
use cogo_registry_core::{Ownership, PoolClaim, Pools};
use sqlx::PgPool;

/// The figures of the queues, and the leases of the pools.
#[derive(Debug)]
pub(super) struct Figures {
    database: PgPool,
    kept: Kept,
    /// What was seen beside figures that were all nothing; none while there are others.
    at_rest: Option<Traffic>,
    /// Whether the figures read last were all nothing.
    was_nothing: bool,
}

impl Figures {
    pub(super) fn of(database: &PgPool) -> Self {
        Self { database: database.clone(), kept: Kept::beside(database), at_rest: None, was_nothing: false }
    }

    /// Takes or renews these leases.
    pub(super) async fn own(
        &mut self,
        claims: &[&PoolClaim],
    ) -> Result<Vec<(String, Ownership)>, cogo_registry_core::Error> {
        let owned = self.kept.ask(claims, |connection, claims| Box::pin(Pools::own_all(connection, claims)));
        owned.await.map_err(cogo_registry_core::Error::Database)?
    }

    /// What waits, what is at work and what ended within `window`. While there was nothing the last time and nothing has
    /// come since, that is not counted again.
    pub(super) async fn read(&mut self, window: Duration) -> Result<Load, Error> {
        let mut now = None;
        if self.was_nothing {
            let seen = self.kept.ask(&(), |connection, ()| Box::pin(traffic(connection))).await??;
            // senders may give ids newer than that of the newest message: what comes beside such a one and goes at once is
            // missing from the rates of one look, and nothing else is lost
            if !seen.unfinished && self.at_rest == Some(seen) {
                return Ok(Load { window_s: window.as_secs_f64(), by_route: Vec::new() });
            }
            now = Some(seen);
        }
        self.at_rest = None;
        let figures = load(&self.database, window).await?;
        self.was_nothing = figures.by_route.is_empty();
        // asked before: what has come since then shows at the next look
        self.at_rest = now.filter(|_| self.was_nothing);
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use cogo_bus_core::{Bus, ClaimRequest, Completion};
    use cogo_contracts::{NewMessage, Route, Tenant};
    use cogo_test_support::{TestDatabase, database};
    use serde_json::json;

    use super::*;

    const ROUTE: Route = Route::constant("rag", "embed");
    const WINDOW: Duration = Duration::from_secs(300);

    /// Counting is forbidden from here on, or allowed again.
    async fn let_count(database: &TestDatabase, allowed: bool) {
        let change = if allowed {
            "alter table bus.hidden rename to dead_letters; alter table bus.claims rename column hidden to holder"
        } else {
            "alter table bus.claims rename column holder to hidden; alter table bus.dead_letters rename to hidden"
        };
        sqlx::raw_sql(change).execute(&database.pool).await.expect("the table is there");
    }

    #[tokio::test]
    async fn at_rest_nothing_is_counted_until_something_comes_even_if_it_goes_at_once() {
        let database = database().await;
        let (bus, mut figures) = (Bus::new(database.pool.clone()), Figures::of(&database.pool));
        for _ in 0..2 {
            assert!(figures.read(WINDOW).await.expect("figures").by_route.is_empty());
        }
        let_count(&database, false).await;
        let at_rest = figures.read(WINDOW).await.expect("nothing is counted");
        assert_eq!((at_rest.window_s, at_rest.by_route.len()), (300.0, 0));
        let_count(&database, true).await;

        bus.enqueue(&NewMessage::new(ROUTE, Some(Tenant::new("acme").expect("a name")), json!({})))
            .await
            .expect("sent");
        let request = ClaimRequest {
            route: &ROUTE,
            holder: "w",
            instance: None,
            max_messages: 1,
            lease: Duration::from_secs(60),
        };
        let [claimed] = &bus.claim(&request).await.expect("claimed")[..] else { panic!("there is one") };
        assert!(bus.complete(&claimed.fence(), "w", &Completion::default()).await.expect("done"));
        for _ in 0..2 {
            let seen = figures.read(WINDOW).await.expect("figures");
            assert_eq!(seen.by_route.iter().map(|route| route.done).sum::<i64>(), 1, "{seen:?}");
        }
    }
}
