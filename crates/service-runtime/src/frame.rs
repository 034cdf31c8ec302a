//! What a service puts into the frame: its routes, workers and chores.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Context;
use axum::Router;
use cogo_bus_core::{Bus, Wake, WakeUps};
use cogo_contracts::Route;
use cogo_registry_core::{Follower, Member, Registry, SchemaRegistry, Standing, View, ViewSettings};
use cogo_supervision::probe::{Probe, Spec};
use cogo_telemetry::{BusMetrics, Exposition};
use futures_util::future::BoxFuture;
use opentelemetry::metrics::Meter;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::PgPool;
use tokio::sync::{broadcast, watch};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    AllowedRoots, BatchHandler, FrameSettings, Handler, Stop,
    batch::Batched,
    chore::Chores,
    dependency::{Dependencies, Dependency, DependencySettings, Reach},
    health::probe,
    live::{LivePart, Throttle},
    pulse::Pulses,
    retry::RetryRule,
    worker::{Pace, Surroundings, Worker},
};

/// What an answer may take beyond the time that the database gives a statement.
const ROUND_TRIP: Duration = Duration::from_secs(2);

/// A process of the fleet.
pub trait Service: Send + 'static {
    /// `<domain>-<role>`, as in `deploy/processes.toml`; the binary is `cogo-<name>`.
    const NAME: &'static str;
    /// The domain that it belongs to.
    const DOMAIN: &'static str;
    /// 1 strategic, 2 operational, 3 external.
    const LEVEL: i16;
    /// Port of its HTTP side.
    const PORT: u16;
    /// What it can do, for discovery.
    const CAPABILITIES: &'static [&'static str];
    /// The route whose messages it claims, shard 0, if it claims any.
    const ROUTE: Option<Route>;
    /// Its own settings, beside those of the frame.
    type Settings: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static;

    /// Port that the service's own settings ask for, if they do.
    #[must_use]
    fn port(_settings: &Self::Settings) -> Option<u16> {
        None
    }

    /// Refuses settings that cannot work; the text names the key and what it must be.
    ///
    /// # Errors
    /// When the process must not start with them.
    fn check(_settings: &Self::Settings) -> Result<(), String> {
        Ok(())
    }

    /// Whether it lets nobody in without a key of its own. One that does not is kept to callers on this machine.
    #[must_use]
    fn authenticates(_settings: &Self::Settings) -> bool {
        false
    }

    /// Fills the frame; called once, before the process reports that it has started.
    fn start(frame: &mut Frame<Self::Settings>) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// The frame, while a service fills it.
pub struct Frame<S> {
    pub(crate) domain: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) common: FrameSettings,
    pub(crate) settings: S,
    pub(crate) bus: Bus,
    pub(crate) schemas: SchemaRegistry,
    pub(crate) metrics: BusMetrics,
    pub(crate) exposition: Exposition,
    pub(crate) meter: Meter,
    pub(crate) wakeups: WakeUps,
    pub(crate) member: Member,
    pub(crate) stop: Stop,
    pub(crate) tracker: TaskTracker,
    pub(crate) routes: Router,
    pub(crate) own_metrics: bool,
    pub(crate) chores: Chores,
    pub(crate) pulses: Pulses,
    pub(crate) parts: Vec<BoxFuture<'static, ()>>,
    pub(crate) dependencies: Dependencies,
    pub(crate) probes: Vec<Probe>,
    pub(crate) able: watch::Receiver<bool>,
    pub(crate) throttle: Throttle,
    pub(crate) live: Option<LivePart<S>>,
}

impl<S> Frame<S> {
    /// The service's own settings.
    #[must_use]
    pub fn settings(&self) -> &S {
        &self.settings
    }

    /// The settings that every process has.
    #[must_use]
    pub fn common(&self) -> &FrameSettings {
        &self.common
    }

