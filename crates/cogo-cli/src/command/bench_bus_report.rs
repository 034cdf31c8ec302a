//! What the runs come to: medians, ratios, a table for people and an object for programs.

use serde::Serialize;

use crate::{
    command::{
        bench_bus_database::{Account, ServerSettings},
        bench_bus_limit::Limit,
        bench_bus_load::Plan,
        bench_bus_peers::Peer,
        bench_bus_peers_report::{PeerReport, peers_table},
        bench_bus_ping::Pings,
        bench_bus_runtime::RuntimeDrain,
    },
    failure::Failure,
    output::table,
};

/// The figures of one run.
#[derive(Debug, Clone)]
pub(crate) struct OneRun {
    pub(crate) enqueue_per_s: f64,
    pub(crate) single_per_s: f64,
    pub(crate) drain_per_s: f64,
    pub(crate) mixed_per_s: f64,
    pub(crate) idle: Pings,
    pub(crate) under_load: Pings,
    /// Bytes per message, as are the next three.
    pub(crate) wal_bytes_enqueue: f64,
    pub(crate) wal_bytes_drain: f64,
    pub(crate) table_bytes: f64,
    pub(crate) index_bytes: f64,
    pub(crate) limit: Limit,
    pub(crate) account: Account,
}

impl OneRun {
    /// A line for the person who waits.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{:.0} enqueued/s, {:.0} done/s, mixed {:.0}/s, ping {:.1} ms, limit ratio {:.2}",
            self.enqueue_per_s, self.drain_per_s, self.mixed_per_s, self.idle.done_p50_ms, self.limit.cycle_ratio
        )
    }
}

/// Medians over the runs; a ratio is the median of the ratios within the runs.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    messages: u32,
    runs: usize,
    producers: u16,
    consumers: u16,
    batch: u16,
    payload_bytes: u32,
    server: ServerSettings,
    enqueue_per_s: f64,
    enqueue_single_per_s: f64,
    drain_per_s: f64,
    /// Through the runtime of a worker, and by bare clients right before that.
    drain_runtime_per_s: f64,
    drain_bare_beside_per_s: f64,
    /// The share of the latter that the runtime costs.
    runtime_cost: f64,
    /// Processor time of the worker for a message, in µs.
    runtime_own_us: f64,
    mixed_per_s: f64,
    /// From before one message is sent until the worker sees that its end is recorded.
    ping_p50_ms: f64,
    ping_p99_ms: f64,
    ping_claimed_p50_ms: f64,
    ping_claimed_p99_ms: f64,
    ping_loaded_p50_ms: f64,
    ping_loaded_p99_ms: f64,
    /// From before a request until its reply is there.
    request_p50_ms: f64,
    request_p99_ms: f64,
    request_loaded_p50_ms: f64,
    request_loaded_p99_ms: f64,
    ping_load_per_s: f64,
    wal_bytes_enqueue: f64,
    wal_bytes_drain: f64,
    table_bytes: f64,
    index_bytes: f64,
    limit_insert_per_s: f64,
    limit_cycle_per_s: f64,
    limit_same_row_per_s: f64,
    limit_same_row_cycle_per_s: f64,
    limit_three_commits_ms: f64,
    /// As a ping, of a row without a queue: three commits and a notification.
    limit_ping_p50_ms: f64,
    limit_ping_p99_ms: f64,
    enqueue_limit_ratio: f64,
    /// Against plain inserts of rows as wide as those of the bus.
    enqueue_same_row_ratio: f64,
    limit_ratio: f64,
    same_row_limit_ratio: f64,
    sent: i64,
    lost: i64,
    duplicated: i64,
    peers: Vec<PeerReport>,
}

