//! The process `cogo-sandbox-manager`: runs commands on sandbox workers.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_sandbox_manager::SandboxManager>(env!("CARGO_PKG_VERSION"))
}
