//! `cogo chaos`: breaks a fleet of its own on purpose and proves what it promises meanwhile.

mod account;
pub(crate) mod agent;
mod faults;
mod fleet;
mod load;
mod owners;
mod report;
mod schedule;
mod server;
mod truth;
mod verdict;
mod watch;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use cogo_bus_check::{Call, Journal};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    failure::{Failure, Kind},
};

use self::{
    faults::{Healed, Injector},
    fleet::{ChaosFleet, Places},
    report::{Report, Told},
    schedule::{Crew, Fault, FaultKind, schedule},
    server::ChaosServer,
    watch::{Seen, Shared, Watcher},
};

/// Two, so that one can be struck and the other goes on sweeping.
const KEEPERS: u32 = 2;
/// Once faults and load have stopped, everything must have ended within this time.
const DRAIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Kill, stop and confuse a fleet of its own by a schedule that a seed decides, and check what it promises.
///
/// It never touches a fleet that runs: it starts a Postgres and processes of its own, keeps a steady load on the bus, and
/// removes everything at the end. The processes work in the frame of every service, under a tree as that of `cogo up`.
///
/// Promised are no message lost, no completion recorded twice, no moment with two owners of a slot, the fleet whole
/// again within 35 s of each fault (of a stop: of its end; what was in the hands of the stopped is elsewhere within
/// 35 s of its beginning), a crashed process replaced within 2 s, and 99.9 % of the health verdicts right. A verdict is
/// what the registry says of a slot, compared with /proc: beats every 5 s, suspect after 15 s, dead after 30 s, each up to
/// 3 s late. The exit code is 1 if one of them was broken; then logs and journals are kept.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo chaos\n  cogo chaos --minutes 5 --seed 7 --json\n  cogo chaos --minutes 1 --faults kill,postgres-kill --schedule"
)]
pub(crate) struct Chaos {
    /// How long the load lasts, longer only if healing takes its time; five minutes have every kind of fault.
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Decides faults, victims, times and load: the same seed is the same run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only these faults.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    faults: Vec<FaultKind>,
    /// Processes that work.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=64))]
    workers: u32,
    /// Messages a second.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    rate: u32,
    /// Only print the schedule.
    #[arg(long)]
    schedule: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "that is no number".to_owned())?;
    if (0.1..=1_440.0).contains(&minutes) { Ok(minutes) } else { Err("it must be 0.1 to 1440".to_owned()) }
}

impl Chaos {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let crew = self.crew();
        let kinds = if self.faults.is_empty() { FaultKind::value_variants() } else { &self.faults };
        let length = Duration::from_secs_f64(self.minutes * 60.0);
        let faults = schedule(self.seed, length, kinds, crew);
        if self.schedule {
            return context.output.either(&faults, || lines(&faults));
        }
        context.output.note(&format!("schedule of seed {}:\n{}", self.seed, lines(&faults)));
        let mut interrupt = Interrupt::new()?;
        let directory = Scratch(context.home.path().join(format!("chaos-{}", std::process::id())));
        let places = Places::make(directory.0.clone())?;
        // not broken off by a signal: a Postgres that is just being started would be left behind
        let server = Box::pin(ChaosServer::start(places.directory())).await?;
        let outcome = Box::pin(self.on_server(context, &server, &places, crew, &faults, &mut interrupt)).await;
        let removed = server.remove().await;
        let report = outcome?;
        removed?;
        context.output.either(&report, || report.readable())?;
        let broken = report.broken();
        if broken.is_empty() {
            return Ok(());
        }
        report.details().for_each(|detail| context.output.note(detail));
        let kept = directory.keep();
        Err(Failure::failed("The fleet broke a promise")
            .cause(broken.join("; "))
            .hint(format!("logs and journals are in {}", kept.display())))
    }

    /// Everything between the start of the server and its end.
    async fn on_server(
        &self,
        context: &Context,
        server: &ChaosServer,
        places: &Places,
        crew: Crew,
        faults: &[Fault],
        interrupt: &mut Interrupt,
    ) -> Result<Report, Failure> {
        let (fleet, events) = ChaosFleet::start(crew, &server.url(), places).await?;
        let journal = Journal::in_memory("load");
        let (shared, stop) = (Shared::new(), CancellationToken::new());
        let (watcher, looks) =
            Watcher::new(server.pool.clone(), fleet.handle.clone(), events, crew.seats(), shared.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.clone().watch(stop.clone()));
        tasks.spawn(watcher.run(stop.clone()));
        let output = context.output;
        let injector = Injector { fleet: &fleet, server, shared, looks, output, last_ailed: Vec::new() };
        let blown = tokio::select! {
            blown = Box::pin(self.blow(injector, &journal, faults)) => blown,
            () = interrupt.wait() => Err(interrupted()),
        };
        // in order, since a start of Postgres may be under way
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        // a second signal makes it quick
        fleet.stop(interrupt.wait()).await;
        let (healed, seen) = blown?;
        let sent: Vec<Call> = journal.calls();
        context.output.note("checking every call against every row");
        let account = account::settle(&server.pool, sent, &places.journals()).await?;
        Ok(Report::new(Told { seed: self.seed, minutes: self.minutes }, healed, seen, &account))
    }

    /// Load and faults for the whole time, and the time after it in which everything must end.
    async fn blow(
        &self,
        mut injector: Injector<'_>,
        journal: &Journal,
        faults: &[Fault],
    ) -> Result<(Vec<Healed>, Seen), Failure> {
        let (server, output) = (injector.server, injector.output);
        output.note("waiting for the fleet");
        injector.until_whole().await?;

        let begun = Instant::now();
        let end = begun + Duration::from_secs_f64(self.minutes * 60.0);
        output.note(&format!("{} processes are up, {} messages a second", self.crew().seats().count(), self.rate));
        let (mut load, stop_load) = (JoinSet::new(), CancellationToken::new());
        load.spawn(load::send(server.pool.clone(), self.seed, self.rate, journal.clone(), stop_load.clone()));
        let healed = Box::pin(injector.inject(faults, begun, end)).await?;
        sleep_until(end.into()).await;
        stop_load.cancel();
        while load.join_next().await.is_some() {}

        output.note("the load has ended, waiting until everything is done");
        let drained = async {
            while !is_drained(server).await {
                sleep(LOOK_EVERY).await;
            }
        };
        // what is left then is in the report
        let _ = timeout(DRAIN, drained).await;
        Ok((healed, injector.shared.seen()))
    }

    fn crew(&self) -> Crew {
        Crew { workers: self.workers, keepers: KEEPERS }
    }
}

async fn is_drained(server: &ChaosServer) -> bool {
    let look = sqlx::query_scalar("select not exists (select from public.agent_messages where done_at is null)");
    // a database that does not answer has not drained
    look.fetch_one(&server.pool).await.unwrap_or(false)
}

fn lines(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "no fault fits into the time".to_owned();
    }
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn interrupted() -> Failure {
    Failure::new(Kind::Interrupted, "Interrupted")
}

/// The directory of a run, which goes with it unless it is kept.
struct Scratch(PathBuf);

impl Scratch {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        // nothing more to do when it stays
        let _ = fs::remove_dir_all(&self.0);
        // a directory of a fleet that was made for this alone is empty now, any other one is not
        if let Some(parent) = self.0.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// The signals that mean "stop".
struct Interrupt([Signal; 2]);

impl Interrupt {
    fn new() -> Result<Self, Failure> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    /// Returns with the next of them.
    async fn wait(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
