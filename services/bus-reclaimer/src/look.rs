//! One look at the database for all chores that come round at the same time, by a connection that is kept for it.

use std::time::Duration;

use cogo_bus_core::{Overdue, overdue};
use cogo_db::Kept;
use cogo_registry_core::{Error as RegistryError, Registry, SweepOutcome};
use sqlx::PgPool;
use tokio::{sync::Mutex, time::Instant};
use tracing::warn;

/// What was seen by one chore serves the others whose turn it is at this moment.
pub(crate) const FRESH: Duration = Duration::from_millis(100);

/// Sweeps within the time after which a silent agent is dead, however well all of them are.
const SWEEPS: u32 = 6;
/// No sweep rests longer: what a run claimed in its last moment is looked for within the two minutes after its end only.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// What is believed when nobody can tell.
const EVERYTHING: Overdue = Overdue { leases: true, outlived: true, schedule: Some(Duration::ZERO) };

/// Says whether there is anything to do, so that the statements that do it are spared while there is not.
pub(crate) struct Look(Mutex<State>);

struct State {
    kept: Kept,
    seen: Option<(Instant, Overdue)>,
    /// Nobody needs a sweep before.
    sweeps_at: Option<Instant>,
}

impl Look {
    /// Looks at the database of this pool.
    pub(crate) fn new(pool: &PgPool) -> Self {
        Self(Mutex::new(State { kept: Kept::beside(pool), seen: None, sweeps_at: None }))
    }

    /// What waits for somebody to see to it: everything, if that cannot be told. A look only spares work, so none that
    /// fails may keep the chores from it.
    pub(crate) async fn overdue(&self) -> Overdue {
        let mut state = self.0.lock().await;
        if let Some((_, seen)) = state.seen.filter(|(at, _)| at.elapsed() < FRESH) {
            return seen;
        }
        let at = Instant::now();
        let answer = state.kept.ask(&(), |connection, ()| Box::pin(overdue(connection))).await;
        let (at, seen) = match answer.map_err(Into::into).flatten() {
            Ok(seen) => (at, seen),
            Err(error) => {
                warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "look failed, so the chores do their work unasked"
                );
                // those who waited meanwhile need not wait for the same again
                (Instant::now(), EVERYTHING)
            }
        };
        state.seen = Some((at, seen));
        seen
    }

    /// Sweeps the agents; none while nobody can have been silent for long enough to be suspected.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn sweep(
        &self,
        registry: &Registry,
        suspect_after: Duration,
        dead_after: Duration,
    ) -> Result<Option<SweepOutcome>, RegistryError> {
        let now = Instant::now();
        if self.0.lock().await.sweeps_at.is_some_and(|at| now < at) {
            return Ok(None);
        }
        // without the lock: a sweep that has much to do must not hold up the others
        let outcome = registry.sweep(suspect_after, dead_after).await?;
        let mut state = self.0.lock().await;
        state.sweeps_at = None;
        let well_for = state.kept.ask(&suspect_after, |connection, &suspect_after| {
            Box::pin(Registry::all_well_for(connection, suspect_after))
        });
        match well_for.await.map_err(RegistryError::Database).flatten() {
            Ok(well_for) => state.sweeps_at = Some(now + well_for.min(dead_after / SWEEPS).min(LONGEST_REST)),
            Err(error) => {
                warn!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "look failed, so the next sweep is not spared"
                );
            }
        }
        Ok(Some(outcome))
    }
}

#[cfg(test)]
mod tests {
    use cogo_bus_core::Bus;
    use cogo_contracts::{NewMessage, Route, Tenant};
    use serde_json::json;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn what_was_seen_serves_those_whose_turn_it_is_and_nobody_later() {
        let database = cogo_test_support::database().await;
        let (bus, look) = (Bus::new(database.pool.clone()), Look::new(&database.pool));
        assert!(!look.overdue().await.outlived);
        let route = Route::constant("test", "work");
        let message =
            NewMessage { ttl_ms: Some(1), ..NewMessage::new(route, Some(Tenant::new("acme").unwrap()), json!({})) };
        bus.enqueue(&message).await.unwrap();
        let pid = backend_of(&look).await;
        tokio::time::sleep(FRESH * 2).await;
        assert!(look.overdue().await.outlived);
        bus.expire(10).await.unwrap();
        assert!(look.overdue().await.outlived, "that was asked just now");
        assert_eq!(backend_of(&look).await, pid, "one connection is kept for all looks");
        // a connection that breaks does not cost a look
        sqlx::query("select pg_terminate_backend($1, 10000)").bind(pid).execute(&database.pool).await.unwrap();
        tokio::time::sleep(FRESH * 2).await;
        assert_eq!(look.overdue().await, Overdue { leases: false, outlived: false, schedule: None });
        assert_ne!(backend_of(&look).await, pid);
    }

    async fn backend_of(look: &Look) -> i32 {
        let mut state = look.0.lock().await;
        let pid = state
            .kept
            .ask(&(), |connection, ()| Box::pin(sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection)));
        pid.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn it_sweeps_first_then_when_there_may_be_a_reason_and_now_and_then() {
        let database = cogo_test_support::database().await;
        let (registry, look) = (Registry::new(database.pool.clone()), Look::new(&database.pool));
        let sweep = async || look.sweep(&registry, SECOND, HOUR).await.unwrap().is_some();
        assert!(sweep().await, "the first time");
        let well_until = look.0.lock().await.sweeps_at.unwrap();
        assert!(!sweep().await || Instant::now() >= well_until, "there is nobody");
        tokio::time::sleep_until(well_until).await;
        assert!(sweep().await, "somebody may have been silent for so long by now");

        // however well they are, long before a sweep would come too late
        look.0.lock().await.sweeps_at = None;
        let asked = Instant::now();
        assert!(look.sweep(&registry, HOUR, HOUR * 2).await.unwrap().is_some());
        let rest = look.0.lock().await.sweeps_at.unwrap() - asked;
        assert!(rest <= LONGEST_REST + SECOND * 60, "{rest:?}");
    }
}
