//! Everything that runs while a fleet is up: its tree of processes, the watch over its database, the care for its logs.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use cogo_supervision::{End, Options, Supervisor};
use cogo_telemetry::SupervisionMetrics;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    command::{up::Signals, up_control, up_database::Database},
    context::{Context, open},
    failure::Failure,
    fleet::{
        Chronicle, Ending, Herald, Home, Launcher, Orders, OwnSettings, Pace, Process, ProcessList, Record, ScaledPool,
        Steering, first_slot, last_words, run_autoscaler, tree,
    },
};

const BOUND_LOGS_EVERY: Duration = Duration::from_secs(60);
/// A killed process that is still there after this cannot be killed at all.
const GONE_WITHIN: Duration = Duration::from_secs(60);
/// Events that may wait while the state of the fleet is written to a slow disk.
const EVENTS: usize = 4096;

/// Everything that runs while the fleet is up.
pub(crate) struct Fleet {
    steering: Steering,
    home: Home,
    background: CancellationToken,
    /// The chronicle.
    listener: JoinSet<Ending>,
    ending: Option<Ending>,
    chores: JoinSet<()>,
}

impl Fleet {
    /// Starts every process in the order of the list but what is to stay down, without waiting for any of them to be ready.
    pub(crate) async fn start(
        context: &Context,
        port_offset: u16,
        list: ProcessList,
        programs: Vec<PathBuf>,
        database: &Database,
        record: &Record,
        metrics: &SupervisionMetrics,
    ) -> Result<Self, Failure> {
        let first_slot = first_slot()?;
        let launchers = launchers(context, port_offset, first_slot, &list, programs, database, record)?;
        let list = Arc::new(list);
        let orders = Orders::load(open(database.url()).await?, Arc::clone(&list), first_slot).await?;
        begin_records(context, record, &launchers)?;
        let launchers: HashMap<String, Launcher> =
            launchers.into_iter().map(|launcher| (launcher.process.name.clone(), launcher)).collect();
        let socket = up_control::open(&context.home)?;
        let work = |process: &Process, slot: u32| launchers[&process.name].work(slot);
        let parked = orders.drained();
        let options = Options { patience: GONE_WITHIN, events: EVENTS, log: false, parked, ..Options::default() };
        let handle = Supervisor::start(tree(&list, work, first_slot), &options)
            .map_err(|error| Failure::failed("The tree of the fleet cannot be run").because(&error))?;

        let (started, to_keep) = mpsc::unbounded_channel();
        let paths = launchers.values().map(|launcher| launcher.path.clone()).collect();
        let (herald, telling) = Herald::new(database.url(), metrics.clone());
        let chronicle = Chronicle { record: record.clone(), processes: paths, started, herald };
        // before anything else runs, so that it misses nothing
        let events = handle.events();
        let mut listener = JoinSet::new();
        listener.spawn(chronicle.run(handle.clone(), events));

        let scaled = scaled_pools(&list)?;
        let home = context.home.clone();
        let steering = Steering::new(handle, list, Arc::new(launchers), record.clone(), home.clone(), orders);
        steering.orders.tell();
        steering.note_orders();
        let background = CancellationToken::new();
        let mut chores = JoinSet::new();
        // ends once the chronicle has, so that the last words are written too
        chores.spawn(telling.run());
        chores.spawn(database.clone().watch(background.clone()));
        chores.spawn(bound_logs(home.clone(), record.clone(), background.clone()));
        chores.spawn(run_autoscaler(
            database.url().to_owned(),
            scaled,
            steering.clone(),
            Pace::default(),
            background.clone(),
        ));
        chores.spawn(keep(steering.clone(), to_keep, background.clone()));
        chores.spawn(up_control::serve(socket, steering.clone(), background.clone()));
        Ok(Self { steering, home, background, listener, ending: None, chores })
    }

    /// Returns when the tree has ended by itself; why, and what to do.
    pub(crate) async fn over(&mut self) -> Failure {
        let ending = self.ended().await;
        let logs = format!("see {}", self.home.path().join("logs").display());
        let words = |process: &str| last_words(&self.home.log_tail(process));
        match &ending.outcome.end {
            End::GaveUp => {
                let path = ending.gave_up.clone().unwrap_or_default();
                let process = path.rsplit('/').next().unwrap_or_default();
                Failure::failed(format!("The fleet gave up: {process} was restarted too often"))
                    .cause(words(process))
                    .hint(format!("{logs}; `intensity` in the list of processes says how often is too often"))
            }
            End::StartFailed { child, reason } => {
                Failure::failed(format!("{child} could not be started")).cause(reason.clone()).hint(logs)
            }
            End::Leaked { paths } => Failure::failed(format!("Could not be killed: {}", paths.join(", "))).hint(logs),
            other => Failure::failed(format!("The tree of the fleet ended: {other:?}")).hint(logs),
        }
    }

