//! Takes back what vanished workers held: leases that passed, agents that died, messages that outlived their time. Sends
//! what schedules have to send.

mod look;
mod schedules;
mod settings;

use std::{sync::Arc, time::Duration};

use cogo_bus_core::{Bus, Error, Fired};
use cogo_contracts::Route;
use cogo_registry_core::Registry;
use cogo_service_runtime::{Frame, Service};

pub use schedules::fire_during;
pub use settings::Settings;

use look::{FRESH, Look};

/// The process.
pub struct BusReclaimer;

impl Service for BusReclaimer {
    const NAME: &'static str = "bus-reclaimer";
    const DOMAIN: &'static str = "bus";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3018;
    const CAPABILITIES: &'static [&'static str] = &["reclaim"];
    const ROUTE: Option<Route> = None;
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        settings.check()
    }

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        let every = Duration::from_millis(settings.reclaim_every_ms);
        let look = Arc::new(Look::new(frame.pool()));
        let (bus, metrics, batch) = (frame.bus().clone(), frame.metrics().clone(), settings.reclaim_batch);
        let looking = Arc::clone(&look);
        frame.chore("reclaim", every, move || {
            let (look, bus, metrics) = (Arc::clone(&looking), bus.clone(), metrics.clone());
            async move {
                let reclaimed = reclaim(&look, &bus, batch).await?;
                metrics.reclaimed(reclaimed);
                Ok((reclaimed > 0).then(|| format!("requeued {reclaimed} messages whose lease had passed")))
            }
        });
        let (bus, metrics, looking) = (frame.bus().clone(), frame.metrics().clone(), Arc::clone(&look));
        let every = Duration::from_millis(settings.sweep_every_ms);
        frame.chore("expire", every, move || {
            let (look, bus, metrics) = (Arc::clone(&looking), bus.clone(), metrics.clone());
            async move {
                let expired = expire(&look, &bus, batch).await?;
                metrics.expired(expired);
                Ok((expired > 0).then(|| format!("gave up {expired} messages whose time to live had passed")))
            }
        });
        let registry = Registry::new(frame.pool().clone());
        let (suspect_after, dead_after) =
            (Duration::from_millis(settings.suspect_after_ms), Duration::from_millis(settings.dead_after_ms));
        let looking = Arc::clone(&look);
        frame.chore("sweep", every, move || {
            let (look, registry) = (Arc::clone(&looking), registry.clone());
            async move {
                let Some(outcome) = look.sweep(&registry, suspect_after, dead_after).await? else { return Ok(None) };
                let changed = outcome.suspected > 0 || outcome.died > 0;
                Ok(changed.then(|| format!("{} agents suspect, {} dead", outcome.suspected, outcome.died)))
            }
        });
        let bus = frame.bus().clone();
        let turn = Duration::from_millis(settings.schedule_every_ms);
        frame.chore("schedules", turn, move || {
            let (look, bus) = (Arc::clone(&look), bus.clone());
            async move {
                let fired = fire(&look, &bus, batch, turn).await?;
                let changed = fired.sent > 0 || fired.broken > 0;
                Ok(changed
                    .then(|| format!("sent {} scheduled messages, {} schedules broken", fired.sent, fired.broken)))
            }
        });
        Ok(())
    }
}

/// Requeues what is held by leases that have passed; answers how much.
async fn reclaim(look: &Look, bus: &Bus, batch: u32) -> Result<u64, Error> {
    if !look.overdue().await.leases {
        return Ok(0);
    }
    in_batches(batch, || bus.reclaim(batch)).await
}

/// Gives up what has outlived its time; answers how much.
async fn expire(look: &Look, bus: &Bus, batch: u32) -> Result<u64, Error> {
    if !look.overdue().await.outlived {
        return Ok(0);
    }
    in_batches(batch, || bus.expire(batch)).await
}

/// Fires what is due within this turn; what is due later is for the next.
async fn fire(look: &Look, bus: &Bus, batch: u32, turn: Duration) -> Result<Fired, Error> {
    if look.overdue().await.schedule.is_none_or(|wait| wait >= turn + FRESH) {
        return Ok(Fired::default());
    }
    fire_during(bus, batch, turn).await
}

/// Repeats a batched statement until a batch is not full; each batch is a transaction of its own.
async fn in_batches<F>(batch: u32, mut run: impl FnMut() -> F) -> Result<u64, Error>
where
    F: Future<Output = Result<u64, Error>>,
{
    let mut total = 0;
    loop {
        let rows = run().await?;
        total += rows;
        if rows < u64::from(batch) {
            return Ok(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use cogo_bus_core::{ClaimRequest, NewSchedule};
    use cogo_contracts::{NewMessage, Tenant};
    use serde_json::json;

    use super::*;

    const ROUTE: Route = Route::constant("test", "work");
    /// No lease is shorter.
    const MOMENT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_look_that_fails_stops_no_chore_whose_own_tables_are_well() {
        let database = cogo_test_support::database().await;
        let (bus, look) = (Bus::new(database.pool.clone()), Look::new(&database.pool));
        let tenant = Tenant::new("acme").unwrap();
        let held = NewMessage::new(ROUTE, Some(tenant.clone()), json!({}));
        bus.enqueue(&held).await.unwrap();
        let request = ClaimRequest { route: &ROUTE, holder: "w", instance: None, max_messages: 1, lease: MOMENT };
        assert_eq!(bus.claim(&request).await.unwrap().len(), 1);
        bus.enqueue(&NewMessage { ttl_ms: Some(1), ..held }).await.unwrap();
        tokio::time::sleep(MOMENT * 2).await;

        let change = async |statement: &'static str| sqlx::raw_sql(statement).execute(&database.pool).await.unwrap();
        change("alter table bus.schedules rename column next_at to hidden").await;
        assert_eq!(reclaim(&look, &bus, 10).await.unwrap(), 1);
        assert_eq!(expire(&look, &bus, 10).await.unwrap(), 1);
        assert!(fire(&look, &bus, 10, MOMENT).await.is_err(), "what is broken itself shows that it is");
        change("alter table bus.schedules rename column hidden to next_at").await;

        // nor does it stop the schedules where the look alone is broken
        let schedule = NewSchedule::new("ticks", tenant, "* * * * * *", ROUTE, json!({}));
        bus.upsert_schedule(&schedule).await.unwrap();
        change("alter function bus.overdue rename to hidden").await;
        tokio::time::sleep(FRESH).await;
        let fired = fire(&look, &bus, 10, Duration::from_secs(3)).await.unwrap();
        assert!(fired.sent > 0, "{fired:?}");
    }
}
