//! Telemetry as a process sees it: log lines, trace context, exposition, flush.

#[cfg(test)]
mod it {
    mod captured;
    mod logs;
    mod process;
    mod scrape;
    mod statsd;
    mod traces;
}
