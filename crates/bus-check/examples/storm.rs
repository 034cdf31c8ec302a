//! The long run of the checks: `storm --messages 1000000 --seed 7 --json`; the last line says what came of it.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use cogo_bus_check::{StormSettings, Tally, run_actor, storm};

/// How the program calls itself for one client.
const CLIENT: &str = "client";
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Sends messages through a Postgres of its own while clients and Postgres are killed, stopped and cut off, and judges every
/// call by what the bus promises: nothing lost, done twice or completed by one who no longer owned it.
#[derive(Parser)]
#[command(
    name = "storm",
    after_help = "Exits with 0 if every promise held, with 1 if one was broken; the lines on standard output then name the calls.\n\n\
                  Examples:\n  storm --messages 20000\n  storm --messages 1000000 --seed 7 --json"
)]
struct Arguments {
    /// At least this many messages go through; a million takes about 45 minutes on two cores.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    messages: u64,
    /// Messages of one round, whose calls are held in memory and judged together.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    round: u64,
    /// What decides the faults.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long workers own what they claim.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2_000)]
    lease_ms: u64,
    /// Break the bus by the statements of this file first, to see that the checker sees it.
    #[arg(long, value_name = "FILE")]
    sabotage: Option<PathBuf>,
    /// End with one JSON object instead of a sentence.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn settings(&self) -> anyhow::Result<StormSettings> {
        let program = std::env::current_exe().context("find this program")?;
        Ok(StormSettings {
            program: (program, vec![CLIENT.to_owned()]),
            messages: self.messages,
            round: self.round,
            seed: self.seed,
            lease: Duration::from_millis(self.lease_ms),
            sabotage: self
                .sabotage
                .as_ref()
                .map(std::fs::read_to_string)
                .transpose()
                .context("read what breaks the bus")?,
        })
    }
}

/// How far it is; `elapsed` includes the round under way.
fn line(tally: &Tally, of: u64, elapsed: Duration) -> String {
    let share = messages_as_f64(tally.messages) / messages_as_f64(of.max(1));
    let left = if share > 0.0 { elapsed.as_secs_f64() * (1.0 / share - 1.0).max(0.0) / 60.0 } else { f64::NAN };
    format!(
        "{} of {of} messages in {} s (about {left:.0} min left), {} clients and {} times Postgres killed, {} stopped, \
         {} connections disturbed, {} unknown outcomes, {} broken promises, {} late recoveries, longest recovery {:.2} s",
        tally.messages,
        elapsed.as_secs(),
        tally.clients_killed,
        tally.postgres_killed,
        tally.workers_stopped,
        tally.connections_disturbed,
        tally.unknown,
        tally.violations,
        tally.recoveries_late,
        tally.recovery_max_s
    )
}

fn messages_as_f64(messages: u64) -> f64 {
    f64::from(u32::try_from(messages).unwrap_or(u32::MAX))
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let (settings, json) = (arguments.settings()?, arguments.json);
    let begin = Instant::now();
    let mut shown = begin;
    let of = settings.messages;
    let tally = Box::pin(storm(&settings, |tally| {
        if shown.elapsed() >= BETWEEN_LINES {
            shown = Instant::now();
            // people watch the one, programs read the other
            let _ = writeln!(std::io::stderr(), "{}", line(tally, of, begin.elapsed()));
        }
    }))
    .await?;
    let mut out = std::io::stdout().lock();
    for report in &tally.reports {
        writeln!(out, "{report}")?;
    }
    writeln!(out, "{}", if json { serde_json::to_string(&tally)? } else { line(&tally, of, begin.elapsed()) })?;
    if tally.recoveries_late > 0 {
        let (late, limit, longest) = (tally.recoveries_late, tally.recovery_limit_s, tally.recovery_net_max_s);
        let (waiting, queued) = (tally.recoveries_waiting, tally.queued_again_max_s);
        let _ = writeln!(
            std::io::stderr(),
            "{late} messages of killed workers ran again later than {limit:.1} s after the kill, the last after {longest:.2} s; \
             {waiting} of these were back in the queue in time and waited for their turn (back after {queued:.2} s at the longest)"
        );
    }
    Ok(tally.holds())
}

fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some(CLIENT) {
        run_actor()?;
        return Ok(ExitCode::SUCCESS);
    }
    let holds = run(Arguments::parse())?;
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
