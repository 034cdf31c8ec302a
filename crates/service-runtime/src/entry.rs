//! The life of a process from its command line to its exit code.

use std::{
    net::{SocketAddr, TcpListener},
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::{Arc, OnceLock, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use axum::Router;
use cogo_bus_core::{Bus, WakeUps};
use cogo_contracts::exit_code::SUPERSEDED;
use cogo_db::{PoolSettings, SchemaState};
use cogo_registry_core::{ConfigWatcher, Member, Registry, SchemaFollower, SchemaRegistry, Standing};
use cogo_telemetry::Guard;
use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    Dependencies, Frame, FrameSettings, Service, Stop,
    attempt::panic_text,
    command::{check, healthcheck, help, refuse, say},
    health::Health,
    identity::Identity,
    limits::checked,
    listen::Ending,
    live::{LiveSettings, Throttle},
    probes::{self, HEADER_TIMEOUT, Served, ServiceRoutes},
    settings::{self, Loaded, Sources},
};

/// Pauses between two looks for a database that is not there yet.
const DATABASE_AWAY: Duration = Duration::from_millis(500);
/// How long the end of a process waits for its last tasks.
const LAST_TASKS: Duration = Duration::from_secs(3);
/// How long the end of a process waits for its connections to the database to be closed in order.
const LAST_GOODBYES: Duration = Duration::from_secs(1);
/// How often a change of settings that is under way is looked at.
const LOOK_AT_ROLLOUT: Duration = Duration::from_millis(500);
/// Work threads: agents wait far more than they compute, and many of them share a machine.
const WORK_THREADS: usize = 2;

/// Runs a service until it is told to stop; the whole `main` of a process.
#[must_use]
pub fn main<S: Service>(version: &str) -> ExitCode {
    obey::<S>(version, std::env::args().skip(1).collect())
}

/// Runs a service in a process whose words on the command line said which service it is to be; otherwise as [`main`].
#[must_use]
pub fn serve<S: Service>(version: &str) -> ExitCode {
    obey::<S>(version, Vec::new())
}

fn obey<S: Service>(version: &str, arguments: Vec<String>) -> ExitCode {
    let loaded = Sources::of_process(S::NAME)
        .and_then(|sources| settings::load::<S::Settings>(S::NAME, &sources))
        .and_then(checked::<S>);
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&format!("error: {error}\nhint: cogo-{} --check-config", S::NAME)),
    };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => run::<S>(version, loaded),
        ["--version"] => say(&format!("cogo-{} {version}", S::NAME)),
        ["--help"] => say(&help::<S>(loaded.origins.keys())),
        ["--check-config"] => check(&loaded.origins),
        ["--healthcheck"] => healthcheck(address::<S>(&loaded)),
        other => refuse(&format!("error: unknown arguments {}\n{}", other.join(" "), help::<S>(loaded.origins.keys()))),
    }
}

fn run<S: Service>(version: &str, loaded: Loaded<S::Settings>) -> ExitCode {
    if loaded.frame.database_url.reveal().is_empty() {
        return refuse(
            "error: DATABASE_URL is not set\nhint: start the fleet with `cogo up`, which brings a Postgres along",
        );
    }
    let identity = match Identity::of_process::<S>(version, &loaded.frame, address::<S>(&loaded)) {
        Ok(identity) => identity,
        Err(error) => return refuse(&format!("error: {error:#}")),
    };
    let guard = match start_telemetry::<S>(version, &loaded.frame, &identity) {
        Ok(guard) => guard,
        Err(error) => return refuse(&format!("error: {error:#}")),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORK_THREADS)
        .thread_name("work")
        .enable_all()
        .build()
        .context("start the work runtime");
    let ended = runtime.and_then(|runtime| runtime.block_on(Box::pin(live::<S>(loaded, identity, &guard))));
    let code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "process ends with an error");
            if error.is::<Superseded>() { ExitCode::from(SUPERSEDED) } else { ExitCode::FAILURE }
        }
    };
    guard.shutdown();
    code
}

async fn live<S: Service>(loaded: Loaded<S::Settings>, identity: Identity, guard: &Guard) -> anyhow::Result<()> {
    let address = address::<S>(&loaded);
    let Loaded { frame: common, service: settings, .. } = loaded;
    let holder = identity.holder();
    let ground = Ground::prepare::<S>(&common, guard, address, &holder)?;
    let guarded = address.ip().is_loopback() && !S::authenticates(&settings);
    // the probes answer before the database does, so that a start that waits is seen to wait
    let (http, ending) = start_http(ground.served(S::NAME, guarded), address, &ground.stop)?;

    let ended = if wait_for_schema(&ground.pool, &ground.stop).await? {
        let (member, parts) = ground.start::<S>(common, settings, identity, holder).await?;
        work(parts, &member, &ground.health, &ground.stop).await
    } else {
        Ok(())
    };
    ground.health.ready.store(false, Ordering::Relaxed);
    // streams end at the soft stop
    ground.stop.soft().cancel();
    answer_the_last(http, &ending).await;
    ground.stop.hard().cancel();
    ground.leave.cancel();
    let_go(&ground.tracker, &ground.pool).await;
    info!("cogo-{} ended", S::NAME);
    ended
}

