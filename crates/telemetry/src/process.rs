//! Memory, processor time, network and start of the own process, read from `/proc` when someone asks.

use std::time::SystemTime;

use opentelemetry::{KeyValue, metrics::Meter};

use crate::metrics::{label, name};

/// Linux reports `/proc/<pid>/stat` in ticks of `USER_HZ`, which is 100 on every architecture that it supports today.
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers the observers; a machine without `/proc` shows the start time only.
pub(crate) fn observe(meter: &Meter) {
    let started_at =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or_default();
    meter
        .f64_observable_gauge(name::PROCESS_START_TIME)
        .with_unit("s")
        .with_description("Start of the process since the Unix epoch")
        .with_callback(move |observer| observer.observe(started_at, &[]))
        .build();
    meter
        .u64_observable_gauge(name::PROCESS_RESIDENT_MEMORY)
        .with_unit("By")
        .with_description("Resident memory")
        .with_callback(|observer| {
            if let Some(bytes) = read("/proc/self/status").as_deref().and_then(resident_bytes) {
                observer.observe(bytes, &[]);
            }
        })
        .build();
    meter
        .f64_observable_counter(name::PROCESS_CPU)
        .with_unit("s")
        .with_description("Processor time of user and system")
        .with_callback(|observer| {
            if let Some(seconds) = read("/proc/self/stat").as_deref().and_then(cpu_seconds) {
                observer.observe(seconds, &[]);
            }
        })
        .build();
    meter
        .u64_observable_counter(name::PROCESS_NETWORK)
        .with_unit("By")
        .with_description("Bytes of the network namespace, loopback left out")
        .with_callback(|observer| {
            let Some(table) = read("/proc/self/net/dev") else { return };
            let (received, transmitted) = network_bytes(&table);
            observer.observe(received, &[KeyValue::new(label::DIRECTION, "receive")]);
            observer.observe(transmitted, &[KeyValue::new(label::DIRECTION, "transmit")]);
        })
        .build();
}

/// Bytes received and transmitted by all interfaces but the loopback one.
fn network_bytes(table: &str) -> (u64, u64) {
    let counts = table.lines().filter_map(|line| {
        // an interface's counters: eight of what came in, the bytes first, then the same of what went out
        let (interface, counters) = line.split_once(':')?;
        let mut counters = counters.split_whitespace();
        let received: u64 = counters.next()?.parse().ok()?;
        let transmitted: u64 = counters.nth(7)?.parse().ok()?;
        (interface.trim() != "lo").then_some((received, transmitted))
    });
    counts.fold((0, 0), |(received, transmitted), (more_in, more_out)| (received + more_in, transmitted + more_out))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // the command's name stands in parentheses and may hold spaces, so fields are counted behind the last one
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_field_and_not_by_luck() {
        let stat = "42 (a) b c) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2_097_152));
        assert_eq!(cpu_seconds("nonsense"), None);
        assert_eq!(resident_bytes(""), None);
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n\
                     lo: 900 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0\n  eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n\
                     eth1:5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n";
        assert_eq!(network_bytes(table), (105, 27));
        assert_eq!(network_bytes("nonsense"), (0, 0));
    }
}
