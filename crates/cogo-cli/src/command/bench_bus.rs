//! `cogo bench bus`: how fast the bus is on this machine, beside plain inserts and, if wanted, beside its peers.

use std::{future::Future, path::PathBuf, time::Duration};

use clap::Args;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    command::{
        bench_bus_database::{BenchDatabase, BenchServer},
        bench_bus_limit,
        bench_bus_load::{Load, Plan},
        bench_bus_mixed::{First, Terms},
        bench_bus_peers::{Peer, find_peers},
        bench_bus_ping::{idle_pings, loaded_pings},
        bench_bus_report::{OneRun, Report, readable},
        bench_bus_runtime::{self, RuntimeDrain},
    },
    context::Context,
    failure::Failure,
};

/// Threads of the measuring client, as the processes of a fleet have them.
const CLIENT_THREADS: usize = 2;

/// Measure the bus: enqueue, drain, both at once, ping, bytes, and how near the limit of the server that is.
///
/// Works in a database of its own on the server of DATABASE_URL or of the fleet, or on a Postgres of its own if there
/// is neither, and removes it afterwards. Consumers are bare clients that claim and complete in batches. The drain is also
/// measured through a worker process with a handler that answers at once, right after bare clients: the difference is what
/// the runtime costs.
///
/// With --peers each run also runs `<peer>/run.sh throughput N` (environment PEER_DB, PAD, ENQ_BATCH; it ends with a line
/// of JSON that has enqueue_per_s and process_per_s), and then the mixed load of ours beside that of the peer: of pgmq in
/// two turns each of --mixed-seconds, by the same producers and consumers through its SQL functions, and before it enqueue
/// and drain in turns of a second, which no change of the machine's speed comes between; of graphile-worker,
/// graphile_worker-rs and procrastinate one after the other, by their own worker while the producers send through their SQL
/// functions. The others have no mixed run, and the report says why. DATABASE_URL must be the server of the scripts.
///
/// How near the limit of the server the bus is, is measured in three turns of the bus and of plain inserts and updates.
///
/// A ping is one message, until the worker sees its end recorded; a request is one on whose reply somebody waits.
/// With --json the last line is one object; ratios in it are ours divided by the peer's.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo bench bus --messages 50000 --json\n  cogo bench bus --peers peers --peer pgmq --runs 3\n  \
        cogo bench bus --peers peers --peer pgmq --database-url postgres://postgres@127.0.0.1:56321/postgres --json"
)]
pub(crate) struct BenchBus {
    /// Messages of each batch phase.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: u32,
    /// Connections that claim and complete.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    consumers: u16,
    /// Connections that send.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    producers: u16,
    /// Messages that the worker process works on at once at most.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u16).range(1..=5000))]
    hands: u16,
    /// Messages of one statement.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Size of a payload as JSON text.
    #[arg(long, value_name = "BYTES", default_value_t = 300, value_parser = clap::value_parser!(u32).range(32..=500_000))]
    payload_bytes: u32,
    /// Pings, and requests, of each run, idle and again under load.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    samples: u32,
    /// How often everything is measured; figures are medians.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// How long producers and consumers work at once: what a queue leaves to be cleaned up slows it down after seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=3600))]
    mixed_seconds: u16,
    /// Directory with one `<peer>/run.sh` each, measured in turn with the bus.
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Only this peer; may be repeated.
    #[arg(long, value_name = "NAME", requires = "peers")]
    peer: Vec<String>,
}

impl BenchBus {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let plan = self.plan();
        let mut peers = match &self.peers {
            Some(directory) => find_peers(directory, &self.peer)?,
            None => Vec::new(),
        };
        let client = ClientThreads::start()?;
        let server = BenchServer::find_or_start(context).await?;
        let settings = server.settings().await?;
        if !settings.durable {
            context.output.note("note: this server does not wait for its disk; the figures say little");
        }
        let (mut runs, mut drains) = (Vec::new(), Vec::new());
        for number in 1..=self.runs {
            let note = |text: String| context.output.note(&format!("run {number}/{}: {text}", self.runs));
            note("messages, pings and the limit".to_owned());
            let one = self.measure(&server, &client.handle, plan).await?;
            note(one.summary());
            drains.push(bench_bus_runtime::measure(&server, &client.handle, plan, self.hands).await?);
            note(drains.last().map(RuntimeDrain::summary).unwrap_or_default());
            runs.push(one);
            let terms = Terms { plan, time: self.mixed_time(), first: First::of(u64::from(number)) };
            for peer in &mut peers {
                measure_peer(peer, (&server, &client.handle), terms).await?;
                note(peer.summary());
            }
        }
        server.close().await;
        let report = Report::new(plan, settings, (&runs, &drains), &peers);
        context.output.either(&report, || readable(&report))?;
        report.verdict()
    }

    /// One run in a fresh database; the phases stand apart, so that none disturbs another.
    async fn measure(&self, server: &BenchServer, client: &Handle, plan: Plan) -> Result<OneRun, Failure> {
        let database = server.create_database().await?;
        let (samples, mixed) = (self.samples, self.mixed_time());
        let url = database.url().to_owned();
        let measured = on_threads(client, async move { Box::pin(all_phases(&url, plan, samples, mixed)).await }).await;
        database.remove().await?;
        measured
    }

    fn mixed_time(&self) -> Duration {
        Duration::from_secs(u64::from(self.mixed_seconds))
    }

    fn plan(&self) -> Plan {
        Plan {
            messages: self.messages,
            consumers: self.consumers,
            producers: self.producers,
            batch: self.batch,
            payload_bytes: self.payload_bytes,
        }
    }
}

