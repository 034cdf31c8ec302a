//! What a process says about itself and where its telemetry goes.

use std::fmt;

use crate::redact::redacted;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, else JSON.
    #[default]
    Auto,
    /// One coloured line per event.
    Human,
    /// One JSON object per line.
    Json,
}

/// Telemetry of one process.
#[derive(Clone)]
pub struct Settings {
    /// `service.name`, such as `cogo-rag-embed`.
    pub service_name: String,
    /// `service.version`, the build's semver.
    pub service_version: String,
    /// `service.instance.id`, the holder's name on the bus.
    pub instance: String,
    /// What is logged, in the syntax of `RUST_LOG`. Spans are recorded whatever stands here.
    pub log_filter: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Base address of an OTLP collector over HTTP, as in `OTEL_EXPORTER_OTLP_ENDPOINT`; none means no exporter.
    pub otlp_endpoint: Option<String>,
    /// `host:port` of a StatsD server; none means that nothing is sent to one.
    pub statsd_addr: Option<String>,
    /// Share of new traces that are exported, 0 to 1; a trace once begun keeps its decision.
    pub sample_ratio: f64,
}

impl Settings {
    /// Logs at `info`, exports nowhere, keeps every trace.
    #[must_use]
    pub fn new(
        service_name: impl Into<String>,
        service_version: impl Into<String>,
        instance: impl Into<String>,
    ) -> Self {
        Self {
            service_name: service_name.into(),
            service_version: service_version.into(),
            instance: instance.into(),
            log_filter: "info".to_owned(),
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
            statsd_addr: None,
            sample_ratio: 1.0,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("service_name", &self.service_name)
            .field("service_version", &self.service_version)
            .field("instance", &self.instance)
            .field("log_filter", &self.log_filter)
            .field("log_format", &self.log_format)
            .field("otlp_endpoint", &self.otlp_endpoint.as_deref().map(redacted))
            .field("statsd_addr", &self.statsd_addr)
            .field("sample_ratio", &self.sample_ratio)
            .finish()
    }
}
