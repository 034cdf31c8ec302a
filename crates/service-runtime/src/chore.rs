//! Periodic work of a process; each chore shows its last run, result and duration.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How the last run of a chore ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "result", content = "detail")]
pub enum ChoreResult {
    /// It did something, or found nothing to do.
    Done(String),
    /// It failed and is tried again at the next turn.
    Failed(String),
}

/// What a chore shows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChoreReport {
    /// Milliseconds between two runs.
    pub period_ms: u128,
    /// Runs so far.
    pub runs: u64,
    /// Milliseconds that the last run took.
    pub took_ms: u128,
    /// How it ended.
    pub last: Option<ChoreResult>,
}

/// Reports of all chores of a process.
#[derive(Clone, Default)]
pub(crate) struct Chores {
    reports: Arc<Mutex<BTreeMap<&'static str, ChoreReport>>>,
}

impl Chores {
    pub(crate) fn reports(&self) -> BTreeMap<&'static str, ChoreReport> {
        self.reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Runs `work` every `period` until `stop`. `Ok(None)` means: nothing to do, not worth a log line.
    pub(crate) async fn run<W, F>(self, name: &'static str, period: Duration, stop: CancellationToken, mut work: W)
    where
        W: FnMut() -> F + Send,
        F: Future<Output = anyhow::Result<Option<String>>> + Send,
    {
        let mut turn = tokio::time::interval(period);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut runs = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = turn.tick() => {}
            }
            let started = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = work() => ended,
            };
            runs += 1;
            let last = match ended {
                Ok(Some(done)) => {
                    info!(chore = name, "{done}");
                    ChoreResult::Done(done)
                }
                Ok(None) => {
                    debug!(chore = name, "nothing to do");
                    ChoreResult::Done("nothing to do".to_owned())
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(chore = name, error, "chore failed, next try in {} ms", period.as_millis());
                    ChoreResult::Failed(error)
                }
            };
            let report = ChoreReport {
                period_ms: period.as_millis(),
                runs,
                took_ms: started.elapsed().as_millis(),
                last: Some(last),
            };
            self.reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name, report);
        }
    }
}
