//! Why telemetry could not be set up; each one stops the start of a process.

/// A setting that cannot be used, or a second set-up. No variant carries a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log filter does not parse.
    #[error("RUST_LOG is not a log filter such as info or info,cogo_bus_core=debug: {filter:?}")]
    Filter {
        /// The text as given.
        filter: String,
        /// Where it does not parse.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The share of traces to keep is not between 0 and 1.
    #[error("Sample ratio must lie between 0 and 1, not {0}")]
    SampleRatio(f64),
    /// The collector's address cannot be used.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT {endpoint} cannot be used: {reason}")]
    Endpoint {
        /// The address, without a password.
        endpoint: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The address of the StatsD server cannot be used.
    #[error("COGO_STATSD_ADDR {address:?} cannot be used: {reason}")]
    Statsd {
        /// The address as given.
        address: String,
        /// What would be right.
        reason: String,
    },
    /// The metrics registry could not be built.
    #[error("Metrics registry could not be built")]
    Registry(#[source] opentelemetry_sdk::error::OTelSdkError),
    /// This process already has a subscriber for its logs.
    #[error("Telemetry of this process is already set up")]
    AlreadySetUp(#[source] tracing::subscriber::SetGlobalDefaultError),
}
