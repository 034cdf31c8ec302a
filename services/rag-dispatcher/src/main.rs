//! Starts the rag-dispatcher process.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_rag_dispatcher::RagDispatcher>(env!("CARGO_PKG_VERSION"))
}
