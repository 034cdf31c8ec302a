//! Starts the bus-reclaimer process.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_bus_reclaimer::BusReclaimer>(env!("CARGO_PKG_VERSION"))
}
