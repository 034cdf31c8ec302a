//! `cogo bench scale`: how fast a real pool follows a load step, and how steady it stays under a square wave.

use std::time::Duration;

use clap::Args;
use cogo_bus_core::Bus;

use crate::{
    command::{
        bench_bus_database::BenchServer,
        bench_scale_fleet::{PoolFleet, Size},
        bench_scale_load::{Load, Wave},
        bench_scale_report::{Report, readable},
        bench_scale_watch::{Watch, step_of},
    },
    context::{Context, open},
    failure::Failure,
};

/// Before the first step, so that there is something to be known of the load at rest.
const QUIET: Duration = Duration::from_secs(15);
/// For what is left of the queue when the wave is over.
const EMPTY_WITHIN: Duration = Duration::from_secs(120);

/// Measure the autoscaler: from a load step to the first claim of a new instance, and changes of the count per period.
///
/// Starts a fleet of its own with a pool of real workers (sandbox-manager; its commands only sleep) in a database of its
/// own, on the server of DATABASE_URL or of the fleet, or on a Postgres of its own if there is neither, and removes all of
/// it afterwards. The load is a square wave: each period begins with the step up.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  cogo bench scale --json\n  cogo bench scale --periods 2 --half-seconds 100 --high 20"
)]
pub(crate) struct BenchScale {
    /// Periods of the square wave.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    periods: u16,
    /// Length of the upper and of the lower half of a period; the count goes down after a minute of less load.
    #[arg(long, value_name = "SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(10..=3600))]
    half_seconds: u16,
    /// Messages a second in the lower half.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
    low: u16,
    /// Messages a second in the upper half.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    high: u16,
    /// How long a worker works on each message, in ms.
    #[arg(long, value_name = "MS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    work_ms: u32,
    /// Messages that an instance works on at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
    /// Most instances of the pool; it begins with one.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=16))]
    max: u32,
}

impl BenchScale {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let server = BenchServer::find_or_start(context).await?;
        let settings = server.settings().await?;
        let database = server.create_database().await?;
        let size = Size { max: self.max, concurrency: self.concurrency };
        context.output.note("starting a fleet with a pool of one");
        let fleet = PoolFleet::start(context, database.url(), size).await?;
        let measured = Box::pin(self.measure(context, database.url())).await;
        let stopped = fleet.stop().await;
        let watch = measured?;
        stopped?;
        database.remove().await?;
        server.close().await;
        let report = Report::new(size, self.wave(), settings, watch);
        context.output.either(&report, || readable(&report))?;
        report.verdict()
    }

    async fn measure(&self, context: &Context, url: &str) -> Result<Watch, Failure> {
        let pool = open(url).await?;
        let load = Load::new(Bus::new(pool.clone()), self.wave());
        let mut watch = Watch::new(pool);
        load.low(QUIET).await?;
        for period in 1..=self.periods {
            let edge = watch.edge().await?;
            let (step, sent) = tokio::join!(step_of(&watch, edge, self.half()), load.high(self.half()));
            sent?;
            let step = step?;
            context.output.note(&format!("period {period}/{}: {}", self.periods, step.summary()));
            watch.steps.push(step);
            load.low(self.half()).await?;
        }
        watch.end().await?;
        watch.account(load.into_sent(), EMPTY_WITHIN).await?;
        Ok(watch)
    }

    fn wave(&self) -> Wave {
        Wave {
            periods: self.periods,
            half_s: self.half_seconds,
            low_per_s: self.low,
            high_per_s: self.high,
            work_ms: self.work_ms,
        }
    }

    fn half(&self) -> Duration {
        Duration::from_secs(u64::from(self.half_seconds))
    }
}
