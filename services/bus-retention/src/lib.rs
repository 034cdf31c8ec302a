//! Removes what is finished and old: whole tasks, then audit rows. Never an unfinished message.

use std::time::Duration;

use cogo_bus_core::Bus;
use cogo_contracts::Route;
use cogo_registry_core::Registry;
use cogo_service_runtime::{Frame, Service};
use serde::{Deserialize, Serialize};

/// Pause between two batches, so that retention never competes with the work.
const BREATH: Duration = Duration::from_millis(50);

/// Settings of retention.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Days that finished tasks and audit rows are kept; fractions are allowed.
    pub retention_days: f64,
    /// Milliseconds between two turns, at least 1000.
    pub retention_every_ms: u64,
    /// Rows removed in one transaction, 1 to 100000.
    pub retention_batch: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { retention_days: 14.0, retention_every_ms: 3_600_000, retention_batch: 1_000 }
    }
}

/// The process.
pub struct BusRetention;

impl Service for BusRetention {
    const NAME: &'static str = "bus-retention";
    const DOMAIN: &'static str = "bus";
    const LEVEL: i16 = 2;
    const PORT: u16 = 3019;
    const CAPABILITIES: &'static [&'static str] = &["retention"];
    const ROUTE: Option<Route> = None;
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        let Settings { retention_days, retention_every_ms, retention_batch } = *settings;
        if retention_every_ms < 1_000 {
            return Err(format!("retention_every_ms is {retention_every_ms}, it must be at least 1000"));
        }
        if !(1..=100_000).contains(&retention_batch) {
            return Err(format!("retention_batch is {retention_batch}, it must be 1 to 100000"));
        }
        kept(retention_days).map(|_| ()).map_err(|error| error.to_string())
    }

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        let keep = kept(settings.retention_days)?;
        let bus = frame.bus().clone();
        let batch = settings.retention_batch;
        frame.chore("retention", Duration::from_millis(settings.retention_every_ms), move || {
            let bus = bus.clone();
            async move {
                let (messages, events) = remove(&bus, keep, batch).await?;
                Ok((messages + events > 0).then(|| format!("removed {messages} messages and {events} audit rows")))
            }
        });
        let registry = Registry::new(frame.pool().clone());
        frame.chore("registry-retention", Duration::from_millis(settings.retention_every_ms), move || {
            let registry = registry.clone();
            async move {
                let removed = registry.retain(keep, batch.cast_signed()).await?;
                Ok((removed > 0).then(|| format!("forgot {removed} runs that ended")))
            }
        });
        Ok(())
    }
}

/// Removes everything older than `keep`, batch by batch; safe to break off and to run twice. Answers messages and
/// audit rows removed.
///
/// # Errors
/// When a batch fails; earlier ones stand.
pub async fn remove(bus: &Bus, keep: Duration, batch: u32) -> Result<(u64, u64), cogo_bus_core::Error> {
    let mut messages = 0;
    loop {
        let removed = bus.retain(keep, batch).await?;
        messages += removed;
        if removed < u64::from(batch) {
            break;
        }
        tokio::time::sleep(BREATH).await;
    }
    let mut events = 0;
    loop {
        let removed = bus.retain_events(keep, batch).await?;
        events += removed;
        if removed < u64::from(batch) {
            return Ok((messages, events));
        }
        tokio::time::sleep(BREATH).await;
    }
}

fn kept(days: f64) -> anyhow::Result<Duration> {
    // a day is the least, so that a slip of the unit cannot empty the table
    let legal = days.is_finite() && (1.0..=36_500.0).contains(&days);
    anyhow::ensure!(legal, "RETENTION_DAYS is {days}, it must be 1 to 36500");
    Ok(Duration::from_secs_f64(days * 86_400.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert_eq!(BusRetention::check(&Settings::default()), Ok(()));
        for (settings, key) in [
            (Settings { retention_every_ms: 0, ..Settings::default() }, "retention_every_ms is 0"),
            (Settings { retention_batch: 0, ..Settings::default() }, "retention_batch is 0"),
            (Settings { retention_batch: 100_001, ..Settings::default() }, "retention_batch is 100001"),
            (Settings { retention_days: 0.0, ..Settings::default() }, "RETENTION_DAYS is 0"),
        ] {
            assert!(BusRetention::check(&settings).is_err_and(|refusal| refusal.contains(key)), "{settings:?}");
        }
    }

    #[test]
    fn retention_without_reason_is_refused() {
        assert_eq!(kept(1.5).unwrap(), Duration::from_secs(129_600));
        for days in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.5] {
            assert!(kept(days).is_err(), "{days}");
        }
    }
}
