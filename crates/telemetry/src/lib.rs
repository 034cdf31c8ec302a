//! Logs, traces and metrics of every process: set-up, flush, trace context of messages, names of instruments.
//!
//! Nothing here decides whether telemetry is wanted: without an endpoint the providers have no exporter, so callers
//! record in the same way everywhere, trace ids still travel with the messages, and `/metrics` still answers.

mod error;
mod exposition;
mod json_lines;
mod metrics;
mod otlp;
mod panic_hook;
mod process;
mod redact;
mod settings;
mod setup;
mod statsd;
mod supervision;
mod trace_context;

pub use error::Error;
pub use exposition::Exposition;
pub use metrics::{BusMetrics, Outcome, RouteMetrics, label, name};
pub use redact::redacted;
pub use settings::{LogFormat, Settings};
pub use setup::{FLUSH_WITHIN, Guard, Look, assemble, init, init_cli};
pub use statsd::Statsd;
pub use supervision::SupervisionMetrics;
pub use trace_context::{accept_client, inject, inject_current, link_or_parent, trace_id};
