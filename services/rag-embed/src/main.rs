//! Starts the rag-embed process.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_rag_embed::RagEmbed>(env!("CARGO_PKG_VERSION"))
}