impl Report {
    pub(crate) fn new(
        plan: Plan,
        server: ServerSettings,
        (runs, drains): (&[OneRun], &[RuntimeDrain]),
        peers: &[Peer],
    ) -> Self {
        let through =
            |figure: fn(&RuntimeDrain) -> f64| rounded(median(drains.iter().map(figure).collect()).unwrap_or(f64::NAN));
        let of = |figure: fn(&OneRun) -> f64| rounded(median(runs.iter().map(figure).collect()).unwrap_or(f64::NAN));
        // our messages beside a peer count as well
        let beside = || peers.iter().flat_map(|peer| &peer.accounts).copied();
        let sum = |count: fn(&Account) -> i64| {
            let ours = runs.iter().map(|run| run.account).chain(drains.iter().map(|drain| drain.account));
            ours.chain(beside()).map(|account| count(&account)).sum()
        };
        Self {
            messages: plan.messages,
            runs: runs.len(),
            producers: plan.producers,
            consumers: plan.consumers,
            batch: plan.batch,
            payload_bytes: plan.payload_bytes,
            server,
            enqueue_per_s: of(|run| run.enqueue_per_s),
            enqueue_single_per_s: of(|run| run.single_per_s),
            drain_per_s: of(|run| run.drain_per_s),
            drain_runtime_per_s: through(|drain| drain.per_s),
            drain_bare_beside_per_s: through(|drain| drain.bare_per_s),
            runtime_cost: through(RuntimeDrain::cost),
            runtime_own_us: through(|drain| drain.own_us),
            mixed_per_s: of(|run| run.mixed_per_s),
            ping_p50_ms: of(|run| run.idle.done_p50_ms),
            ping_p99_ms: of(|run| run.idle.done_p99_ms),
            ping_claimed_p50_ms: of(|run| run.idle.claimed_p50_ms),
            ping_claimed_p99_ms: of(|run| run.idle.claimed_p99_ms),
            ping_loaded_p50_ms: of(|run| run.under_load.done_p50_ms),
            ping_loaded_p99_ms: of(|run| run.under_load.done_p99_ms),
            request_p50_ms: of(|run| run.idle.reply_p50_ms),
            request_p99_ms: of(|run| run.idle.reply_p99_ms),
            request_loaded_p50_ms: of(|run| run.under_load.reply_p50_ms),
            request_loaded_p99_ms: of(|run| run.under_load.reply_p99_ms),
            ping_load_per_s: of(|run| run.under_load.load_per_s),
            wal_bytes_enqueue: of(|run| run.wal_bytes_enqueue),
            wal_bytes_drain: of(|run| run.wal_bytes_drain),
            table_bytes: of(|run| run.table_bytes),
            index_bytes: of(|run| run.index_bytes),
            limit_insert_per_s: of(|run| run.limit.insert_per_s),
            limit_cycle_per_s: of(|run| run.limit.cycle_per_s),
            limit_same_row_per_s: of(|run| run.limit.same_row_per_s),
            limit_same_row_cycle_per_s: of(|run| run.limit.same_row_cycle_per_s),
            limit_three_commits_ms: of(|run| run.limit.three_commits_ms),
            limit_ping_p50_ms: of(|run| run.idle.bare_p50_ms),
            limit_ping_p99_ms: of(|run| run.idle.bare_p99_ms),
            enqueue_limit_ratio: of(|run| run.limit.enqueue_ratio),
            enqueue_same_row_ratio: of(|run| run.limit.same_row_ratio),
            limit_ratio: of(|run| run.limit.cycle_ratio),
            same_row_limit_ratio: of(|run| run.limit.same_row_cycle_ratio),
            sent: sum(|account| account.sent),
            lost: sum(|account| account.lost),
            duplicated: sum(|account| account.duplicated),
            peers: peers.iter().map(|peer| PeerReport::new(runs, drains, peer)).collect(),
        }
    }

    /// Speed is a matter of taste; a lost message is not.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        if self.lost == 0 && self.duplicated == 0 {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "Of {} messages {} were lost and {} duplicated",
            self.sent, self.lost, self.duplicated
        )))
    }
}

