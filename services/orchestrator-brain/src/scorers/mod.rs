//! The four scorers: pure functions of what is known, each in 0..=1, higher is better.

pub(crate) mod cost;
pub(crate) mod health;
pub(crate) mod kg;
pub(crate) mod quality;

/// Rounds to six decimals, so that a score that is read back from its record is the very number that was used.
pub(crate) fn recordable(score: f64) -> f64 {
    (score.clamp(0.0, 1.0) * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use cogo_contracts::routes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Policy, Settings, Stats, Target,
        diagnose::scores,
        scorers::{cost::expected_usd, kg::Coverage},
    };

    fn policy() -> Policy {
        Policy::new(&Settings::default()).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn target(stats: Stats) -> Target {
        Target {
            id: 1,
            intent: "ask".to_owned(),
            tenant: None,
            route: routes::CHAT,
            model: None,
            slo_ms: 1000.0,
            ttl_ms: 60_000,
            max_cost_usd: Some(0.1),
            max_tokens: None,
            price_usd_per_1k_tokens: None,
            cost_prior_usd: 0.0,
            uses_knowledge: true,
            live: true,
            stats,
            seen_at: at(0),
        }
    }

    #[test]
    fn unknown_target_stands_at_the_prior() {
        let scores = scores(&target(Stats::default()), Some(0.1), Coverage::Unknown, &policy());
        assert_eq!((scores.health, scores.quality, scores.cost, scores.kg), (0.5, 0.5, 1.0, 0.5));
    }

    #[test]
    fn health_is_zero_without_an_agent_and_falls_with_failures_and_latency() {
        let of = |stats: Stats| health::score(&target(stats), &policy());
        let good = Stats { ok_weight: 8.0, ..Stats::default() };
        assert_eq!(health::score(&Target { live: false, ..target(good.clone()) }, &policy()), 0.0);
        assert_eq!(of(good.clone()), 0.9);
        assert_eq!(of(Stats { latency_ms: Some(2000.0), ..good.clone() }), 0.45);
        assert_eq!(of(Stats { fail_weight: 8.0, ..good.clone() }), 0.5);
        // what is a half-life old counts half: (4 + 1) / (4 + 2)
        let old = Target { seen_at: at(60), ..target(Stats { learned_at: Some(at(0)), ..good }) };
        assert_eq!(health::score(&old, &policy()), 5.0 / 6.0);
    }

    #[test]
    fn quality_is_the_share_of_good_ends_with_a_prior() {
        assert_eq!(quality::score(&Stats { done: 2, failed: 0, retried: 9, ..Stats::default() }), 0.75);
        assert_eq!(quality::score(&Stats { done: 0, failed: 2, ..Stats::default() }), 0.25);
    }

    #[test]
    fn cost_compares_what_was_used_with_the_budget() {
        let dear = Stats { usage_count: 3, cost_usd_sum: 0.2, tokens_sum: 8000.0, ..Stats::default() };
        let of = |target: &Target, budget| cost::score(target, budget, &policy());
        assert_eq!(of(&target(dear.clone()), Some(0.1)), 0.5);
        assert_eq!(of(&target(dear.clone()), None), 0.5);
        assert_eq!(of(&target(dear.clone()), Some(0.0)), 0.0);
        assert_eq!(of(&target(Stats::default()), Some(0.0)), 1.0);
        let priced = Target { price_usd_per_1k_tokens: Some(0.1), ..target(dear) };
        assert_eq!(expected_usd(&priced), 0.2);
        assert_eq!(expected_usd(&Target { cost_prior_usd: 0.4, ..target(Stats::default()) }), 0.4);
    }

    #[test]
    fn kg_counts_only_where_knowledge_is_used() {
        let reader = target(Stats::default());
        assert_eq!(kg::score(&reader, Coverage::Indexed), 1.0);
        assert_eq!(kg::score(&reader, Coverage::Nothing), 0.0);
        assert_eq!(kg::score(&Target { uses_knowledge: false, ..reader }, Coverage::Nothing), 0.5);
    }

    fn any_stats() -> impl Strategy<Value = Stats> {
        let counts = (0..i64::MAX, 0..i64::MAX, 0..i64::MAX);
        let sums = (0.0..1e12, 0.0..1e15, 0.0..1e9, 0.0..1e9);
        let latest = (proptest::option::of(0.0..1e12), proptest::option::of(-1_000_000_i64..1_000_000));
        (counts, sums, latest).prop_map(|((done, failed, usage_count), sums, (latency_ms, learned))| Stats {
            decisions: 0,
            done,
            failed,
            retried: 0,
            usage_count,
            cost_usd_sum: sums.0,
            tokens_sum: sums.1,
            ok_weight: sums.2,
            fail_weight: sums.3,
            latency_ms,
            learned_at: learned.map(at),
        })
    }

    proptest! {
        #[test]
        fn scores_and_totals_stay_between_zero_and_one(
            stats in any_stats(),
            budget in proptest::option::of(0.0..1e6),
            price in proptest::option::of(0.0..1000.0),
            prior in 0.0..1e6,
            live in any::<bool>(),
        ) {
            let target = Target { price_usd_per_1k_tokens: price, cost_prior_usd: prior, live, ..target(stats) };
            for coverage in [Coverage::Indexed, Coverage::Nothing, Coverage::Unknown] {
                let scores = scores(&target, budget, coverage, &policy());
                for score in [scores.health, scores.quality, scores.cost, scores.kg, policy().weights.total(&scores)] {
                    prop_assert!((0.0..=1.0).contains(&score), "{scores:?}");
                }
            }
        }

        #[test]
        fn recorded_scores_read_back_as_they_were(score in 0.0..=1.0) {
            let score = recordable(score);
            let text = serde_json::to_string(&score).unwrap();
            prop_assert_eq!(serde_json::from_str::<f64>(&text).unwrap().to_bits(), score.to_bits());
        }
    }
}
