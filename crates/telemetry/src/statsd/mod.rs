//! Figures for a StatsD server over UDP: buffered, never waited for, dropped and counted when the server is gone.
//!
//! Counters and gauges of every instrument go out each ten seconds, durations one by one as timings. Labels are tags in
//! the form that Datadog, Telegraf, Vector and the Prometheus exporter of StatsD read (`name:1|c|#key:value`).

mod exporter;
mod line;
mod sender;

pub(crate) use exporter::Exporter;
pub use sender::Statsd;
