//! The binary `cogo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cogo_cli::run(std::env::args_os())
}
