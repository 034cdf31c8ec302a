//! Starts the kg-builder process.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_kg_builder::KgBuilder>(env!("CARGO_PKG_VERSION"))
}
