//! Removes what is finished and old: whole tasks, audit rows, partial results, artifacts. Never an unfinished message. Makes
//! the days to come.

use std::time::Duration;

use cogo_bus_core::{Bus, Error};
use cogo_contracts::Route;
use cogo_registry_core::{Kv, Registry};
use cogo_service_runtime::{Frame, Service};
use serde::{Deserialize, Serialize};

/// Pause between two batches, so that retention never competes with the work.
const BREATH: Duration = Duration::from_millis(50);

/// Pause after a batch that came to nothing, as when somebody had open what was to go.
const SECOND_TRY: Duration = Duration::from_secs(1);

/// Batches in a row that come to nothing before a turn is over: the first may only prepare the days that are to go.
const IDLE_BATCHES: u32 = 2;

/// Longest time between two looks for days to come that have no part yet; they are made three days ahead.
const LOOK_AHEAD: Duration = Duration::from_secs(3_600);

/// Time between two removals of shared values whose time is over; readers pass over them, so this is about room only.
const SWEEP_VALUES: Duration = Duration::from_secs(60);

/// Most artifacts removed in one transaction.
const LARGE_BATCH: u32 = 100;

/// Settings of retention.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Days that finished tasks and audit rows are kept; tasks go by whole days (UTC), once all of a day is older.
    pub retention_days: f64,
    /// Milliseconds between two turns, at least 1000.
    pub retention_every_ms: u64,
    /// Rows removed in one transaction, 1 to 100000.
    pub retention_batch: u32,
    /// Hours that partial results are kept after their message has ended; the results themselves stand in the messages.
    /// At least 1.
    pub retention_partials_hours: f64,
    /// Days beyond `retention_days` that an artifact is kept after it was last put or read; a task that takes no longer
    /// than this refers to it to the end. At least 1.
    pub retention_artifacts_extra_days: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention_days: 14.0,
            retention_every_ms: 3_600_000,
            retention_batch: 1_000,
            retention_partials_hours: 24.0,
            retention_artifacts_extra_days: 16.0,
        }
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
        let Settings { retention_days, retention_every_ms, retention_batch, .. } = *settings;
        if retention_every_ms < 1_000 {
            return Err(format!("retention_every_ms is {retention_every_ms}, it must be at least 1000"));
        }
        if !(1..=100_000).contains(&retention_batch) {
            return Err(format!("retention_batch is {retention_batch}, it must be 1 to 100000"));
        }
        kept(retention_days).map_err(|error| error.to_string())?;
        kept_by_reference(settings).map(|_| ()).map_err(|error| error.to_string())
    }

    async fn start(frame: &mut Frame<Settings>) -> anyhow::Result<()> {
        let settings = frame.settings().clone();
        let keep = kept(settings.retention_days)?;
        let bus = frame.bus().clone();
        let batch = settings.retention_batch;
        let every = Duration::from_millis(settings.retention_every_ms);
        // apart from the removal, which may take hours and fail
        let ahead = bus.clone();
        frame.chore("days-ahead", every.min(LOOK_AHEAD), move || {
            let bus = ahead.clone();
            async move {
                let made = bus.ensure_days_ahead().await?;
                Ok((made > 0).then(|| format!("made the parts of {made} days to come")))
            }
        });
        frame.chore("retention", every, move || {
            let bus = bus.clone();
            async move {
                let (messages, events) = remove(&bus, keep, batch).await?;
                Ok((messages + events > 0).then(|| format!("removed {messages} messages and {events} audit rows")))
            }
        });
        let (partials, artifacts) = kept_by_reference(&settings)?;
        let bus = frame.bus().clone();
        frame.chore("payload-retention", every, move || {
            let bus = bus.clone();
            async move {
                let (parts, files) = remove_payloads(&bus, partials, artifacts, batch).await?;
                Ok((parts + files > 0).then(|| format!("removed {parts} partial results and {files} artifacts")))
            }
        });
        let bus = frame.bus().clone();
        frame.chore("broadcast-retention", every, move || {
            let bus = bus.clone();
            async move {
                let removed = remove_broadcasts(&bus, batch).await?;
                Ok((removed > 0).then(|| format!("removed {removed} broadcasts that had expired")))
            }
        });
        let registry = Registry::new(frame.pool().clone());
        frame.chore("registry-retention", every, move || {
            let registry = registry.clone();
            async move {
                let removed = registry.retain(keep, batch.cast_signed()).await?;
                Ok((removed > 0).then(|| format!("forgot {removed} runs that ended")))
            }
        });
        let kv = Kv::new(frame.pool().clone(), "bus");
        frame.chore("kv_sweep", SWEEP_VALUES, move || {
            let kv = kv.clone();
            async move {
                let removed = sweep_values(&kv, batch).await?;
                Ok((removed > 0).then(|| format!("removed {removed} shared values whose time was over")))
            }
        });
        Ok(())
    }
}

