//! Update: what is known of a target, and how one outcome changes it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::evaluate::{Ending, Outcome};

/// Weight of the newest latency in the moving mean; 0.2 forgets nine tenths within ten outcomes.
const LATENCY_ALPHA: f64 = 0.2;

/// What was observed of a target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, sqlx::FromRow)]
pub struct Stats {
    /// How often it was picked.
    pub decisions: i64,
    /// Messages that it ended well.
    pub done: i64,
    /// Messages that became dead letters.
    pub failed: i64,
    /// Attempts that failed and were followed by another.
    pub retried: i64,
    /// Outcomes that reported usage.
    pub usage_count: i64,
    /// US dollars over these.
    pub cost_usd_sum: f64,
    /// Tokens over these.
    pub tokens_sum: f64,
    /// Successes, each halved every half-life, as of `learned_at`.
    pub ok_weight: f64,
    /// Failed attempts, likewise.
    pub fail_weight: f64,
    /// Moving mean of the time in ms from sending to a good end.
    pub latency_ms: Option<f64>,
    /// Time of the newest outcome.
    pub learned_at: Option<DateTime<Utc>>,
}

impl Stats {
    /// Counts one outcome. Outcomes that come late are counted as if they came in time for the newest one.
    pub(crate) fn learn(&mut self, outcome: &Outcome, half_life: Duration) {
        let kept = self.kept(outcome.at, half_life);
        self.ok_weight *= kept;
        self.fail_weight *= kept;
        self.learned_at = self.learned_at.max(Some(outcome.at));
        match outcome.ending {
            Ending::Done => {
                self.done += 1;
                self.ok_weight += 1.0;
                if let Some(latency) = outcome.latency_ms {
                    let before = self.latency_ms.unwrap_or(latency);
                    self.latency_ms = Some(before + LATENCY_ALPHA * (latency - before));
                }
            }
            Ending::Retry => {
                self.retried += 1;
                self.fail_weight += 1.0;
            }
            Ending::Failed => {
                self.failed += 1;
                self.fail_weight += 1.0;
            }
        }
        if let Some(spent) = outcome.spent {
            self.usage_count += 1;
            self.cost_usd_sum += spent.cost_usd;
            #[expect(clippy::cast_precision_loss, reason = "a mean needs no exact count beyond 2^53 tokens")]
            let tokens = spent.tokens as f64;
            self.tokens_sum += tokens;
        }
    }

    /// Factor by which the weights have shrunk between `learned_at` and `at`, in 0..=1.
    #[must_use]
    pub(crate) fn kept(&self, at: DateTime<Utc>, half_life: Duration) -> f64 {
        let age = self.learned_at.and_then(|learned| (at - learned).to_std().ok()).unwrap_or_default();
        0.5_f64.powf(age.as_secs_f64() / half_life.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Spent;

    const HALF_LIFE: Duration = Duration::from_secs(60);

    fn outcome(ending: Ending, at_s: i64, latency_ms: Option<f64>) -> Outcome {
        Outcome {
            event_id: 1,
            decision_id: uuid::Uuid::nil(),
            ending,
            at: DateTime::from_timestamp(at_s, 0).unwrap(),
            attempt: Some(1),
            latency_ms,
            spent: None,
        }
    }

    #[test]
    fn weights_halve_with_time_and_counts_do_not() {
        let mut stats = Stats::default();
        stats.learn(&outcome(Ending::Done, 0, Some(100.0)), HALF_LIFE);
        stats.learn(&outcome(Ending::Failed, 60, None), HALF_LIFE);
        assert_eq!((stats.ok_weight, stats.fail_weight, stats.done, stats.failed), (0.5, 1.0, 1, 1));
        // one that comes late neither turns time back nor shrinks what is newer
        stats.learn(&outcome(Ending::Retry, 30, None), HALF_LIFE);
        assert_eq!((stats.fail_weight, stats.retried), (2.0, 1));
        assert_eq!(stats.learned_at, DateTime::from_timestamp(60, 0));
    }

    #[test]
    fn latency_moves_towards_what_is_new() {
        let mut stats = Stats::default();
        stats.learn(&outcome(Ending::Done, 0, Some(100.0)), HALF_LIFE);
        stats.learn(&outcome(Ending::Done, 1, Some(200.0)), HALF_LIFE);
        stats.learn(&outcome(Ending::Failed, 2, Some(9e9)), HALF_LIFE);
        assert_eq!(stats.latency_ms, Some(120.0));
    }

    #[test]
    fn usage_is_summed_where_reported() {
        let mut stats = Stats::default();
        let spent = Some(Spent { cost_usd: 0.02, tokens: 500 });
        stats.learn(&Outcome { spent, ..outcome(Ending::Done, 0, None) }, HALF_LIFE);
        stats.learn(&outcome(Ending::Done, 0, None), HALF_LIFE);
        assert_eq!((stats.usage_count, stats.cost_usd_sum, stats.tokens_sum), (1, 0.02, 500.0));
    }
}
