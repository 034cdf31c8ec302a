//! Cost: how much of the budget will the work probably take?

use crate::{policy::Policy, sense::Target};

/// `1 - min(1, expected / budget)`, both in US dollars; without a budget the policy's reference stands in for it.
pub(crate) fn score(target: &Target, budget_usd: Option<f64>, policy: &Policy) -> f64 {
    let expected = expected_usd(target);
    let budget = budget_usd.unwrap_or(policy.reference_cost_usd);
    if expected <= 0.0 {
        return 1.0;
    }
    if budget <= 0.0 {
        return 0.0;
    }
    1.0 - (expected / budget).min(1.0)
}

/// Expected cost of a message in US dollars: the mean over reported usage, the target's prior counting as one report.
///
/// Where workers reported tokens but no money, the target's price per 1,000 tokens gives the money. Sums from
/// `orch_stats`, prior and price from `orch_targets`.
pub(crate) fn expected_usd(target: &Target) -> f64 {
    let by_tokens = target.price_usd_per_1k_tokens.map_or(0.0, |price| target.stats.tokens_sum / 1000.0 * price);
    let observed = target.stats.cost_usd_sum.max(by_tokens);
    #[expect(clippy::cast_precision_loss, reason = "a mean needs no exact count beyond 2^53 reports")]
    let reports = target.stats.usage_count as f64;
    (target.cost_prior_usd + observed) / (1.0 + reports)
}
