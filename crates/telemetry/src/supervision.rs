//! The instruments of a supervision tree: what happened to whom, and for how long something was down.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use crate::metrics::{label, name};

/// Seconds that a process may be down: a restart at once, a pause, an outage.
const SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// The instruments of a supervision tree; clones record into the same ones.
#[derive(Debug, Clone)]
pub struct SupervisionMetrics {
    events: Counter<u64>,
    downtime: Histogram<f64>,
    untold: Counter<u64>,
}

impl SupervisionMetrics {
    /// Builds the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> Self {
        Self {
            events: meter.u64_counter(name::SUPERVISION_EVENTS).with_description("What happened in the tree").build(),
            downtime: meter
                .f64_histogram(name::SUPERVISION_DOWNTIME)
                .with_unit("s")
                .with_description("Time from the end of a process to its next start")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            untold: meter
                .u64_counter(name::SUPERVISION_UNTOLD)
                .with_description("Events of the tree that could not be written to the audit")
                .build(),
        }
    }

    /// `event` (`spawn`, `terminate`, `transition`, `crash` or `recovery`) happened to a process or group of the list.
    pub fn happened(&self, event: &'static str, process: &str) {
        self.events.add(1, &[KeyValue::new(label::EVENT, event), KeyValue::new(label::PROCESS, process.to_owned())]);
    }

    /// A process runs again after this time.
    pub fn recovered(&self, process: &str, down: Duration) {
        self.downtime.record(down.as_secs_f64(), &[KeyValue::new(label::PROCESS, process.to_owned())]);
    }

    /// So many events were lost to the audit.
    pub fn untold(&self, events: u64) {
        self.untold.add(events, &[]);
    }
}
