//! Takes back what vanished workers held: leases that passed, agents that died, messages that outlived their time. Sends
//! what schedules have to send.

mod schedules;
mod settings;

use std::time::Duration;

use cogo_contracts::Route;
use cogo_registry_core::Registry;
use cogo_service_runtime::{Frame, Service};

pub use schedules::fire_during;
pub use settings::Settings;

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
        let (bus, metrics, batch) = (frame.bus().clone(), frame.metrics().clone(), settings.reclaim_batch);
        frame.chore("reclaim", every, move || {
            let (bus, metrics) = (bus.clone(), metrics.clone());
            async move {
                let reclaimed = in_batches(batch, || bus.reclaim(batch)).await?;
                metrics.reclaimed(reclaimed);
                Ok((reclaimed > 0).then(|| format!("requeued {reclaimed} messages whose lease had passed")))
            }
        });
        let (bus, metrics) = (frame.bus().clone(), frame.metrics().clone());
        let every = Duration::from_millis(settings.sweep_every_ms);
        frame.chore("expire", every, move || {
            let (bus, metrics) = (bus.clone(), metrics.clone());
            async move {
                let expired = in_batches(batch, || bus.expire(batch)).await?;
                metrics.expired(expired);
                Ok((expired > 0).then(|| format!("gave up {expired} messages whose time to live had passed")))
            }
        });
        let registry = Registry::new(frame.pool().clone());
        let (suspect_after, dead_after) =
            (Duration::from_millis(settings.suspect_after_ms), Duration::from_millis(settings.dead_after_ms));
        frame.chore("sweep", every, move || {
            let registry = registry.clone();
            async move {
                let outcome = registry.sweep(suspect_after, dead_after).await?;
                let changed = outcome.suspected > 0 || outcome.died > 0;
                Ok(changed.then(|| format!("{} agents suspect, {} dead", outcome.suspected, outcome.died)))
            }
        });
        let bus = frame.bus().clone();
        let turn = Duration::from_millis(settings.schedule_every_ms);
        frame.chore("schedules", turn, move || {
            let bus = bus.clone();
            async move {
                let fired = fire_during(&bus, batch, turn).await?;
                let changed = fired.sent > 0 || fired.broken > 0;
                Ok(changed
                    .then(|| format!("sent {} scheduled messages, {} schedules broken", fired.sent, fired.broken)))
            }
        });
        Ok(())
    }
}

/// Repeats a batched statement until a batch is not full; each batch is a transaction of its own.
async fn in_batches<F>(batch: u32, mut run: impl FnMut() -> F) -> Result<u64, cogo_bus_core::Error>
where
    F: Future<Output = Result<u64, cogo_bus_core::Error>>,
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
