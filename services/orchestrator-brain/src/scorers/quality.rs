//! Quality: how often did work on this intent end well on the target?

use crate::update::Stats;

/// `(done + 1) / (done + failed + 2)` over all messages that ended, retries that were made good included as done.
///
/// The mean of a Beta(1, 1) prior: one half before anything is known. Counts from `orch_stats`, which keeps one row
/// for each target, hence for each pair of intent and target.
#[expect(clippy::cast_precision_loss, reason = "a share needs no exact count beyond 2^53 messages")]
pub(crate) fn score(stats: &Stats) -> f64 {
    (stats.done as f64 + 1.0) / (stats.done as f64 + stats.failed as f64 + 2.0)
}