async fn measure_peer(peer: &mut Peer, at: (&BenchServer, &Handle), terms: Terms) -> Result<(), Failure> {
    // its script makes the database anew
    let database = at.0.adopt(&peer.database)?;
    peer.measure(terms.plan).await;
    peer.measure_beside_us(at, terms).await?;
    database.remove().await
}

async fn all_phases(url: &str, plan: Plan, samples: u32, mixed: Duration) -> Result<OneRun, Failure> {
    let database = BenchDatabase::open(url, plan.connections()).await?;
    let load = Load::new(database.pool(), plan);

    let wal_at_begin = database.wal_position().await?;
    let enqueue_per_s = load.enqueue().await?;
    let wal_enqueued = database.wal_position().await?;
    let drain_per_s = load.drain().await?;
    let wal_drained = database.wal_position().await?;
    let size = database.size_of_messages().await?;
    let limit = bench_bus_limit::measure(url, &load).await?;

    let single_per_s = load.enqueue_singly().await?;
    load.drain().await?;
    let mixed_per_s = load.mixed(mixed).await?;
    load.drain().await?;
    let idle = idle_pings(&load, samples).await?;
    let under_load = loaded_pings(&load, samples).await?;
    let (sent, acknowledged) = load.into_ids();
    let account = database.account(&sent, &acknowledged).await?;
    database.close().await;

    let per_message = |bytes: f64| bytes / f64::from(plan.messages);
    Ok(OneRun {
        enqueue_per_s,
        single_per_s,
        drain_per_s,
        mixed_per_s,
        idle,
        under_load,
        wal_bytes_enqueue: per_message(wal_enqueued - wal_at_begin),
        wal_bytes_drain: per_message(wal_drained - wal_enqueued),
        table_bytes: per_message(size.table),
        index_bytes: per_message(size.indexes),
        limit,
        account,
    })
}

/// Threads for the client alone: the command itself runs on one, which would be the limit of every figure.
pub(crate) struct ClientThreads {
    runtime: Option<Runtime>,
    pub(crate) handle: Handle,
}

impl ClientThreads {
    pub(crate) fn start() -> Result<Self, Failure> {
        let runtime = Builder::new_multi_thread().worker_threads(CLIENT_THREADS).enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }
}

impl Drop for ClientThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // waiting here would block the thread of the command
            runtime.shutdown_background();
        }
    }
}

pub(crate) async fn on_threads<T: Send + 'static>(
    client: &Handle,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    client.spawn(work).await.map_err(|error| Failure::failed("Measuring broke off").because(&error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_run_loses_nothing_and_has_every_figure() {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let plan = Plan { messages: 300, consumers: 2, producers: 2, batch: 50, payload_bytes: 100 };
        let run = runtime.block_on(async {
            let database = cogo_test_support::database().await;
            let run = Box::pin(all_phases(&database.url, plan, 3, Duration::from_millis(300))).await;
            run.expect("a run")
        });
        assert_eq!((run.account.lost, run.account.duplicated), (0, 0));
        assert!(run.account.sent > 300 + 6, "batches, singles, mixed and pings all count: {:?}", run.account);
        for figure in [run.enqueue_per_s, run.single_per_s, run.drain_per_s, run.mixed_per_s, run.table_bytes] {
            assert!(figure > 0.0, "{run:?}");
        }
        assert!(run.idle.done_p50_ms >= run.idle.claimed_p50_ms && run.idle.claimed_p50_ms > 0.0, "{run:?}");
        assert!(run.limit.insert_per_s > 0.0 && run.limit.cycle_per_s > 0.0, "{run:?}");
        assert!(
            run.limit.same_row_per_s > run.limit.same_row_cycle_per_s && run.limit.three_commits_ms > 0.0,
            "{run:?}"
        );
    }
}
