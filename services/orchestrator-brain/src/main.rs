//! The process `cogo-orchestrator-brain`.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_orchestrator_brain::OrchestratorBrain>(env!("CARGO_PKG_VERSION"))
}
