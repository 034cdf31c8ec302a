//! One pool that is scaled: what it is, how fast it is looked at, and what is known of it.

use std::time::{Duration, Instant};

use cogo_bus_core::{Load, RouteStats};
use cogo_registry_core::PoolClaim;
use cogo_supervision::autoscale::{Autoscaler, Sample, Settings};
use tracing::warn;

use crate::{
    failure::Failure,
    fleet::{Claimed, Process, Steering},
};

/// Messages that an instance works on at once unless its settings say otherwise (`concurrency` of the frame).
const PER_INSTANCE: u32 = 8;

/// How fast the loop turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Time between two looks at the queues.
    pub(crate) every: Duration,
    /// The same after a look that found them empty.
    pub(crate) quiet: Duration,
    /// How long a lease lasts; it is renewed three times within.
    pub(crate) lease: Duration,
    /// The time over which ends are counted.
    pub(crate) rate_window: Duration,
    /// After an act that failed.
    pub(crate) retry_after: Duration,
}

impl Default for Pace {
    /// Looks every second, every 2 s while nothing waits, over the last 3 s; leases of 15 s, 5 s after a failure.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(1),
            quiet: Duration::from_secs(2),
            lease: Duration::from_secs(15),
            rate_window: Duration::from_secs(3),
            retry_after: Duration::from_secs(5),
        }
    }
}

/// A process whose number of instances is not fixed.
#[derive(Debug, Clone)]
pub(crate) struct ScaledPool {
    pub(crate) process: String,
    /// The route that it claims.
    pub(crate) service: String,
    pub(crate) role: String,
    pub(crate) shard: i32,
    /// How many it begins with.
    pub(crate) start: u32,
    /// Its bounds and what it is scaled by.
    pub(crate) settings: Settings,
}

impl ScaledPool {
    /// A process of the list with the route that it claims, and how many messages an instance works on at once if its
    /// settings say so.
    pub(crate) fn new(process: &Process, claimed: &Claimed, concurrency: Option<u32>) -> Self {
        let pool = process.pool();
        let Claimed { service, role, shard } = claimed;
        let per_worker = concurrency.unwrap_or(PER_INSTANCE);
        Self {
            process: process.name.clone(),
            service: service.clone(),
            role: role.clone(),
            shard: i32::from(*shard),
            start: process.first_instances(),
            settings: Settings { min: pool.min, max: pool.max, per_worker, ..Settings::default() },
        }
    }
}

/// A fleet whose processes can be scaled.
pub(crate) trait Scales: Clone + Send + Sync + 'static {
    /// Gives a process so many instances.
    fn set_desired(&self, process: &str, count: u32) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How many instances a process is to have at this moment, whoever said so; none while it is drained as a whole.
    fn count(&self, process: &str) -> Option<u32>;

    /// What an operator asked for that was not adopted yet.
    fn asked(&self, process: &str) -> Option<u32>;

    /// From now on this number is the autoscaler's own.
    fn adopt(&self, process: &str, count: u32);
}

impl Scales for Steering {
    async fn set_desired(&self, process: &str, count: u32) -> Result<(), Failure> {
        self.adjust(process, count).await.map(drop)
    }

    fn count(&self, process: &str) -> Option<u32> {
        let launcher = self.launchers.get(process)?;
        if self.is_drained(&launcher.path) {
            return None;
        }
        let is_instance = |path: &str| path.strip_prefix(&launcher.path).is_some_and(|rest| rest.starts_with('/'));
        let instances = self.record.state().processes.iter().filter(|instance| is_instance(&instance.path)).count();
        Some(u32::try_from(instances).unwrap_or(u32::MAX))
    }

    fn asked(&self, process: &str) -> Option<u32> {
        Self::asked(self, process)
    }

    fn adopt(&self, process: &str, count: u32) {
        Self::adopt(self, process, count);
    }
}

/// One pool and what is known of it.
pub(super) struct Scaled {
    pub(super) pool: ScaledPool,
    pub(super) claim: PoolClaim,
    pub(super) scaler: Autoscaler,
    /// While it is ours.
    pub(super) epoch: Option<i64>,
    pub(super) asked_at: Option<Instant>,
    pub(super) desired: u32,
    /// What the fleet was last told with success.
    pub(super) applied: Option<u32>,
    pub(super) is_acting: bool,
    pub(super) not_before: Option<Instant>,
    /// Whether the last decision was held by the upper bound, so that it is written down once.
    pub(super) at_most: bool,
}

impl Scaled {
    pub(super) fn new(pool: ScaledPool, owner: &str, lease: Duration) -> Option<Self> {
        let scaler = match Autoscaler::new(pool.settings.clone()) {
            Ok(scaler) => scaler,
            Err(error) => {
                warn!(%error, process = pool.process, "pool is not scaled");
                return None;
            }
        };
        let Settings { min, max, .. } = pool.settings;
        let claim =
            PoolClaim { process: pool.process.clone(), owner: owner.to_owned(), lease, min, max, start: pool.start };
        let desired = pool.start;
        Some(Self {
            pool,
            claim,
            scaler,
            epoch: None,
            asked_at: None,
            desired,
            applied: None,
            is_acting: false,
            not_before: None,
            at_most: false,
        })
    }

    /// The figures of its route; a route without messages has none.
    pub(super) fn sample(&self, at: Duration, figures: &Load, ready: u32) -> Sample {
        let is_own = |route: &&RouteStats| {
            (route.service.as_str(), route.role.as_str(), route.shard)
                == (self.pool.service.as_str(), self.pool.role.as_str(), self.pool.shard)
        };
        let route = figures.by_route.iter().find(is_own);
        let number = |of: fn(&RouteStats) -> i64| route.map_or(0, |route| u64::try_from(of(route)).unwrap_or(0));
        let age_s = route.and_then(|route| route.oldest_age_s).unwrap_or(0.0);
        Sample {
            at,
            current: self.desired,
            ready,
            queued: number(|route| route.queued),
            oldest_age: Duration::try_from_secs_f64(age_s).unwrap_or_default(),
            in_flight: number(|route| route.claimed),
            ended: number(|route| route.done + route.failed),
            over: Duration::try_from_secs_f64(figures.window_s).unwrap_or_default(),
            service_time: route.and_then(mean_run),
        }
    }
}

/// Mean time of work on what ended lately, as the database measured it; none while nothing has.
fn mean_run(route: &RouteStats) -> Option<Duration> {
    Duration::try_from_secs_f64(route.mean_run_ms? / 1000.0).ok()
}