/// What a process has before its database answers, and keeps until its end.
struct Ground<'a> {
    guard: &'a Guard,
    address: SocketAddr,
    pool: PgPool,
    stop: Stop,
    tracker: TaskTracker,
    /// Fires when the process shall leave the registry.
    leave: CancellationToken,
    dependencies: Dependencies,
    health: Health,
    /// What the service answers, once it has started.
    routes: Arc<OnceLock<ServiceRoutes>>,
}

impl<'a> Ground<'a> {
    fn prepare<S: Service>(
        common: &FrameSettings,
        guard: &'a Guard,
        address: SocketAddr,
        holder: &str,
    ) -> anyhow::Result<Self> {
        let (stop, tracker) = (Stop::default(), TaskTracker::new());
        tracker.spawn(stop.clone().on_signals(Duration::from_millis(common.grace_ms)));
        let replica = holder.split('#').next().unwrap_or_default();
        let dependencies = Dependencies::new(replica, &guard.meter());
        let health = Health::with(dependencies.clone());
        let (leave, routes) = (CancellationToken::new(), Arc::default());
        Ok(Self { guard, address, pool: pool::<S>(common)?, stop, tracker, leave, dependencies, health, routes })
    }

    /// What its port answers.
    fn served(&self, name: &'static str, guarded: bool) -> Served {
        let (health, service) = (self.health.clone(), Arc::clone(&self.routes));
        Served { name, health, exposition: self.guard.exposition(), guarded, header_timeout: HEADER_TIMEOUT, service }
    }

    /// Joins the registry and starts the service; answers what it does from then on.
    async fn start<S: Service>(
        &self,
        common: FrameSettings,
        settings: S::Settings,
        identity: Identity,
        holder: String,
    ) -> anyhow::Result<(Member, Vec<BoxFuture<'static, ()>>)> {
        let member = identity.join(&self.pool, &self.stop, self.leave.clone(), &self.tracker);
        let mut frame = self.frame::<S>(common, settings, &member);
        tokio::select! {
            started = caught(async { S::start(&mut frame).await }) => started.context("start the service")?,
            () = self.stop.hard().cancelled() => anyhow::bail!("stopped before the service had started"),
        }
        self.tracker.spawn(frame.wakeups.clone().run(self.pool.clone(), self.stop.hard().clone()));
        self.tracker.spawn(self.dependencies.clone().exchange(self.pool.clone(), holder, self.stop.hard().clone()));
        self.tracker.spawn(configuring::<S>(&mut frame).run(self.stop.hard().clone()));
        self.health.ask(std::mem::take(&mut frame.probes), tokio::runtime::Handle::current())?;
        let routes = ServiceRoutes { router: frame.routes, own_metrics: frame.own_metrics };
        // set once: this is the only place
        let _ = self.routes.set(routes);
        self.health.started.store(true, Ordering::Relaxed);
        info!(address = %self.address, "cogo-{} started", S::NAME);
        member.activate();
        Ok((member, frame.parts))
    }

    fn frame<S: Service>(&self, common: FrameSettings, settings: S::Settings, member: &Member) -> Frame<S::Settings> {
        let schemas = SchemaRegistry::new(&Registry::new(self.pool.clone()));
        self.tracker.spawn(SchemaFollower::new(&schemas).fed_by(member).run(self.stop.hard().clone()));
        Frame {
            domain: S::DOMAIN,
            address: self.address,
            settings,
            bus: Bus::new(self.pool.clone()),
            schemas,
            metrics: self.guard.bus_metrics(),
            exposition: self.guard.exposition(),
            meter: self.guard.meter(),
            wakeups: WakeUps::default(),
            member: member.clone(),
            stop: self.stop.clone(),
            tracker: self.tracker.clone(),
            routes: Router::new(),
            own_metrics: false,
            chores: self.health.chores.clone(),
            pulses: self.health.pulses.clone(),
            parts: Vec::new(),
            dependencies: self.dependencies.clone(),
            probes: Vec::new(),
            able: self.health.able(),
            throttle: Throttle::default(),
            live: None,
            common,
        }
    }
}

/// A panic is an error like others: also of a handler that is asked for its batches or its retries.
pub(crate) async fn caught(start: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let started = AssertUnwindSafe(start).catch_unwind().await;
    started
        .unwrap_or_else(|panic| Err(anyhow::anyhow!("It panicked: {}", cogo_telemetry::redacted(panic_text(&*panic)))))
}

/// Takes over changes of the settings while the process runs.
fn configuring<S: Service>(frame: &mut Frame<S::Settings>) -> ConfigWatcher<LiveSettings<S::Settings>> {
    let live = LiveSettings {
        settings: frame.settings.clone(),
        check: S::check,
        throttle: frame.throttle.clone(),
        part: frame.live.take(),
        is_changed: false,
    };
    ConfigWatcher::new(&Registry::new(frame.pool().clone()), &frame.member, live, LOOK_AT_ROLLOUT)
}