/// Removes the shared values of every namespace whose time is over, batch by batch; answers how many.
///
/// # Errors
/// When a batch fails; earlier ones stand.
pub async fn sweep_values(kv: &Kv, batch: u32) -> Result<u64, sqlx::Error> {
    let most = i32::try_from(batch).unwrap_or(i32::MAX);
    in_batches(batch, || async { Ok(u64::from(kv.sweep(most).await?.unsigned_abs())) }).await
}

/// Removes everything older than `keep`, batch by batch; safe to break off and to run twice. Answers messages and
/// audit rows removed.
///
/// # Errors
/// When a batch fails; earlier ones stand, and one of messages keeps no audit row from being removed.
pub async fn remove(bus: &Bus, keep: Duration, batch: u32) -> Result<(u64, u64), Error> {
    let messages = remove_messages(bus, keep, batch).await;
    let events = in_batches(batch, || bus.retain_events(keep, batch)).await;
    Ok((messages?, events?))
}

/// A batch is one day, so that none tells by its size whether it was the last.
async fn remove_messages(bus: &Bus, keep: Duration, batch: u32) -> Result<u64, Error> {
    let (mut total, mut idle) = (0, 0);
    let mut parts = bus.parts().await?;
    loop {
        let removed = bus.retain(keep, batch).await?;
        total += removed;
        let left = bus.parts().await?;
        // a day that was empty goes without a message; a few that have just become old enough are no reason to go on
        idle = if removed >= u64::from(batch) || left < parts { 0 } else { idle + 1 };
        parts = left;
        match idle {
            0 => tokio::time::sleep(BREATH).await,
            IDLE_BATCHES.. => return Ok(total),
            _ => tokio::time::sleep(SECOND_TRY).await,
        }
    }
}

/// Removes partial results older than `partials` and artifacts unused for `artifacts`, batch by batch; safe to break off
/// and to run twice. Answers how many of each went.
///
/// # Errors
/// When a batch fails; earlier ones stand, and one of parts keeps no artifact from being removed.
pub async fn remove_payloads(
    bus: &Bus,
    partials: Duration,
    artifacts: Duration,
    batch: u32,
) -> Result<(u64, u64), Error> {
    let parts = in_batches(batch, || bus.retain_partials(partials, batch)).await;
    // each may be 16 MiB, so fewer of them make a batch
    let few = batch.min(LARGE_BATCH);
    let files = in_batches(few, || bus.retain_artifacts(artifacts, few)).await;
    Ok((parts?, files?))
}

/// Removes every broadcast that has expired, batch by batch; safe to break off and to run twice. Answers how many went.
///
/// # Errors
/// When a batch fails; earlier ones stand.
pub async fn remove_broadcasts(bus: &Bus, batch: u32) -> Result<u64, Error> {
    in_batches(batch, || bus.retain_broadcasts(batch)).await
}

/// Repeats a batched statement until a batch is not full; each batch is a transaction of its own.
async fn in_batches<F, E>(batch: u32, run: impl Fn() -> F) -> Result<u64, E>
where
    F: Future<Output = Result<u64, E>>,
{
    let mut total = 0;
    loop {
        let removed = run().await?;
        total += removed;
        if removed < u64::from(batch) {
            return Ok(total);
        }
        tokio::time::sleep(BREATH).await;
    }
}

/// How long partial results and artifacts are kept.
fn kept_by_reference(settings: &Settings) -> anyhow::Result<(Duration, Duration)> {
    let Settings { retention_partials_hours: hours, retention_artifacts_extra_days: extra, .. } = *settings;
    let legal = hours.is_finite() && (1.0..=876_000.0).contains(&hours);
    anyhow::ensure!(legal, "retention_partials_hours is {hours}, it must be 1 to 876000");
    let legal = extra.is_finite() && (1.0..=36_500.0).contains(&extra);
    anyhow::ensure!(legal, "retention_artifacts_extra_days is {extra}, it must be 1 to 36500");
    let days = settings.retention_days;
    // never longer than the message that they belong to
    let hours = hours.min(days * 24.0);
    Ok((Duration::from_secs_f64(hours * 3_600.0), Duration::from_secs_f64((days + extra) * 86_400.0)))
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
            (Settings { retention_partials_hours: 0.5, ..Settings::default() }, "retention_partials_hours is 0.5"),
            (Settings { retention_artifacts_extra_days: 0.5, ..Settings::default() }, "retention_artifacts_extra_days"),
        ] {
            assert!(BusRetention::check(&settings).is_err_and(|refusal| refusal.contains(key)), "{settings:?}");
        }
    }

    #[test]
    fn payloads_are_kept_by_the_time_of_their_messages() {
        let day = Duration::from_secs(86_400);
        assert_eq!(kept_by_reference(&Settings::default()).unwrap(), (day, 30 * day));
        let settings = Settings { retention_days: 2.0, retention_partials_hours: 100.0, ..Settings::default() };
        assert_eq!(kept_by_reference(&settings).unwrap(), (2 * day, 18 * day));
    }

    #[test]
    fn retention_without_reason_is_refused() {
        assert_eq!(kept(1.5).unwrap(), Duration::from_secs(129_600));
        for days in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.5] {
            assert!(kept(days).is_err(), "{days}");
        }
    }
}
