//! `cogo bench idle`: what the fleet costs while it does nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::Args;
use cogo_pg_local::Cluster;

use crate::{
    command::{
        bench_idle_meter::{Look, Meter},
        bench_idle_report::{Cost, Named, Report, Rest, readable},
        bench_idle_sessions::Sessions,
    },
    context::Context,
    failure::Failure,
    format::mebibytes,
    proc_files::{children, memory},
};

/// Between two looks: a session that lives for less may be missed.
const PAUSE: Duration = Duration::from_secs(1);

/// Measure processor time and memory of every process of the fleet at rest, and what its sessions cost the server.
///
/// Every process has a line of its own: its processor time in percent of one core, and beside it that of the server
/// processes of Postgres that serve its sessions, where the server runs on this machine. Memory is its own. With --json
/// the last line is one object; `busiest` is the process that costs most, its sessions included.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo bench idle --seconds 60 --json")]
pub(crate) struct BenchIdle {
    /// How long to look.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
}

impl BenchIdle {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let state = context.home.read_state()?.ok_or_else(|| {
            Failure::unavailable(format!("No fleet is up in {}", context.home.path().display()))
                .hint("`cogo up` starts it")
        })?;
        let mut fleet: Vec<(String, u32)> =
            state.living_up().map(|up| ("cogo up".to_owned(), up.pid)).into_iter().collect();
        for process in &state.processes {
            fleet.extend(process.living().map(|identity| (process.name.clone(), identity.pid)));
        }
        let missing = state.processes.iter().filter(|process| process.living().is_none());
        let mut lost: Vec<String> = missing.map(|process| process.name.clone()).collect();

        let spinner = context.output.spinner("measuring");
        let mut watch = Watch::begin(context, &fleet).await;
        watch.look(Look::First).await;
        let began = Instant::now();
        let time = Duration::from_secs(u64::from(self.seconds));
        while let Some(left) = time.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(PAUSE)).await;
            watch.look(Look::Later).await;
        }
        let elapsed = began.elapsed();
        let mut processes = Vec::new();
        for (name, pid) in fleet {
            match watch.of_process(pid, elapsed) {
                Some((cost, rest)) => processes.push(Named { name, pid, cost, rest }),
                None => lost.push(name),
            }
        }
        let postgres = watch.of_postgres(elapsed);
        spinner.finish_and_clear();

        let report = Report::new(elapsed, processes, lost, postgres);
        context.output.either(&report, || readable(&report))?;
        if report.lost.is_empty() {
            return Ok(());
        }
        Err(Failure::unavailable(format!("Not running all the time: {}", report.lost.join(", ")))
            .hint("see `cogo status`"))
    }
}

/// What is looked at again and again.
struct Watch {
    processes: Vec<u32>,
    meter: Meter,
    sessions: Option<Sessions>,
    /// Server processes of the sessions seen so far, and whose they are.
    owners: BTreeMap<u32, u32>,
    postmaster: Option<u32>,
    postgres: Vec<u32>,
}

impl Watch {
    async fn begin(context: &Context, fleet: &[(String, u32)]) -> Self {
        let sessions = match Sessions::open(context).await {
            Ok(sessions) => sessions,
            Err(failure) => {
                context.output.note(&format!("note: sessions are not measured: {}", failure.text()));
                None
            }
        };
        Self {
            processes: fleet.iter().map(|(_, pid)| *pid).collect(),
            meter: Meter::default(),
            sessions,
            owners: BTreeMap::new(),
            postmaster: embedded_postmaster(context),
            postgres: Vec::new(),
        }
    }

    async fn look(&mut self, look: Look) {
        if let Some(sessions) = &mut self.sessions {
            match sessions.of(&self.processes).await {
                Ok(found) => self.owners.extend(found),
                // half of their time would be worse than none
                Err(_) => self.sessions = None,
            }
        }
        if let Some(postmaster) = self.postmaster {
            self.postgres.push(postmaster);
            self.postgres.extend(children(postmaster));
            self.postgres.sort_unstable();
            self.postgres.dedup();
        }
        let mut all: Vec<u32> = self.owners.keys().chain(&self.processes).chain(&self.postgres).copied().collect();
        all.sort_unstable();
        all.dedup();
        for pid in all {
            self.meter.look(pid, look);
        }
    }

    /// None of a process that is gone or was never there.
    fn of_process(&self, pid: u32, elapsed: Duration) -> Option<(Cost, Rest)> {
        let cost = self.cost(pid, elapsed)?;
        let own: Vec<u32> = self.owners.iter().filter(|(_, process)| **process == pid).map(|(&of, _)| of).collect();
        let rest = match self.sessions {
            Some(_) => Rest::of_sessions(own.len(), own.iter().map(|&of| self.percent(of, elapsed)).sum()),
            None => Rest::unknown(),
        };
        Some((cost, rest))
    }

    /// The postmaster and its server processes, those that came and went included; none where they cannot be seen.
    fn of_postgres(&self, elapsed: Duration) -> Option<Cost> {
        self.postmaster?;
        let memories: Vec<Cost> = self.postgres.iter().filter_map(|&pid| self.cost(pid, elapsed)).collect();
        let used = self.postgres.iter().map(|&pid| self.percent(pid, elapsed)).sum();
        (!memories.is_empty()).then(|| Cost { cpu_percent_of_one_core: used, ..Cost::sum(&memories) })
    }

    fn cost(&self, pid: u32, elapsed: Duration) -> Option<Cost> {
        self.meter.used(pid)?;
        let memory = memory(pid)?;
        Some(Cost {
            cpu_percent_of_one_core: self.percent(pid, elapsed),
            rss_mib: mebibytes(memory.rss),
            pss_mib: memory.pss.map(mebibytes),
        })
    }

    fn percent(&self, pid: u32, elapsed: Duration) -> f64 {
        self.meter.used(pid).unwrap_or_default().as_secs_f64() / elapsed.as_secs_f64() * 100.0
    }
}

fn embedded_postmaster(context: &Context) -> Option<u32> {
    let cluster = Cluster::attach(&context.home.postgres()).ok().flatten()?;
    u32::try_from(cluster.postmaster_pid()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_costs_its_own_time_and_that_of_its_sessions() {
        let own = std::process::id();
        let mut watch = Watch {
            processes: vec![own],
            meter: Meter::default(),
            sessions: None,
            owners: BTreeMap::new(),
            postmaster: Some(own),
            postgres: Vec::new(),
        };
        watch.look(Look::First).await;
        let (cost, rest) = watch.of_process(own, Duration::from_secs(1)).expect("this process lives");
        assert!(cost.rss_mib > 0.0);
        assert_eq!(rest, Rest::unknown(), "nobody looked at sessions");
        assert!(watch.of_process(u32::MAX, Duration::from_secs(1)).is_none());
        assert!(watch.of_postgres(Duration::from_secs(1)).expect("a stand-in").rss_mib > 0.0);
    }
}
