//! How often and how much the reclaimer looks.

use serde::{Deserialize, Serialize};

/// Settings of the reclaimer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Milliseconds between two turns.
    pub reclaim_every_ms: u64,
    /// Messages taken back in one transaction.
    pub reclaim_batch: u32,
    /// Milliseconds without a beat after which an agent is suspect.
    pub suspect_after_ms: u64,
    /// Milliseconds without a beat after which an agent is dead and its messages are requeued.
    pub dead_after_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reclaim_every_ms: 1_000, reclaim_batch: 500, suspect_after_ms: 15_000, dead_after_ms: 30_000 }
    }
}
