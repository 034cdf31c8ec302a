//! The drain through the runtime of a worker: a process in the frame that every service has, beside bare clients.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use cogo_contracts::Route;
use cogo_service_runtime::{Claim, Frame, Handler, HandlerError, NoSettings, Service};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
};

use crate::{
    command::{
        bench_bus::on_threads,
        bench_bus_database::{Account, BenchDatabase, BenchServer},
        bench_bus_load::{Load, Plan, WORK},
    },
    failure::{Failure, about_file},
    parent,
    proc_files::cpu_ms,
};

/// How long the worker may take to begin, to drain, and to end.
const PATIENCE: Duration = Duration::from_secs(120);
const FAREWELL: Duration = Duration::from_secs(10);
/// Between two looks whether everything is done: so short that it does not show, and so long that the looks do not.
const LOOK: Duration = Duration::from_millis(10);

/// Be the worker of a measurement.
#[derive(Debug, Args)]
pub(crate) struct BenchWorker {
    /// Process number of the parent.
    #[arg(long)]
    parent: u32,
}

impl BenchWorker {
    /// The whole life of the process.
    ///
    /// # Errors
    /// When it could be left behind.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        parent::end_with(self.parent)?;
        Ok(cogo_service_runtime::serve::<Worker>(env!("CARGO_PKG_VERSION")))
    }
}

struct Worker;

impl Service for Worker {
    const NAME: &'static str = "bench-worker";
    const DOMAIN: &'static str = "bench";
    const LEVEL: i16 = 2;
    // given by the environment
    const PORT: u16 = 0;
    const CAPABILITIES: &'static [&'static str] = &["bench"];
    const ROUTE: Option<Route> = Some(WORK);
    type Settings = NoSettings;

    async fn start(frame: &mut Frame<NoSettings>) -> anyhow::Result<()> {
        frame.worker(Answers);
        Ok(())
    }
}

/// What the load sends.
#[derive(Debug, Deserialize)]
struct Parcel {
    id: u32,
    pad: String,
}

#[derive(Debug, Serialize)]
struct Receipt {
    ok: bool,
}

/// A handler that costs nothing itself.
struct Answers;

impl Handler for Answers {
    const ROUTE: Route = WORK;
    type Request = Parcel;
    type Reply = Receipt;

    async fn handle(&self, parcel: Parcel, _claim: &Claim) -> Result<Receipt, HandlerError> {
        Ok(Receipt { ok: parcel.id != u32::MAX && !parcel.pad.is_empty() })
    }
}

/// The drain of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuntimeDrain {
    /// By bare clients, right before.
    pub(crate) bare_per_s: f64,
    /// By the worker.
    pub(crate) per_s: f64,
    /// Processor time of the worker for one message, in µs.
    pub(crate) own_us: f64,
    pub(crate) account: Account,
}

impl RuntimeDrain {
    /// A line for the person who waits.
    pub(crate) fn summary(&self) -> String {
        let Self { bare_per_s, per_s, own_us, .. } = self;
        format!("{per_s:.0} done/s by a worker, {bare_per_s:.0}/s by bare clients, {own_us:.1} µs of its own a message")
    }

    /// The share of the bare drain that the runtime costs.
    pub(crate) fn cost(&self) -> f64 {
        1.0 - self.per_s / self.bare_per_s
    }
}

/// Drains as many messages by bare clients and then by a worker, in a database of their own.
pub(crate) async fn measure(
    server: &BenchServer,
    client: &Handle,
    plan: Plan,
    hands: u16,
) -> Result<RuntimeDrain, Failure> {
    let database = server.create_database_for("_runtime").await?;
    let url = database.url().to_owned();
    let measured = on_threads(client, async move { Box::pin(both(&url, plan, hands)).await }).await;
    database.remove().await?;
    measured
}

async fn both(url: &str, plan: Plan, hands: u16) -> Result<RuntimeDrain, Failure> {
    let database = BenchDatabase::open(url, plan.connections()).await?;
    let load = Load::new(database.pool(), plan);
    load.enqueue().await?;
    let bare_per_s = load.drain().await?;
    let worker = Process::start(url, hands)?;
    let drained = worker.drain(url, &load).await;
    let (elapsed, spent) = worker.end(drained).await?;
    let (sent, _) = load.into_ids();
    // its acknowledgements are its own: what counts is what stands in the database
    let account = database.account(&sent, &sent).await?;
    database.close().await;
    let messages = f64::from(plan.messages);
    Ok(RuntimeDrain {
        bare_per_s,
        per_s: messages / elapsed.as_secs_f64(),
        own_us: spent.as_secs_f64() * 1e6 / messages,
        account,
    })
}

/// The worker, and where it writes its log.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(url: &str, hands: u16) -> Result<Self, Failure> {
        let log = std::env::temp_dir().join(format!("cogo-bench-worker-{}.log", std::process::id()));
        let file = File::create(&log).map_err(about_file("create", &log))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let child = Command::new(std::env::current_exe()?)
            .args(["bench-worker", "--parent", &std::process::id().to_string()])
            .env_clear()
            .env("DATABASE_URL", url)
            .env("COGO_PORT", port.to_string())
            .env("COGO_CONCURRENCY", hands.to_string())
            .env("COGO_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, log })
    }

    /// Waits until it works, gives it everything at once, and waits until that is done; answers how long it took and how
    /// much processor time.
    async fn drain(&self, url: &str, load: &Load) -> Result<(Duration, Duration), Failure> {
        let mut observer = PgConnection::connect(url).await?;
        sqlx::query("set enable_seqscan = off").execute(&mut observer).await?;
        load.send_one(WORK).await?;
        self.until_done(&mut observer).await?;
        load.bus.pause_route(&WORK, "cogo bench").await?;
        load.enqueue().await?;
        let spent = self.processor_time()?;
        let began = Instant::now();
        load.bus.resume_route(&WORK, "cogo bench").await?;
        self.until_done(&mut observer).await?;
        Ok((began.elapsed(), self.processor_time()?.saturating_sub(spent)))
    }

    async fn until_done(&self, observer: &mut PgConnection) -> Result<(), Failure> {
        let began = Instant::now();
        // claims first, of which there are some as long as it works: looking through what is left of ready rows takes time
        let open = "select exists (select from bus.claims) or exists (select from bus.ready)";
        while sqlx::query_scalar(open).fetch_one(&mut *observer).await? {
            self.processor_time()?;
            if began.elapsed() > PATIENCE {
                return Err(self.failed("The worker does not get done"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn processor_time(&self) -> Result<Duration, Failure> {
        let used =
            self.child.id().and_then(cpu_ms).ok_or_else(|| self.failed("The worker of the measurement ended"))?;
        Ok(Duration::from_millis(used))
    }

    fn failed(&self, what: &str) -> Failure {
        Failure::failed(what).cause(format!("its log is {}", self.log.display()))
    }

    /// Ends it in order; the log of one that did its work is of no use.
    async fn end<T>(mut self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) {
            // one that is gone needs no signal
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(FAREWELL, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        if outcome.is_ok() {
            std::fs::remove_file(&self.log).map_err(about_file("remove", &self.log))?;
        }
        outcome
    }
}