    /// Stops every process in reverse order; a second signal does it at once. The database is still there meanwhile.
    pub(crate) async fn stop(mut self, signals: &mut Signals) {
        self.steering.handle.shutdown();
        let handle = self.steering.handle.clone();
        tokio::select! {
            () = async { self.ended().await; } => {}
            () = signals.wait() => {
                handle.kill();
                self.ended().await;
            }
        }
        self.background.cancel();
        while self.chores.join_next().await.is_some() {}
    }

    async fn ended(&mut self) -> Ending {
        if let Some(ending) = &self.ending {
            return ending.clone();
        }
        let ending = match self.listener.join_next().await {
            Some(Ok(ending)) => ending,
            // without its listener the tree still ends
            _ => Ending { outcome: self.steering.handle.ended().await, gave_up: None },
        };
        self.ending = Some(ending.clone());
        ending
    }
}

/// The processes whose number follows their queues.
fn scaled_pools(list: &ProcessList) -> Result<Vec<ScaledPool>, Failure> {
    let mut pools = Vec::new();
    for process in &list.processes {
        if let Some(claimed) = &process.route {
            pools.push(ScaledPool::new(process, claimed, OwnSettings::of(process)?.concurrency()));
        }
    }
    Ok(pools)
}

/// Begins the logs and the state of the instances that the fleet starts with.
fn begin_records(context: &Context, record: &Record, launchers: &[Launcher]) -> Result<(), Failure> {
    for launcher in launchers {
        for slot in (launcher.first_slot..).take(launcher.process.first_instances() as usize) {
            drop(context.home.fresh_log(&launcher.name(slot))?);
            record.add(launcher.before_start(slot));
        }
    }
    Ok(())
}

/// What each process of the list is started with, in its order.
fn launchers(
    context: &Context,
    port_offset: u16,
    first_slot: u32,
    list: &ProcessList,
    programs: Vec<PathBuf>,
    database: &Database,
    record: &Record,
) -> Result<Vec<Launcher>, Failure> {
    let environment: Arc<[(&'static str, String)]> = environment(database.url(), port_offset)?.into();
    let launcher = |(process, program): (&Process, PathBuf)| {
        Ok(Launcher {
            process: process.clone(),
            path: list.path_of(process),
            program,
            port: list.first_port(process, port_offset)?,
            first_slot,
            port_variable: OwnSettings::of(process)?.own_variable("port"),
            environment: Arc::clone(&environment),
            home: context.home.clone(),
            record: record.clone(),
        })
    };
    list.processes.iter().zip(programs).map(launcher).collect()
}

/// What each child is told beside its own environment.
fn environment(database_url: &str, port_offset: u16) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut environment = vec![
        ("DATABASE_URL", database_url.to_owned()),
        ("COGO_PORT_OFFSET", port_offset.to_string()),
        ("COGO_LOG_FORMAT", "json".to_owned()),
    ];
    if let Some(directory) = std::env::var_os("COGO_CONFIG_DIR") {
        let directory = Context::absolute(directory.as_ref())?;
        environment.push(("COGO_CONFIG_DIR", directory.to_string_lossy().into_owned()));
    }
    Ok(environment)
}

/// Gives processes that were started anew as a whole the instances that they had.
async fn keep(steering: Steering, mut to_keep: mpsc::UnboundedReceiver<String>, stop: CancellationToken) {
    while let Some(Some(path)) = stop.run_until_cancelled(to_keep.recv()).await {
        steering.keep(&path).await;
    }
}

async fn bound_logs(home: Home, record: Record, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(BOUND_LOGS_EVERY)).await.is_some() {
        let state = record.state();
        for name in state.processes.iter().map(|process| process.name.as_str()).chain(["up"]) {
            match home.bound_log(name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(%error, log = name, "log not cut"),
                _ => {}
            }
        }
    }
}
