//! `cogo up`: starts the fleet and keeps it alive until told to stop.

use std::{
    collections::HashMap,
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use cogo_telemetry::SupervisionMetrics;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::{
    command::{up_background, up_database::Database, up_fleet::Fleet, up_table::show},
    context::Context,
    failure::Failure,
    fleet::{
        FleetState, Phase, ProcessList, ProcessState, Readiness, Record, end_all, last_words, probe_client, readiness,
    },
};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For processes that a `cogo up` left behind when it was killed.
const LEFTOVER_GRACE: Duration = Duration::from_secs(12);
/// Exit code of a process whose settings cannot be used (`EX_CONFIG`): starting it again does not help.
const BAD_SETTINGS: &str = "exit code 78";

/// Start the database and every process of the fleet, and keep them alive.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  cogo up\n  cogo up --detach --port-offset 100 --data-dir .cogo-b\n  cogo up --only bus-reclaimer,gateway-api"
)]
pub(crate) struct Up {
    /// Run in the background; return once the fleet is ready.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Added to every port, to run a second fleet on one machine.
    #[arg(long, value_name = "N", default_value_t = 0, env = "COGO_PORT_OFFSET")]
    pub(crate) port_offset: u16,
    /// Start these processes only.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// List of processes to be used instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub(crate) processes: Option<PathBuf>,
    /// Seconds within which every process must be ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) ready_timeout: u64,
    /// Set for the process that `--detach` leaves behind.
    #[arg(long, hide = true)]
    pub(crate) background: bool,
}

impl Up {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let list = ProcessList::read(self.processes.as_deref())?.only(&self.only)?;
        let programs = list.programs()?;
        context.home.prepare()?;
        if self.detach {
            return Box::pin(up_background::run(&self, context)).await;
        }
        if self.background {
            // a session of its own, so that the end of the terminal is not its end
            rustix::process::setsid()
                .map_err(|error| Failure::failed("Leave the terminal").cause(error.to_string()))?;
        }
        let Some(_taken) = context.home.take()? else { return Err(already_up(context)) };
        let telemetry = start_log(context)?;
        let mut signals = Signals::new()?;

        end_leftovers(context).await?;
        check_ports(&list, self.port_offset)?;
        let began = Instant::now();
        let spinner = context.output.spinner("starting the database");
        let database = tokio::select! {
            database = Box::pin(Database::start(context)) => database?,
            () = signals.wait() => return Ok(()),
        };
        spinner.finish_and_clear();

        let record = Record::new(context.home.clone(), FleetState::new(database.reference(), self.port_offset));
        let metrics = SupervisionMetrics::new(&telemetry.meter());
        let mut fleet =
            match Box::pin(Fleet::start(context, self.port_offset, list, programs, &database, &record, &metrics)).await
            {
                Ok(fleet) => fleet,
                Err(failure) => {
                    database.stop().await;
                    context.home.remove_state()?;
                    return Err(failure);
                }
            };
        let outcome = tokio::select! {
            outcome = Box::pin(self.serve(context, &record, began, &mut signals)) => outcome,
            failure = fleet.over() => Err(failure),
        };

        record.change(|state| state.phase = Phase::Stopping);
        fleet.stop(&mut signals).await;
        database.stop().await;
        context.home.remove_state()?;
        if outcome.is_ok() {
            context.output.note("stopped");
        }
        outcome
    }

    /// Waits until the fleet is ready, says so, and waits for the wish to stop.
    async fn serve(
        &self,
        context: &Context,
        record: &Record,
        began: Instant,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let spinner = context.output.spinner("waiting for the processes");
        let patience = Duration::from_secs(self.ready_timeout);
        tokio::select! {
            ready = wait_until_ready(context, record, patience) => ready?,
            () = signals.wait() => return Ok(()),
        }
        spinner.finish_and_clear();
        record.change(|state| {
            state.phase = Phase::Ready;
            state.ready_after_s = Some(began.elapsed().as_secs_f64());
        });
        if !self.background {
            show(&context.output, &record.state())?;
            context.output.note("Ctrl-C stops the fleet");
        }
        signals.wait().await;
        info!("stopping");
        Ok(())
    }
}

/// The signals that mean "stop".
pub(crate) struct Signals {
    kinds: [Signal; 3],
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            kinds: [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?],
        })
    }

    /// Returns with the next of them.
    pub(crate) async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.kinds;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What a `cogo up` left behind that was killed.
