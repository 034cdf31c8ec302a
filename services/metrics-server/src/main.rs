//! The process `cogo-metrics-server`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cogo_service_runtime::main::<cogo_metrics_server::MetricsServer>(env!("CARGO_PKG_VERSION"))
}
