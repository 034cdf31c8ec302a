//! `cogo bench idle`: what the fleet costs while it does nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::Args;
use cogo_pg_local::Cluster;
use serde::Serialize;

use crate::{
    context::Context,
    failure::Failure,
    format::mebibytes,
    output::table,
    proc_files::{children, cpu_ms, memory},
};

/// Measure processor time and memory of every process of the fleet, Postgres aside.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo bench idle --seconds 30 --json")]
pub(crate) struct BenchIdle {
    /// How long to look.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
}

/// Cost of one process, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Cost {
    cpu_percent_of_one_core: f64,
    rss_mib: f64,
    /// Shared pages counted by their share; none where it may not be read.
    pss_mib: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: String,
    pid: u32,
    #[serde(flatten)]
    cost: Cost,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    fleet: Cost,
    seconds: f64,
    /// Processes that were not there from begin to end; the figures lack them.
    lost: Vec<String>,
    processes: Vec<Named>,
    /// The embedded Postgres with all its server processes; not part of the sums.
    postgres: Option<Cost>,
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
        let postgres = postgres(context);

        let spinner = context.output.spinner("measuring");
        let pids: Vec<u32> = fleet.iter().map(|(_, pid)| *pid).chain(postgres.iter().copied()).collect();
        let before: BTreeMap<u32, u64> = pids.iter().filter_map(|&pid| Some((pid, cpu_ms(pid)?))).collect();
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(u64::from(self.seconds))).await;
        let elapsed = began.elapsed();
        let measure = |pid: u32| cost(pid, *before.get(&pid)?, elapsed);
        let mut processes = Vec::new();
        for (name, pid) in fleet {
            match measure(pid) {
                Some(cost) => processes.push(Named { name, pid, cost }),
                None => lost.push(name),
            }
        }
        let of_postgres: Vec<Cost> = postgres.into_iter().filter_map(measure).collect();
        spinner.finish_and_clear();

        let report = Report {
            fleet: sum(processes.iter().map(|process| &process.cost)),
            seconds: (elapsed.as_secs_f64() * 100.0).round() / 100.0,
            lost,
            postgres: (!of_postgres.is_empty()).then(|| sum(&of_postgres)),
            processes,
        };
        context.output.either(&report, || readable(&report))?;
        if report.lost.is_empty() {
            return Ok(());
        }
        Err(Failure::unavailable(format!("Not running all the time: {}", report.lost.join(", ")))
            .hint("see `cogo status`"))
    }
}

/// The postmaster and its server processes, as far as they can be seen.
fn postgres(context: &Context) -> Vec<u32> {
    let cluster = Cluster::attach(&context.home.postgres()).ok().flatten();
    let Some(postmaster) = cluster.and_then(|cluster| u32::try_from(cluster.postmaster_pid()?).ok()) else {
        return Vec::new();
    };
    let mut pids = vec![postmaster];
    pids.extend(children(postmaster));
    pids
}

fn cost(pid: u32, cpu_before_ms: u64, elapsed: Duration) -> Option<Cost> {
    let used = Duration::from_millis(cpu_ms(pid)?.saturating_sub(cpu_before_ms));
    let memory = memory(pid)?;
    Some(Cost {
        cpu_percent_of_one_core: used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
        rss_mib: mebibytes(memory.rss),
        pss_mib: memory.pss.map(mebibytes),
    })
}

/// The proportional share is known only if it is known of all.
fn sum<'a>(costs: impl IntoIterator<Item = &'a Cost>) -> Cost {
    let mut total = Cost { pss_mib: Some(0.0), ..Cost::default() };
    for cost in costs {
        total.cpu_percent_of_one_core += cost.cpu_percent_of_one_core;
        total.rss_mib += cost.rss_mib;
        total.pss_mib = total.pss_mib.zip(cost.pss_mib).map(|(sum, one)| sum + one);
    }
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    Cost {
        cpu_percent_of_one_core: rounded(total.cpu_percent_of_one_core),
        rss_mib: rounded(total.rss_mib),
        pss_mib: total.pss_mib.map(rounded),
    }
}

fn readable(report: &Report) -> String {
    let row = |name: &str, pid: String, cost: &Cost| {
        let pss = cost.pss_mib.map_or_else(|| "-".to_owned(), |pss| format!("{pss:.1}"));
        [name.to_owned(), pid, format!("{:.2}", cost.cpu_percent_of_one_core), format!("{:.1}", cost.rss_mib), pss]
    };
    let mut rows: Vec<[String; 5]> =
        report.processes.iter().map(|process| row(&process.name, process.pid.to_string(), &process.cost)).collect();
    rows.push(row("fleet", String::new(), &report.fleet));
    if let Some(postgres) = &report.postgres {
        rows.push(row("postgres (aside)", String::new(), postgres));
    }
    table(["process", ">pid", ">cpu %", ">rss MiB", ">pss MiB"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_and_an_unknown_share_stays_unknown() {
        let one = Cost { cpu_percent_of_one_core: 0.1, rss_mib: 10.0, pss_mib: Some(5.0) };
        let total = sum([&one, &one]);
        assert_eq!(total, Cost { cpu_percent_of_one_core: 0.2, rss_mib: 20.0, pss_mib: Some(10.0) });
        assert_eq!(sum([&one, &Cost { pss_mib: None, ..one.clone() }]).pss_mib, None);
    }

    #[test]
    fn the_cost_of_this_process_can_be_measured() {
        let cost = cost(std::process::id(), 0, Duration::from_secs(1)).expect("this process lives");
        assert!(cost.rss_mib > 0.0);
        assert!(super::cost(u32::MAX, 0, Duration::from_secs(1)).is_none());
    }
}
