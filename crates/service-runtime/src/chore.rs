//! Periodic work of a process; each chore shows its last run, result and duration.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::{MissedTickBehavior, timeout};
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChoreReport {
    /// Milliseconds between two runs.
    pub period_ms: u128,
    /// Runs so far.
    pub runs: u64,
    /// Milliseconds that the last run took.
    pub took_ms: u128,
    /// How it ended.
    pub last: Option<ChoreResult>,
    /// Milliseconds since the run that is under way began; absent between two runs.
    pub running_ms: Option<u128>,
}

/// No run is cut off earlier than this.
const SHORTEST_LIMIT: Duration = Duration::from_secs(60);
/// A run may take this many periods.
const PERIODS: u32 = 10;
/// No chore is run more often, whatever its setting.
const SHORTEST_PERIOD: Duration = Duration::from_millis(1);

/// A report, and the beginning of the run that is under way.
#[derive(Default)]
struct State {
    report: ChoreReport,
    began: Option<Instant>,
}

/// Reports of all chores of a process.
#[derive(Clone, Default)]
pub(crate) struct Chores {
    states: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

impl Chores {
    pub(crate) fn reports(&self) -> BTreeMap<&'static str, ChoreReport> {
        let states = self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shown = states.iter().map(|(&name, state)| {
            let running_ms = state.began.map(|began| began.elapsed().as_millis());
            (name, ChoreReport { running_ms, ..state.report.clone() })
        });
        shown.collect()
    }

    /// Runs `work` every `period` until `stop`. `Ok(None)` means: nothing to do, not worth a log line. A run that takes
    /// longer than ten periods and a minute is cut off and counts as failed.
    pub(crate) async fn run<W, F>(self, name: &'static str, period: Duration, stop: CancellationToken, work: W)
    where
        W: FnMut() -> F + Send,
        F: Future<Output = anyhow::Result<Option<String>>> + Send,
    {
        let limit = period.saturating_mul(PERIODS).max(SHORTEST_LIMIT);
        self.run_within(limit, name, period, stop, work).await;
    }

    pub(crate) async fn run_within<W, F>(
        self,
        limit: Duration,
        name: &'static str,
        period: Duration,
        stop: CancellationToken,
        mut work: W,
    ) where
        W: FnMut() -> F + Send,
        F: Future<Output = anyhow::Result<Option<String>>> + Send,
    {
        let mut turn = tokio::time::interval(period.max(SHORTEST_PERIOD));
        turn.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.change(name, |state| state.report.period_ms = period.as_millis());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = turn.tick() => {}
            }
            let started = Instant::now();
            self.change(name, |state| state.began = Some(started));
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = timeout(limit, work()) =>
                    ended.unwrap_or_else(|_elapsed| Err(anyhow::anyhow!("cut off after {limit:?}"))),
            };
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
            self.change(name, |State { report, began }| {
                report.runs += 1;
                report.took_ms = started.elapsed().as_millis();
                report.last = Some(last);
                *began = None;
            });
        }
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut State)) {
        let mut states = self.states.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(states.entry(name).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for a report of the chore.
    async fn until(chores: &Chores, reached: impl Fn(&ChoreReport) -> bool) -> ChoreReport {
        loop {
            if let Some(report) = chores.reports().remove("test").filter(&reached) {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn run_that_hangs_is_shown_and_cut_off_and_the_next_one_comes() {
        let (chores, stop) = (Chores::default(), CancellationToken::new());
        let mut runs = 0;
        let limit = Duration::from_millis(100);
        let running = chores.clone().run_within(limit, "test", Duration::from_millis(500), stop.clone(), move || {
            runs += 1;
            let hangs = runs == 1;
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Ok(Some("done".to_owned()))
            }
        });
        let watching = async {
            let first = until(&chores, |report| report.running_ms.is_some()).await;
            assert_eq!((first.runs, first.last), (0, None));
            until(&chores, |report| matches!(report.last, Some(ChoreResult::Failed(_)))).await;
            let next = until(&chores, |report| matches!(report.last, Some(ChoreResult::Done(_)))).await;
            assert!(next.runs >= 2);
            stop.cancel();
        };
        let both = async { tokio::join!(running, watching) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }

    #[tokio::test]
    async fn period_of_zero_is_no_panic() {
        let (chores, stop) = (Chores::default(), CancellationToken::new());
        let running = chores.clone().run("test", Duration::ZERO, stop.clone(), async || Ok(None));
        let watching = async {
            until(&chores, |report| report.runs > 1).await;
            stop.cancel();
        };
        let both = async { tokio::join!(running, watching) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }
}
