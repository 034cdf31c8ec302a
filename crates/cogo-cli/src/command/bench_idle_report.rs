//! What a fleet at rest costs, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use crate::output::table;

/// Cost of one process, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Cost {
    pub(crate) cpu_percent_of_one_core: f64,
    pub(crate) rss_mib: f64,
    /// Shared pages counted by their share; none where it may not be read.
    pub(crate) pss_mib: Option<f64>,
}

/// What the sessions of a process cost the server; none where its processes cannot be seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rest {
    sessions: Option<usize>,
    sessions_cpu_percent_of_one_core: Option<f64>,
}

/// One process of the fleet.
#[derive(Debug, Serialize)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) pid: u32,
    #[serde(flatten)]
    pub(crate) cost: Cost,
    #[serde(flatten)]
    pub(crate) rest: Rest,
}

/// The process that costs most.
#[derive(Debug, PartialEq, Serialize)]
struct Busiest {
    name: String,
    pid: u32,
    /// Its own time and that of its sessions, as far as these are known.
    cpu_percent_of_one_core: f64,
    /// The first part of it.
    own_cpu_percent_of_one_core: f64,
}

/// Everything that was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    fleet: Cost,
    sessions_cpu_percent_of_one_core: Option<f64>,
    seconds: f64,
    busiest: Option<Busiest>,
    /// Processes that were not there from begin to end; the figures lack them.
    pub(crate) lost: Vec<String>,
    processes: Vec<Named>,
    /// The embedded Postgres with all its server processes, sessions of others included; not part of the sums.
    postgres: Option<Cost>,
}

impl Cost {
    /// The proportional share is known only if it is known of all.
    pub(crate) fn sum<'a>(costs: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut total = Self { pss_mib: Some(0.0), ..Self::default() };
        for cost in costs {
            total.cpu_percent_of_one_core += cost.cpu_percent_of_one_core;
            total.rss_mib += cost.rss_mib;
            total.pss_mib = total.pss_mib.zip(cost.pss_mib).map(|(sum, one)| sum + one);
        }
        total
    }

    fn rounded(self) -> Self {
        let two = |value: f64| (value * 100.0).round() / 100.0;
        Self {
            cpu_percent_of_one_core: three(self.cpu_percent_of_one_core),
            rss_mib: two(self.rss_mib),
            pss_mib: self.pss_mib.map(two),
        }
    }
}

impl Rest {
    pub(crate) fn of_sessions(sessions: usize, percent: f64) -> Self {
        Self { sessions: Some(sessions), sessions_cpu_percent_of_one_core: Some(three(percent)) }
    }

    pub(crate) fn unknown() -> Self {
        Self::default()
    }
}

impl Report {
    pub(crate) fn new(elapsed: Duration, processes: Vec<Named>, lost: Vec<String>, postgres: Option<Cost>) -> Self {
        let of_sessions: Option<Vec<f64>> =
            processes.iter().map(|process| process.rest.sessions_cpu_percent_of_one_core).collect();
        let busiest = processes.iter().map(Busiest::new);
        Self {
            fleet: Cost::sum(processes.iter().map(|process| &process.cost)).rounded(),
            sessions_cpu_percent_of_one_core: of_sessions.map(|percent| three(percent.iter().sum())),
            seconds: (elapsed.as_secs_f64() * 100.0).round() / 100.0,
            busiest: busiest.max_by(|one, other| one.cpu_percent_of_one_core.total_cmp(&other.cpu_percent_of_one_core)),
            lost,
            postgres: postgres.map(Cost::rounded),
            processes: processes.into_iter().map(|process| Named { cost: process.cost.rounded(), ..process }).collect(),
        }
    }
}

impl Busiest {
    fn new(process: &Named) -> Self {
        let own = process.cost.cpu_percent_of_one_core;
        let of_sessions = process.rest.sessions_cpu_percent_of_one_core.unwrap_or(0.0);
        Self {
            name: process.name.clone(),
            pid: process.pid,
            cpu_percent_of_one_core: three(own + of_sessions),
            own_cpu_percent_of_one_core: three(own),
        }
    }
}

