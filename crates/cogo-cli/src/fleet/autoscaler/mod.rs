//! Scales the pools of a running fleet: reads the queues, decides while it owns a pool, writes down why, and acts.
//!
//! One `cogo up` at a time decides about a pool, held by a fenced lease in the registry; another that runs the same
//! process leaves its own instances as they are. Without figures nothing is decided, nor about a process that is drained.

mod figures;
mod pool;

use std::time::{Duration, Instant};

use cogo_bus_core::Load;
use cogo_db::PoolSettings;
use cogo_registry_core::{Decided, Ownership, PoolClaim, Pools};
use cogo_supervision::autoscale::{Decision, Limit, Settings};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::failure::{Failure, chain};

use figures::Figures;
use pool::Scaled;
pub(crate) use pool::{Pace, ScaledPool, Scales};

/// Two connections: one reads the figures while another may renew a lease.
const CONNECTIONS: u32 = 2;
/// The database may be away when the fleet stops; the leases run out by themselves then.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);
/// Decisions are of interest for a month.
const KEEP_DECISIONS: Duration = Duration::from_secs(30 * 24 * 3600);
const FORGET_EVERY: Duration = Duration::from_secs(600);
/// More than are made in that time.
const FORGET_AT_MOST: u32 = 10_000;
/// Reading the figures may take this part of the time, so that a long queue is not burdened further; it takes some 10 ms.
const READING_SHARE: u32 = 10;
/// However long reading took, for a connection to come or on a machine that is short of breath: a pool must not wait the
/// longer for what it needs just then.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Scales the pools until told to stop; at once over if there is none whose number may vary.
pub(crate) async fn run(
    database_url: String,
    pools: Vec<ScaledPool>,
    fleet: impl Scales,
    pace: Pace,
    stop: CancellationToken,
) {
    let varying: Vec<ScaledPool> = pools.into_iter().filter(|pool| pool.settings.min < pool.settings.max).collect();
    if varying.is_empty() {
        return;
    }
    let settings = PoolSettings { max_connections: CONNECTIONS, ..PoolSettings::new(&database_url, "cogo-autoscaler") };
    let database = match cogo_db::connect(&settings) {
        Ok(database) => database,
        Err(error) => {
            warn!(%error, "pools are not scaled");
            return;
        }
    };
    let owner = format!("cogo-up#{}", uuid::Uuid::new_v4().simple());
    let pools: Vec<Scaled> = varying.into_iter().filter_map(|pool| Scaled::new(pool, &owner, pace.lease)).collect();
    let table = Pools::new(database.clone());
    let (begun, acts) = (Instant::now(), FuturesUnordered::new());
    let figures = Figures::of(&database);
    Loop { figures, table, fleet, pace, begun, forgot_at: None, pools, acts }.turn(stop).await;
}

/// An act that is over: the place of the pool, the count, what came of it.
type Act = BoxFuture<'static, (usize, u32, Result<(), Failure>)>;

struct Loop<F> {
    figures: Figures,
    table: Pools,
    fleet: F,
    pace: Pace,
    begun: Instant,
    forgot_at: Option<Instant>,
    pools: Vec<Scaled>,
    acts: FuturesUnordered<Act>,
}