fn start_http(served: Served, address: SocketAddr, stop: &Stop) -> anyhow::Result<(JoinHandle<()>, Ending)> {
    let ending = Ending { soft: CancellationToken::new(), hard: stop.hard().clone(), requests: TaskTracker::new() };
    let http = TcpListener::bind(address)
        .and_then(|listener| probes::serve(served, listener, tokio::runtime::Handle::current(), ending.clone()))
        .with_context(|| format!("bind {address}"))?;
    Ok((http, ending))
}

fn pool<S: Service>(common: &FrameSettings) -> anyhow::Result<PgPool> {
    let mut settings = PoolSettings::new(common.database_url.reveal(), format!("cogo-{}", S::NAME));
    settings.max_connections = common.max_connections;
    settings.statement_timeout = Some(Duration::from_millis(common.statement_timeout_ms));
    cogo_db::connect(&settings).context("read DATABASE_URL")
}

/// Requests under way get their answers, until the grace period is over or a second signal comes.
async fn answer_the_last(http: JoinHandle<()>, ending: &Ending) {
    ending.soft.cancel();
    if let Ok(Err(_)) = tokio::task::spawn_blocking(move || http.join()).await {
        warn!("the HTTP thread panicked");
    }
}

/// Waits for the last tasks and connections, but not for a database that is away.
async fn let_go(tracker: &TaskTracker, pool: &PgPool) {
    tracker.close();
    if tokio::time::timeout(LAST_TASKS, tracker.wait()).await.is_err() {
        warn!("some tasks did not end within {LAST_TASKS:?} and are dropped");
    }
    if tokio::time::timeout(LAST_GOODBYES, pool.close()).await.is_err() {
        warn!("some connections to the database were not closed in order");
    }
}

/// The end of a process that must not be started again as it is.
#[derive(Debug, thiserror::Error)]
#[error("Another process has taken this slot ({by}); give each replica its own COGO_AGENT_SLOT")]
struct Superseded {
    by: String,
}

/// Runs the parts of a service until the soft stop has ended them all, or until another process takes the slot.
pub(crate) async fn work(
    parts: Vec<BoxFuture<'static, ()>>,
    member: &Member,
    health: &Health,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut standing = member.standing();
    let mut able = health.able();
    let watching = async {
        loop {
            let now = standing.borrow_and_update().clone();
            let ready = now.claiming().is_some();
            health.ready.store(ready, Ordering::Relaxed);
            member.vitals().set_ready(ready && *able.borrow_and_update());
            match now {
                Standing::Superseded { by } => return Err(Superseded { by }.into()),
                Standing::Draining(_) if !stop.soft().is_cancelled() => {
                    info!("drained by an operator");
                    stop.soft().cancel();
                }
                _ => {}
            }
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return Ok(()) },
                // the next beat tells the fleet at once
                Ok(()) = able.changed() => member.ask_now(),
            }
        }
    };
    let probing = async {
        health.watch_probes().await;
        std::future::pending::<()>().await;
    };
    let all = async { tokio::join!(join_all(parts), stop.soft().cancelled()) };
    tokio::select! {
        _ = all => Ok(()),
        () = probing => Ok(()),
        lost = watching => {
            if lost.is_ok() {
                stop.soft().cancelled().await;
            }
            lost
        }
    }
}

/// Waits until the schema fits; false when the process was told to stop meanwhile.
async fn wait_for_schema(pool: &PgPool, stop: &Stop) -> anyhow::Result<bool> {
    let mut told = false;
    loop {
        let looked = tokio::select! {
            () = stop.soft().cancelled() => return Ok(false),
            looked = cogo_db::schema_state(pool) => looked,
        };
        match looked {
            Ok(SchemaState::Fits(version)) => {
                info!(version, "schema fits");
                return Ok(true);
            }
            Ok(SchemaState::Behind { have, need }) => {
                anyhow::bail!("The schema is at {have} and this build needs {need}; run `cogo migrate`")
            }
            Err(error) if !told => {
                warn!(error = format!("{:#}", anyhow::Error::from(error)), "waiting for the database");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(DATABASE_AWAY).await;
    }
}

fn start_telemetry<S: Service>(version: &str, common: &FrameSettings, identity: &Identity) -> anyhow::Result<Guard> {
    let mut settings = cogo_telemetry::Settings::new(format!("cogo-{}", S::NAME), version, identity.holder());
    settings.log_filter.clone_from(&common.rust_log);
    settings.log_format = common.log_format;
    settings.otlp_endpoint.clone_from(&common.otel_exporter_otlp_endpoint);
    settings.statsd_addr.clone_from(&common.statsd_addr);
    cogo_telemetry::init(&settings).context("start telemetry")
}

fn address<S: Service>(loaded: &Loaded<S::Settings>) -> SocketAddr {
    let common = &loaded.frame;
    let asked = common.port.or_else(|| S::port(&loaded.service));
    SocketAddr::new(common.bind, asked.unwrap_or_else(|| S::PORT.saturating_add(common.port_offset)))
}