/// The middle one, or the mean of the two in the middle; none of nothing.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let upper = figures.get(figures.len() / 2)?;
    let lower = figures.get((figures.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// Two decimals of small figures, none of large ones.
pub(crate) fn rounded(figure: f64) -> f64 {
    if figure.abs() >= 100.0 { figure.round() } else { (figure * 100.0).round() / 100.0 }
}

/// The tables for people.
pub(crate) fn readable(report: &Report) -> String {
    let row = |what: &str, figure: String| [what.to_owned(), figure];
    let per_s = |figure: f64| format!("{figure:.0}/s");
    let two = |p50: f64, p99: f64| format!("{p50:.2} / {p99:.2} ms");
    let bytes = |first: f64, second: f64| format!("{first:.0} + {second:.0} B");
    let figures = table(
        ["figure", ">median"],
        [
            row("enqueue in batches", per_s(report.enqueue_per_s)),
            row("enqueue singly, 8 connections", per_s(report.enqueue_single_per_s)),
            row("drain, bare clients", per_s(report.drain_per_s)),
            row("drain, by a worker process", per_s(report.drain_runtime_per_s)),
            row("bare clients right before that", per_s(report.drain_bare_beside_per_s)),
            row("cost of its runtime", format!("{:.0} %", report.runtime_cost * 100.0)),
            row("its processor time for a message", format!("{:.1} µs", report.runtime_own_us)),
            row("mixed, done", per_s(report.mixed_per_s)),
            row(
                "ping idle, in the worker's hands, p50 / p99",
                two(report.ping_claimed_p50_ms, report.ping_claimed_p99_ms),
            ),
            row("ping idle, recorded as done", two(report.ping_p50_ms, report.ping_p99_ms)),
            row("request idle, reply in the asker's hands", two(report.request_p50_ms, report.request_p99_ms)),
            row(
                &format!("ping at {:.0} single messages/s, done", report.ping_load_per_s),
                two(report.ping_loaded_p50_ms, report.ping_loaded_p99_ms),
            ),
            row("request at as many", two(report.request_loaded_p50_ms, report.request_loaded_p99_ms)),
            row("WAL of a message, enqueue + drain", bytes(report.wal_bytes_enqueue, report.wal_bytes_drain)),
            row("a done message, table + indexes", bytes(report.table_bytes, report.index_bytes)),
            row("limit: plain insert", per_s(report.limit_insert_per_s)),
            row("limit: insert and one update in place", per_s(report.limit_cycle_per_s)),
            row("limit: insert of the same row, no bus", per_s(report.limit_same_row_per_s)),
            row("limit: the same row and one update in place", per_s(report.limit_same_row_cycle_per_s)),
            row("limit: three commits in turn", format!("{:.2} ms", report.limit_three_commits_ms)),
            row("limit: these and a notification, as a ping", two(report.limit_ping_p50_ms, report.limit_ping_p99_ms)),
            row("enqueue against its limit", format!("{:.2}", report.enqueue_limit_ratio)),
            row("enqueue against inserts of the same row", format!("{:.2}", report.enqueue_same_row_ratio)),
            row("enqueue and drain against their limit", format!("{:.2}", report.limit_ratio)),
            row("enqueue and drain against the same row", format!("{:.2}", report.same_row_limit_ratio)),
            row("lost / duplicated", format!("{} / {} of {}", report.lost, report.duplicated, report.sent)),
        ],
    );
    let head = format!(
        "{} messages of {} bytes, {} runs, {} producers, {} consumers, batches of {}; Postgres {}{}",
        report.messages,
        report.payload_bytes,
        report.runs,
        report.producers,
        report.consumers,
        report.batch,
        report.server.version,
        if report.server.durable { "" } else { ", not durable" }
    );
    let mut text = format!("{head}\n\n{figures}");
    if !report.peers.is_empty() {
        text.push_str("\n\n");
        text.push_str(&peers_table(&report.peers));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(enqueue_per_s: f64, drain_per_s: f64, lost: i64) -> OneRun {
        let pings = Pings {
            claimed_p50_ms: 1.0,
            claimed_p99_ms: 2.0,
            done_p50_ms: 2.0,
            done_p99_ms: 4.0,
            reply_p50_ms: 3.0,
            reply_p99_ms: 6.0,
            bare_p50_ms: 1.0,
            bare_p99_ms: 1.5,
            load_per_s: 0.0,
        };
        OneRun {
            enqueue_per_s,
            single_per_s: 1.0,
            drain_per_s,
            mixed_per_s: 1.0,
            idle: pings,
            under_load: pings,
            wal_bytes_enqueue: 1.0,
            wal_bytes_drain: 1.0,
            table_bytes: 1.0,
            index_bytes: 1.0,
            limit: Limit {
                insert_per_s: 1000.0,
                cycle_per_s: 500.0,
                same_row_per_s: 800.0,
                same_row_cycle_per_s: 400.0,
                three_commits_ms: 1.0,
                enqueue_ratio: 0.51,
                cycle_ratio: 0.52,
                same_row_ratio: 0.61,
                same_row_cycle_ratio: 0.62,
            },
            account: Account { sent: 10, lost, duplicated: 0 },
        }
    }

    const DRAIN: RuntimeDrain = RuntimeDrain {
        bare_per_s: 200.0,
        per_s: 150.0,
        own_us: 5.0,
        account: Account { sent: 10, lost: 0, duplicated: 0 },
    };

    fn report(runs: &[OneRun]) -> Report {
        let plan = Plan { messages: 10, consumers: 1, producers: 1, batch: 5, payload_bytes: 300 };
        let server = ServerSettings { version: "15".to_owned(), shared_buffers: "1MB".to_owned(), durable: true };
        Report::new(plan, server, (runs, &[DRAIN]), &[])
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn every_figure_stands_under_its_name() {
        let value = serde_json::to_value(report(&[run(500.0, 500.0, 0)])).expect("an object");
        let ratios = ["enqueue_limit_ratio", "limit_ratio", "enqueue_same_row_ratio", "same_row_limit_ratio"];
        assert_eq!(ratios.map(|key| value[key].as_f64()), [0.51, 0.52, 0.61, 0.62].map(Some));
        let mixed_too = ["enqueue_per_s", "drain_per_s", "mixed_per_s"];
        assert_eq!(value["runtime_cost"].as_f64(), Some(0.25));
        for key in mixed_too.into_iter().chain(["ping_p50_ms", "request_p99_ms", "lost", "duplicated"]) {
            assert!(value[key].is_number(), "{key}");
        }
    }

    #[test]
    fn a_lost_message_of_any_run_is_a_failure() {
        assert!(report(&[run(1.0, 1.0, 0), run(1.0, 1.0, 0)]).verdict().is_ok());
        assert!(report(&[run(1.0, 1.0, 0), run(1.0, 1.0, 1)]).verdict().is_err());
    }
}
