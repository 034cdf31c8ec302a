//! The process `cogo-gateway-api`: the front door.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_gateway_api::GatewayApi>(env!("CARGO_PKG_VERSION"))
}
