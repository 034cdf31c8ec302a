//! Health: is the target alive, and does it answer without errors and in time?

use crate::{policy::Policy, sense::Target};

/// `alive * (s + 1) / (s + f + 2) * min(1, slo / latency)`.
///
/// `s` and `f` are the successes and failed attempts seen, each halved every half-life, as of the snapshot; the added
/// 1 and 2 are the mean of a Beta(1, 1) prior, so that an unknown target stands at one half. Latency is the moving
/// mean of the time in ms from sending to a good end, the objective `slo_ms` of the target; both from `orch_stats`.
/// Without an active agent in the registry it is 0.
pub(crate) fn score(target: &Target, policy: &Policy) -> f64 {
    if !target.live {
        return 0.0;
    }
    let stats = &target.stats;
    let kept = stats.kept(target.seen_at, policy.half_life());
    let successes = stats.ok_weight * kept;
    let failures = stats.fail_weight * kept;
    let reliability = (successes + 1.0) / (successes + failures + 2.0);
    let promptness = stats.latency_ms.map_or(1.0, |latency| target.slo_ms / latency.max(target.slo_ms));
    reliability * promptness
}