impl<F: Scales> Loop<F> {
    async fn turn(mut self, stop: CancellationToken) {
        loop {
            let begun = Instant::now();
            let is_quiet = tokio::select! {
                () = stop.cancelled() => break,
                is_quiet = self.look() => is_quiet,
            };
            let every = if is_quiet { self.pace.quiet } else { self.pace.every };
            let next = Instant::now() + pause_after(begun.elapsed(), every);
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep_until(next.into()) => break,
                    Some(act) = self.acts.next() => self.acted(act),
                }
            }
            if stop.is_cancelled() {
                break;
            }
        }
        let released = async {
            for scaled in &self.pools {
                if let Some(epoch) = scaled.epoch {
                    // not released, it runs out
                    let _ = self.table.release(&scaled.claim, epoch).await;
                }
            }
        };
        let _ = tokio::time::timeout(RELEASE_WITHIN, released).await;
    }

    /// One look at everything; what fails is tried again at the next. Answers whether there was nothing to see.
    async fn look(&mut self) -> bool {
        let mut is_quiet = true;
        self.own().await;
        if self.pools.iter().any(|scaled| scaled.epoch.is_some()) {
            match self.figures.read(self.pace.rate_window).await {
                Ok(figures) => {
                    is_quiet = figures.by_route.iter().all(|route| route.queued == 0 && route.claimed == 0);
                    for place in 0..self.pools.len() {
                        self.decide(place, &figures).await;
                    }
                }
                Err(error) => {
                    is_quiet = false;
                    warn!(%error, "no figures of the queues, so nothing is scaled");
                }
            }
        }
        for place in 0..self.pools.len() {
            self.act(place);
        }
        self.forget().await;
        is_quiet
    }

    /// Forgets decisions that are old, now and then.
    async fn forget(&mut self) {
        let is_early = self.forgot_at.is_some_and(|forgot| forgot.elapsed() < FORGET_EVERY);
        if is_early || self.pools.iter().all(|scaled| scaled.epoch.is_none()) {
            return;
        }
        self.forgot_at = Some(Instant::now());
        if let Err(error) = self.table.retain_decisions(KEEP_DECISIONS, FORGET_AT_MOST).await {
            warn!(error = chain(&error), "old scaling decisions not forgotten");
        }
    }

    /// Takes or renews the right to decide where it is time.
    async fn own(&mut self) {
        let renew_after = self.pace.lease / 3;
        let is_due = |scaled: &&Scaled| scaled.asked_at.is_none_or(|asked| asked.elapsed() >= renew_after);
        let due: Vec<&PoolClaim> = self.pools.iter().filter(is_due).map(|scaled| &scaled.claim).collect();
        if due.is_empty() {
            return;
        }
        let owned = match self.figures.own(&due).await {
            Ok(owned) => owned,
            Err(error) => {
                let processes = due.iter().map(|claim| claim.process.as_str()).collect::<Vec<_>>().join(", ");
                warn!(error = chain(&error), processes, "leases of the pools not renewed");
                return;
            }
        };
        for (process, ownership) in owned {
            let Some(scaled) = self.pools.iter_mut().find(|scaled| scaled.claim.process == process) else { continue };
            scaled.asked_at = Some(Instant::now());
            match ownership {
                Ownership::Mine { epoch, desired } => {
                    if scaled.epoch.replace(epoch) != Some(epoch) {
                        info!(process, epoch, desired, "owns the size of the pool");
                    }
                    scaled.desired = desired;
                }
                Ownership::Theirs { .. } => scaled.epoch = None,
            }
        }
    }

    async fn decide(&mut self, place: usize, figures: &Load) {
        let at = self.begun.elapsed();
        let scaled = &mut self.pools[place];
        let (Some(epoch), Some(count)) = (scaled.epoch, self.fleet.count(&scaled.pool.process)) else { return };
        let Settings { min, max, .. } = *scaled.scaler.settings();
        // what an operator asks for is where the pool goes on from; an act that is under way refuses itself before
        let asked = self.fleet.asked(&scaled.pool.process).filter(|_| !scaled.is_acting);
        if asked == Some(scaled.desired) {
            self.fleet.adopt(&scaled.pool.process, scaled.desired);
        }
        let asked = asked.filter(|&asked| asked != scaled.desired && (min..=max).contains(&asked));
        let (to, row, is_news) = if let Some(asked) = asked {
            let sentence = format!("From {} to {asked}: an operator asked for it", scaled.desired);
            (asked, json!({"wanted": asked, "sentence": sentence}), true)
        } else {
            let decision = scaled.scaler.decide(scaled.sample(at, figures, count));
            let is_news = decision.is_change() || is_newly_at_most(&decision, scaled.at_most);
            scaled.at_most = is_at_most(&decision);
            (decision.desired, json!(decision), is_news)
        };
        if !is_news {
            return;
        }
        match self.table.decide(&scaled.claim, epoch, scaled.desired, to, &row).await {
            Ok(Decided::Recorded { decision_id }) => {
                let sentence = row["sentence"].as_str().unwrap_or_default();
                info!(event = "scaling_decision", process = scaled.pool.process, to, decision_id, "{sentence}");
                if asked.is_some() {
                    self.fleet.adopt(&scaled.pool.process, to);
                    scaled.applied = Some(to);
                }
                scaled.desired = to;
            }
            Ok(Decided::Changed { desired }) => scaled.desired = desired,
            Ok(Decided::NotOwner) => {
                scaled.epoch = None;
                scaled.asked_at = None;
            }
            Err(error) => warn!(error = chain(&error), process = scaled.pool.process, "decision not written down"),
        }
    }

    /// Tells the fleet what it does not have yet; one thing at a time for each pool.
    fn act(&mut self, place: usize) {
        let scaled = &mut self.pools[place];
        let is_early = scaled.not_before.is_some_and(|not_before| Instant::now() < not_before);
        if scaled.epoch.is_none() || scaled.is_acting || is_early || scaled.applied == Some(scaled.desired) {
            return;
        }
        if self.fleet.count(&scaled.pool.process).is_none() {
            // whoever drained it decides when it comes back
            return;
        }
        scaled.is_acting = true;
        let (fleet, process, count) = (self.fleet.clone(), scaled.pool.process.clone(), scaled.desired);
        self.acts.push(Box::pin(async move {
            let result = fleet.set_desired(&process, count).await;
            (place, count, result)
        }));
    }

    fn acted(&mut self, (place, count, result): (usize, u32, Result<(), Failure>)) {
        let scaled = &mut self.pools[place];
        scaled.is_acting = false;
        match result {
            Ok(()) => scaled.applied = Some(count),
            Err(failure) => {
                warn!(process = scaled.pool.process, count, error = failure.text(), "pool could not be scaled");
                scaled.applied = None;
                scaled.not_before = Some(Instant::now() + self.pace.retry_after);
            }
        }
    }
}

/// From the end of a look that took so long to the next one, which is otherwise begun at even times.
fn pause_after(took: Duration, every: Duration) -> Duration {
    let even = every.saturating_sub(took);
    let share = took.saturating_mul(READING_SHARE).saturating_sub(took);
    even.max(share.min(LONGEST_PAUSE))
}

fn is_at_most(decision: &Decision) -> bool {
    decision.limits.iter().any(|limit| matches!(limit, Limit::Max { .. }))
}

/// That more is wanted than may be is worth a row, once.
fn is_newly_at_most(decision: &Decision, before: bool) -> bool {
    !before && is_at_most(decision)
}

#[cfg(test)]
mod tests;