async fn end_leftovers(context: &Context) -> Result<(), Failure> {
    let Some(old) = context.home.read_state()? else { return Ok(()) };
    let ended = end_all(&old, LEFTOVER_GRACE).await;
    if ended.found > 0 {
        warn!(processes = ended.found, killed = ended.killed, "ended processes of a fleet whose `cogo up` is gone");
    }
    context.home.remove_state()
}

fn start_log(context: &Context) -> Result<cogo_telemetry::Guard, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let mut settings = cogo_telemetry::Settings::new("cogo-up", version, format!("cogo-up#{}", std::process::id()));
    if let Some(filter) = std::env::var_os("RUST_LOG").and_then(|filter| filter.into_string().ok()) {
        settings.log_filter = filter;
    }
    let given = |name: &str| std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty());
    settings.otlp_endpoint = given("OTEL_EXPORTER_OTLP_ENDPOINT");
    settings.statsd_addr = given("COGO_STATSD_ADDR");
    if context.output.is_json() {
        settings.log_format = cogo_telemetry::LogFormat::Json;
    }
    cogo_telemetry::init_cli(&settings).map_err(|error| Failure::failed("Start the log").because(&error))
}

pub(crate) fn already_up(context: &Context) -> Failure {
    let holder = context.home.holder().ok().flatten();
    let holder = holder.map_or_else(String::new, |identity| format!(" (process {})", identity.pid));
    Failure::conflict(format!("A fleet is already up in {}{holder}", context.home.path().display()))
        .hint("`cogo status` shows it, `cogo down` stops it; another --data-dir with --port-offset runs a second one")
}

/// The port of each process must be there and free, and nobody else's.
fn check_ports(list: &ProcessList, offset: u16) -> Result<(), Failure> {
    let (mut taken, mut wanted) = (Vec::new(), HashMap::new());
    for process in &list.processes {
        let port = list.first_port(process, offset)?;
        if let Some(other) = wanted.insert(port, process.name.as_str()) {
            return Err(Failure::conflict(format!("{other} and {} are both to listen on port {port}", process.name))
                .hint("give one of them another `port` in the list of processes or in its settings"));
        }
        if TcpListener::bind(("127.0.0.1", port)).is_err() {
            taken.push(format!("{port} ({})", process.name));
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    Err(Failure::conflict(format!("Ports are taken by another program: {}", taken.join(", ")))
        .hint("stop that program, or choose other ports with `cogo up --port-offset N`"))
}

async fn wait_until_ready(context: &Context, record: &Record, patience: Duration) -> Result<(), Failure> {
    let client = probe_client()?;
    let deadline = Instant::now() + patience;
    loop {
        let state = record.state();
        let found = readiness(&client, &state).await;
        if found.iter().all(|readiness| readiness.is_as_meant()) {
            return Ok(());
        }
        if let Some(process) = state.processes.iter().find(|process| process.last_end.as_deref() == Some(BAD_SETTINGS))
        {
            return Err(Failure::failed(format!("{} refuses its settings", process.name))
                .cause(last_words(&context.home.log_tail(&process.name)))
                .hint(format!("see {}", process.log.display())));
        }
        let is_superseded = |process: &&ProcessState| {
            process.running.is_none() && process.last_end.as_ref().is_some_and(|end| end.starts_with("superseded"))
        };
        if let Some(process) = state.processes.iter().find(is_superseded) {
            return Err(Failure::conflict(format!("{} was superseded", process.name))
                .cause(last_words(&context.home.log_tail(&process.name)))
                .hint("another fleet works on this database; `cogo agents` shows it"));
        }
        if Instant::now() >= deadline {
            return Err(not_ready(context, &state, &found, patience));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn not_ready(context: &Context, state: &FleetState, found: &[Readiness], patience: Duration) -> Failure {
    let late: Vec<&ProcessState> = state
        .processes
        .iter()
        .zip(found)
        .filter(|(_, readiness)| !readiness.is_as_meant())
        .map(|(process, _)| process)
        .collect();
    let names: Vec<&str> = late.iter().map(|process| process.name.as_str()).collect();
    let causes: Vec<String> = late
        .iter()
        .filter_map(|process| {
            let words = last_words(&context.home.log_tail(&process.name));
            match (&process.last_end, words.is_empty()) {
                (None, true) => None,
                (Some(end), true) => Some(format!("{} ({end})", process.name)),
                (None, false) => Some(format!("{}: {words}", process.name)),
                (Some(end), false) => Some(format!("{} ({end}): {words}", process.name)),
            }
        })
        .collect();
    Failure::timeout(format!("Not ready within {} s: {}", patience.as_secs(), names.join(", ")))
        .cause(causes.join("; "))
        .hint(format!("see {}", context.home.path().join("logs").display()))
}
