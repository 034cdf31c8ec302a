//! The process `cogo-gateway-chat`: answers questions about documents and code.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_gateway_chat::GatewayChat>(env!("CARGO_PKG_VERSION"))
}
