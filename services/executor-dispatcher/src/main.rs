//! The process `cogo-executor-dispatcher`.

fn main() -> std::process::ExitCode {
    cogo_service_runtime::main::<cogo_executor_dispatcher::ExecutorDispatcher>(env!("CARGO_PKG_VERSION"))
}
