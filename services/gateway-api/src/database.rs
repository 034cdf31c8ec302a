//! The one thing that the front door calls: the database, under guard so that callers of a dead one are told at once
//! instead of hanging, and so that a flood of them leaves room for the rest.

use std::time::Duration;

use anyhow::anyhow;
use cogo_bus_core::Error as BusError;
use cogo_service_runtime::{ApiError, Dependency, DependencySettings, Unanswered};
use cogo_supervision::{breaker::Settings as BreakerSettings, bulkhead::Settings as BulkheadSettings};

use crate::problems;

/// Longest wait for one answer of the database, connecting included; callers get 503 then and never hang.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Calls are told apart by their keys before they come here.
const ANYBODY: &str = "";

/// The database under guard.
#[derive(Debug, Clone)]
pub(crate) struct Database(Dependency);

/// How the front door guards the database: after five failures in a row callers are refused at once, and half a second
/// later some of them try it again; at most 64 statements wait for it at once.
#[must_use]
pub fn database_guard() -> DependencySettings {
    let breaker = BreakerSettings {
        slow_call: ANSWERS_WITHIN,
        open_for: Duration::from_millis(500),
        // it is one database: nobody else would find out that it is back
        longest_open: Duration::from_secs(2),
        half_open_permits: 4,
        half_open_for: ANSWERS_WITHIN,
        ..BreakerSettings::default()
    };
    let bulkhead = BulkheadSettings {
        concurrent: 64,
        waiting: 512,
        patience: Duration::from_secs(5),
        ..BulkheadSettings::default()
    };
    DependencySettings { breaker, bulkhead, longest: ANSWERS_WITHIN }
}

impl Database {
    pub(crate) fn new(guard: Dependency) -> Self {
        Self(guard)
    }

    /// The answer of the database, or the problem that stands for its absence.
    pub(crate) async fn answered<T>(&self, call: impl Future<Output = Result<T, BusError>>) -> Result<T, ApiError> {
        let answered = self.0.call(ANYBODY, None, call, BusError::is_transient).await;
        answered.map_err(|unanswered| match unanswered {
            Unanswered::Failed(error) => problems::of_bus(error),
            Unanswered::Full(_) => problems::crowded(),
            Unanswered::Open { .. } => ApiError::unavailable(&anyhow!("not asked, since it did not answer before")),
            Unanswered::NoTime | Unanswered::TookTooLong { .. } => {
                ApiError::unavailable(&anyhow!("no answer within {ANSWERS_WITHIN:?}"))
            }
        })
    }
}
