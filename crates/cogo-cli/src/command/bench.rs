//! `cogo bench`: measures a running fleet, the bus alone, or a pool that is scaled.

use clap::{Args, Subcommand};

use crate::{
    command::{bench_ask, bench_bus, bench_idle, bench_scale, bench_slowdown},
    context::Context,
    failure::Failure,
};

/// Measure a running fleet: answer times under load, or what it costs at rest; or the bus alone; or a pool that is scaled.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Ask(bench_ask::BenchAsk),
    Bus(bench_bus::BenchBus),
    Idle(bench_idle::BenchIdle),
    Scale(bench_scale::BenchScale),
    Slowdown(bench_slowdown::BenchSlowdown),
}

impl Bench {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.what {
            What::Ask(ask) => Box::pin(ask.run(context)).await,
            What::Bus(bus) => Box::pin(bus.run(context)).await,
            What::Idle(idle) => Box::pin(idle.run(context)).await,
            What::Scale(scale) => Box::pin(scale.run(context)).await,
            What::Slowdown(slowdown) => Box::pin(slowdown.run(context)).await,
        }
    }
}