    /// The bus.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The pool that all parts of the process share.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.bus.pool()
    }

    /// The schemas of routes, kept current. Workers hold what they claim, answer and send on against them by themselves;
    /// whoever sends otherwise calls [`SchemaRegistry::stamp`] first.
    #[must_use]
    pub fn schemas(&self) -> &SchemaRegistry {
        &self.schemas
    }

    /// Hints of the process's one subscription.
    #[must_use]
    pub fn wakeups(&self) -> &WakeUps {
        &self.wakeups
    }

    /// The tokens of stopping.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The process's metrics as text, for a service that adds to `/metrics`.
    #[must_use]
    pub fn exposition(&self) -> &Exposition {
        &self.exposition
    }

    /// For instruments of the service's own; histograms must name their buckets.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The instruments of the bus.
    #[must_use]
    pub fn metrics(&self) -> &BusMetrics {
        &self.metrics
    }

    /// Where a service spawns its own tasks; the process ends when all of them have.
    #[must_use]
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// The registry's view of this process.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.member.standing()
    }

    /// A copy of the registry in this process's memory, kept current until the hard stop by the subscription that the
    /// process has anyway, by the answers to its beats and by looking every few seconds. Each call makes another one, so
    /// call it once and share what it answers.
    #[must_use]
    pub fn follow_registry(&self) -> View {
        let registry = Registry::new(self.pool().clone());
        let (follower, view) = Follower::new(&registry, ViewSettings::default());
        let follower = follower.over(self.pool().clone()).fed_by(&self.member);
        self.tracker.spawn(follower.run(self.stop.hard().clone()));
        let hints = self.wakeups.subscribe();
        self.tracker.spawn(self.stop.hard().clone().run_until_cancelled_owned(hurry_on(view.clone(), hints)));
        view
    }

    /// Something outside of this process that its work calls, by the name under which people and other processes see
    /// it. The same name is the same dependency.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn dependency(&self, name: &str, reach: Reach, settings: &DependencySettings) -> anyhow::Result<Dependency> {
        self.dependencies.dependency(name, reach, settings).with_context(|| format!("guard the calls to {name}"))
    }

    /// Makes dependencies later, for those that come and go.
    #[must_use]
    pub fn dependencies(&self) -> &Dependencies {
        &self.dependencies
    }

    /// Asks this besides what the frame asks, for `/livez`, `/startupz` and `/readyz`. A process whose readiness or
    /// critical probes fail claims nothing until they pass, and tells the fleet. Liveness is asked on the thread of the
    /// probes and must not block it; everything else on the threads of the work.
    pub fn probe<F, A>(&mut self, spec: Spec, ask: F)
    where
        F: Fn() -> A + Send + 'static,
        A: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.probes.push(probe(spec, tokio::runtime::Handle::current(), ask));
    }

    /// Lets these settings be changed while the process runs: `check` says whether it could work with others and changes
    /// nothing, `apply` works with them from then on, or answers why not and goes on with those before. The frame lets
    /// `concurrency` be changed in every process. See [`cogo_registry_core::Proposal`] for who changes them.
    pub fn reconfigurable<F>(
        &mut self,
        keys: &'static [&'static str],
        check: impl Fn(&S) -> Result<(), String> + Send + 'static,
        mut apply: impl FnMut(S) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.live =
            Some(LivePart { keys, check: Box::new(check), apply: Box::new(move |settings| Box::pin(apply(settings))) });
    }

    /// The directories whose files this process may read.
    ///
    /// # Errors
    /// When none is set and the working directory is gone.
    pub fn allowed_roots(&self) -> std::io::Result<AllowedRoots> {
        AllowedRoots::new(&self.common.allowed_roots)
    }

    /// Serves these HTTP routes on the process's port, beside the probes.
    pub fn routes(&mut self, routes: Router) {
        self.routes = std::mem::take(&mut self.routes).merge(routes);
    }

    /// Says that the service's own routes answer `/metrics`, instead of the frame.
    pub fn serves_metrics(&mut self) {
        self.own_metrics = true;
    }

    /// Claims and handles the messages of a route.
    pub fn worker<H: Handler>(&mut self, handler: H) {
        self.work_on(handler, self.common.concurrency.max(1), self.throttle.clone());
    }

    /// Claims the messages of a route and handles many of them at once.
    pub fn batch_worker<B: BatchHandler>(&mut self, handler: B) {
        let batched = Batched::start(handler, self.stop.hard().clone(), &self.tracker);
        let in_hand = batched.batching.in_hand(self.common.concurrency);
        // how many make a batch is the handler's own affair
        self.work_on(batched, in_hand, Throttle::default());
    }

    fn work_on<H: Handler>(&mut self, handler: H, concurrency: u16, throttle: Throttle) {
        let pace = Pace {
            shard: self.common.agent_shard,
            concurrency,
            lease: Duration::from_millis(self.common.reclaim_after_ms),
            poll: Duration::from_millis(self.common.bus_poll_ms),
            // the database speaks first, if it speaks at all
            patience: Duration::from_millis(self.common.statement_timeout_ms) + ROUND_TRIP,
            retry_rules: RetryRule::parse_all(&self.common.retry_rules).expect("settings are checked before the start"),
        };
        let surroundings = Surroundings {
            bus: self.bus.clone(),
            schemas: self.schemas.clone(),
            metrics: self.metrics.clone(),
            wakeups: self.wakeups.clone(),
            member: self.member.clone(),
            stop: self.stop.clone(),
            pulses: self.pulses.clone(),
            throttle,
            able: self.able.clone(),
        };
        self.parts.push(Box::pin(Worker::new(handler, pace, surroundings).run()));
    }

    /// Runs `work` every `period` until the soft stop. `Ok(None)` means that there was nothing to do. A run is cut off after
    /// ten periods, but not within its first minute.
    pub fn chore<W, F>(&mut self, name: &'static str, period: Duration, work: W)
    where
        W: FnMut() -> F + Send + 'static,
        F: Future<Output = anyhow::Result<Option<String>>> + Send + 'static,
    {
        let running = self.chores.clone().run(name, period, self.stop.soft().clone(), work);
        self.parts.push(Box::pin(on_work_thread(self.tracker.clone(), running)));
    }
}

/// Runs where its connections and timers are served: on the thread of the parts each word of the database would wake two.
async fn on_work_thread(tracker: TaskTracker, running: impl Future<Output = ()> + Send + 'static) {
    if let Err(error) = AbortOnDropHandle::new(tracker.spawn(running)).await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// Makes a copy of the registry look for changes whenever the subscription of the process tells of one.
pub(crate) async fn hurry_on(view: View, mut hints: broadcast::Receiver<Wake>) {
    loop {
        match hints.recv().await {
            Ok(Wake::Registry(version)) if version <= view.version() => {}
            // what was missed may have been one
            Ok(Wake::Registry(_) | Wake::CatchUp) | Err(broadcast::error::RecvError::Lagged(_)) => view.look_again(),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn panic_of_a_chore_is_that_of_the_process() {
        let chore = on_work_thread(TaskTracker::new(), async { panic!("no way on") });
        let panic = AssertUnwindSafe(chore).catch_unwind().await.unwrap_err();
        assert_eq!(crate::attempt::panic_text(&*panic), "no way on");
    }

    #[tokio::test]
    async fn chore_ends_with_its_part() {
        let tracker = TaskTracker::new();
        let part = on_work_thread(tracker.clone(), std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(20), part).await.is_err());
        tracker.close();
        tokio::time::timeout(Duration::from_secs(20), tracker.wait()).await.expect("it is dropped");
    }
}
