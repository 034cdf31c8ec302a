//! A panic becomes one error line in the log, wherever the log goes.

use std::{backtrace::Backtrace, panic::PanicHookInfo};

use crate::redact::redacted;

/// Replaces the hook that writes to stderr.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let trace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    let thread = std::thread::current();
    tracing::error!(
        panic.location = location,
        panic.thread = thread.name().unwrap_or_default(),
        panic.backtrace = trace,
        "panicked: {}",
        redacted(panic.payload_as_str().unwrap_or("no message"))
    );
}
