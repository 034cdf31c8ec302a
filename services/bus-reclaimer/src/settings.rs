//! How often and how much the reclaimer looks.

use serde::{Deserialize, Serialize};

/// Settings of the reclaimer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Milliseconds between two looks for leases that have passed, at least 100.
    pub reclaim_every_ms: u64,
    /// Milliseconds between two looks for agents that fell silent and for messages whose time has passed, at least 100.
    pub sweep_every_ms: u64,
    /// Messages taken back in one transaction, 1 to 10000.
    pub reclaim_batch: u32,
    /// Milliseconds without a beat after which an agent is suspect; fewer than `dead_after_ms`.
    pub suspect_after_ms: u64,
    /// Milliseconds without a beat after which an agent is dead and its messages are requeued.
    pub dead_after_ms: u64,
    /// Milliseconds between two looks for new or changed schedules, 100 to 5000; what is known to be due is on time.
    pub schedule_every_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            reclaim_every_ms: 1_000,
            sweep_every_ms: 2_000,
            reclaim_batch: 500,
            suspect_after_ms: 15_000,
            dead_after_ms: 30_000,
            schedule_every_ms: 2_000,
        }
    }
}

impl Settings {
    /// Refuses what would spin, never end, or bury the living.
    ///
    /// # Errors
    /// When a number is out of its range; the text names its key.
    pub fn check(&self) -> Result<(), String> {
        let Self {
            reclaim_every_ms,
            sweep_every_ms,
            reclaim_batch,
            suspect_after_ms,
            dead_after_ms,
            schedule_every_ms,
        } = *self;
        for (key, every_ms) in [("reclaim_every_ms", reclaim_every_ms), ("sweep_every_ms", sweep_every_ms)] {
            if every_ms < 100 {
                return Err(format!("{key} is {every_ms}, it must be at least 100"));
            }
        }
        if !(1..=10_000).contains(&reclaim_batch) {
            return Err(format!("reclaim_batch is {reclaim_batch}, it must be 1 to 10000"));
        }
        if suspect_after_ms == 0 || suspect_after_ms >= dead_after_ms {
            return Err(format!(
                "suspect_after_ms is {suspect_after_ms} and dead_after_ms {dead_after_ms}, the first must be at least 1 and the smaller one"
            ));
        }
        if !(100..=5_000).contains(&schedule_every_ms) {
            return Err(format!("schedule_every_ms is {schedule_every_ms}, it must be 100 to 5000"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert_eq!(Settings::default().check(), Ok(()));
        for (settings, key) in [
            (Settings { reclaim_every_ms: 0, ..Settings::default() }, "reclaim_every_ms is 0"),
            (Settings { sweep_every_ms: 99, ..Settings::default() }, "sweep_every_ms is 99"),
            (Settings { reclaim_batch: 0, ..Settings::default() }, "reclaim_batch is 0"),
            (Settings { reclaim_batch: 10_001, ..Settings::default() }, "reclaim_batch is 10001"),
            (Settings { suspect_after_ms: 30_000, ..Settings::default() }, "suspect_after_ms is 30000"),
            (Settings { suspect_after_ms: 0, ..Settings::default() }, "suspect_after_ms is 0"),
            (Settings { schedule_every_ms: 0, ..Settings::default() }, "schedule_every_ms is 0"),
            (Settings { schedule_every_ms: 60_000, ..Settings::default() }, "schedule_every_ms is 60000"),
        ] {
            assert!(settings.check().is_err_and(|refusal| refusal.contains(key)), "{settings:?}");
        }
    }
}
