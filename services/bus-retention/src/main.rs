//! Starts the bus-retention process.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_bus_retention::BusRetention>(env!("CARGO_PKG_VERSION"))
}