/// A thousandth of a percent: what is to be shown is a tenth.
fn three(percent: f64) -> f64 {
    (percent * 1000.0).round() / 1000.0
}

/// The table for people.
pub(crate) fn readable(report: &Report) -> String {
    let percent = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let row = |name: &str, pid: String, cost: &Cost, sessions: Option<usize>, of_sessions: Option<f64>| {
        [
            name.to_owned(),
            pid,
            percent(Some(cost.cpu_percent_of_one_core)),
            sessions.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            percent(of_sessions),
            format!("{:.1}", cost.rss_mib),
            cost.pss_mib.map_or_else(|| "-".to_owned(), |pss| format!("{pss:.1}")),
        ]
    };
    let of_process = |process: &Named| {
        let rest = process.rest;
        row(&process.name, process.pid.to_string(), &process.cost, rest.sessions, rest.sessions_cpu_percent_of_one_core)
    };
    let mut rows: Vec<[String; 7]> = report.processes.iter().map(of_process).collect();
    let sessions = report.processes.iter().map(|process| process.rest.sessions).sum();
    rows.push(row("fleet", String::new(), &report.fleet, sessions, report.sessions_cpu_percent_of_one_core));
    if let Some(postgres) = &report.postgres {
        rows.push(row("postgres (aside)", String::new(), postgres, None, None));
    }
    table(["process", ">pid", ">cpu %", ">sessions", ">their cpu %", ">rss MiB", ">pss MiB"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, own: f64, rest: Rest) -> Named {
        let cost = Cost { cpu_percent_of_one_core: own, rss_mib: 10.0, pss_mib: Some(5.0) };
        Named { name: name.to_owned(), pid: 7, cost, rest }
    }

    fn report(processes: Vec<Named>) -> Report {
        Report::new(Duration::from_secs(30), processes, Vec::new(), None)
    }

    #[test]
    fn costs_add_up_and_an_unknown_share_stays_unknown() {
        let one = Cost { cpu_percent_of_one_core: 0.1, rss_mib: 10.0, pss_mib: Some(5.0) };
        let total = Cost::sum([&one, &one]);
        assert_eq!(total, Cost { cpu_percent_of_one_core: 0.2, rss_mib: 20.0, pss_mib: Some(10.0) });
        assert_eq!(Cost::sum([&one, &Cost { pss_mib: None, ..one.clone() }]).pss_mib, None);
    }

    #[test]
    fn the_busiest_is_who_costs_most_with_its_sessions() {
        let report = report(vec![
            named("alone", 0.05, Rest::of_sessions(0, 0.0)),
            named("asking", 0.02, Rest::of_sessions(2, 0.0404)),
        ]);
        let value = serde_json::to_value(&report).expect("an object");
        let busiest = &value["busiest"];
        assert_eq!(
            (busiest["name"].as_str(), busiest["cpu_percent_of_one_core"].as_f64()),
            (Some("asking"), Some(0.06))
        );
        assert_eq!(busiest["own_cpu_percent_of_one_core"].as_f64(), Some(0.02));
        assert_eq!(value["sessions_cpu_percent_of_one_core"].as_f64(), Some(0.04));
        assert_eq!(value["processes"][1]["sessions"].as_u64(), Some(2));
    }

    #[test]
    fn sessions_that_were_not_seen_are_not_zero() {
        let report = report(vec![named("one", 0.05, Rest::unknown())]);
        let value = serde_json::to_value(&report).expect("an object");
        assert!(value["sessions_cpu_percent_of_one_core"].is_null() && value["processes"][0]["sessions"].is_null());
        assert_eq!(value["busiest"]["cpu_percent_of_one_core"].as_f64(), Some(0.05));
        assert!(readable(&report).contains("0.050         -            -"), "{}", readable(&report));
    }
}
