//! When the time to live of a claimed message passes, by the clock of whoever works on it.

use std::time::Duration;

use cogo_bus_core::Claimed;
use tokio::time::Instant;

/// Why a message fails whose time had passed before its handler was called; `bus.claim` says the same.
pub(crate) const BEFORE: &str = "time to live passed before it was started";
/// Why a message fails whose time passes under its handler.
pub(crate) const MEANWHILE: &str = "time to live passed while it was worked on";

/// Counted from when the claim was `asked` for, which is never later than the database counts: its answer takes time, and
/// what it brings may wait for others. None without a time to live.
pub(crate) fn of(claimed: &Claimed, asked: Instant) -> Option<Instant> {
    claimed.remaining_ms.map(|left| asked + Duration::from_millis(left.max(0).unsigned_abs()))
}

/// Whether the time has passed.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// Waits until the time passes; for ever without one.
pub(crate) async fn passes(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
