//! Names of instruments and labels, and the instruments of the bus, built once per process.
//!
//! Labels have few values: service, role, outcome. Never a tenant, an id or a text.

use std::{sync::OnceLock, time::Duration};

use cogo_contracts::Route;
use opentelemetry::{
    KeyValue,
    metrics::{BoundHistogram, Counter, Histogram, Meter},
};

use crate::Statsd;

/// Names of instruments; the Prometheus form adds the unit and `_total`.
pub mod name {
    /// Histogram in `s`: how long one call of the bus took (send, receive, settle).
    pub const CLIENT_OPERATION_DURATION: &str = "messaging.client.operation.duration";
    /// Histogram in `s`: how long a handler worked on one attempt.
    pub const PROCESS_DURATION: &str = "messaging.process.duration";
    /// Counter: messages that the database accepted.
    pub const SENT_MESSAGES: &str = "messaging.client.sent.messages";
    /// Counter: messages claimed.
    pub const CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
    /// Histogram in `s`: from created to claimed.
    pub const WAIT_DURATION: &str = "cogo.bus.wait.duration";
    /// Counter: claims that were taken over before their holder finished.
    pub const LEASE_LOST: &str = "cogo.bus.lease.lost";
    /// Counter: attempts that ended in another one.
    pub const RETRIES: &str = "cogo.bus.retries";
    /// Counter: messages given up.
    pub const DEAD_LETTERS: &str = "cogo.bus.dead_letters";
    /// Counter: messages taken back from holders whose lease had passed.
    pub const RECLAIMED: &str = "cogo.bus.reclaimed";
    /// Counter: messages whose time to live passed before they were started.
    pub const EXPIRED: &str = "cogo.bus.expired";
    /// Gauge over the whole bus: messages by status, service and role.
    pub const BUS_MESSAGES: &str = "cogo_bus_messages";
    /// Gauge over the whole bus: age of the oldest message that waits, in seconds.
    pub const BUS_OLDEST_QUEUED_AGE: &str = "cogo_bus_oldest_queued_age_seconds";
    /// Gauge over the registry: agents by state.
    pub const AGENTS: &str = "cogo_agents";
    /// Counter by `event` and `process`: what happened in the supervision tree, counted from the audit.
    pub const TREE_EVENTS: &str = "cogo_tree_events_total";
    /// Gauge by `agent` (`name/slot`): whether its own figures could be read.
    pub const AGENT_UP: &str = "cogo_agent_up";
    /// Gauge by `agent`: whether it said at its last beat that it can work.
    pub const AGENT_READY: &str = "cogo_agent_ready";
    /// Gauge by `agent`: messages that it works on.
    pub const AGENT_IN_FLIGHT: &str = "cogo_agent_in_flight";
    /// Gauge by `agent`: cores that it used between its last two beats.
    pub const AGENT_CPU: &str = "cogo_agent_cpu_cores";
    /// Gauge by `agent`: resident memory at its last beat.
    pub const AGENT_MEMORY: &str = "cogo_agent_memory_bytes";
    /// Gauge by `agent` and `route`: messages that wait for its service and role.
    pub const AGENT_QUEUE_DEPTH: &str = "cogo_agent_queue_depth";
    /// Counter by `agent`: processor time.
    pub const AGENT_CPU_SECONDS: &str = "cogo_agent_cpu_seconds_total";
    /// Counter by `agent`: messages that it has claimed, its throughput.
    pub const AGENT_MESSAGES: &str = "cogo_agent_messages_total";
    /// Counter by `agent`: attempts that it has ended.
    pub const AGENT_ATTEMPTS: &str = "cogo_agent_attempts_total";
    /// Counter by `agent`: time that its attempts took; divided by their number, its mean latency.
    pub const AGENT_WORKED_SECONDS: &str = "cogo_agent_worked_seconds_total";
    /// Counter by `agent`: bytes received by its network namespace.
    pub const AGENT_RECEIVED: &str = "cogo_agent_network_received_bytes_total";
    /// Counter by `agent`: bytes transmitted by its network namespace.
    pub const AGENT_TRANSMITTED: &str = "cogo_agent_network_transmitted_bytes_total";
    /// Gauge in `By`: memory of the process.
    pub const PROCESS_RESIDENT_MEMORY: &str = "process.resident_memory";
    /// Counter in `s`: processor time of the process.
    pub const PROCESS_CPU: &str = "process.cpu";
    /// Counter in `By` by `direction`: bytes of the network namespace of the process, loopback left out. In a container
    /// of its own that is the process; elsewhere it is the machine, since Linux counts no bytes by process.
    pub const PROCESS_NETWORK: &str = "process.network.io";
    /// Counter by `event` and `process`: what happened in the supervision tree.
    pub const SUPERVISION_EVENTS: &str = "cogo.supervision.events";
    /// Histogram in `s` by `process`: from the end of a process to its next start.
    pub const SUPERVISION_DOWNTIME: &str = "cogo.supervision.downtime";
    /// Counter: events of the supervision tree that could not be written to the audit.
    pub const SUPERVISION_UNTOLD: &str = "cogo.supervision.untold";
    /// Counter: lines for the StatsD server that were dropped.
    pub const STATSD_DROPPED: &str = "cogo.statsd.dropped";
    /// Gauge in `s`: when the process started.
    pub const PROCESS_START_TIME: &str = "process.start_time";
}

/// Names of labels.
pub mod label {
    /// Always `cogo`.
    pub const SYSTEM: &str = "messaging.system";
    /// `send`, `receive` or `settle`.
    pub const OPERATION: &str = "messaging.operation.name";
    /// `<service>.<role>`, such as `rag.embed`.
    pub const DESTINATION: &str = "messaging.destination.name";
    /// What went wrong, one of a few words; absent on success.
    pub const ERROR_TYPE: &str = "error.type";
    /// First part of the routing key.
    pub const SERVICE: &str = "service";
    /// Second part of the routing key.
    pub const ROLE: &str = "role";
    /// How an attempt ended, see [`super::Outcome`].
    pub const OUTCOME: &str = "outcome";
    /// Status of a message.
    pub const STATUS: &str = "status";
    /// State of an agent.
    pub const STATE: &str = "state";
    /// What happened in a supervision tree.
    pub const EVENT: &str = "event";
    /// A process of the list.
    pub const PROCESS: &str = "process";
    /// `receive` or `transmit`.
    pub const DIRECTION: &str = "network.io.direction";
}

/// Seconds; those that the semantic conventions of messaging give.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Waiting also takes minutes when a queue backs up.
const WAIT_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How one attempt at a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Completed.
    Done,
    /// Queued again.
    Retry,
    /// Given up.
    DeadLetter,
    /// Somebody else owns the message by now.
    LeaseLost,
    /// Cancelled while it ran.
    Cancelled,
    /// Handed back unworked, as at a stop.
    Released,
}

impl Outcome {
    /// Every one, in the order of their declaration.
    const ALL: [Self; 6] =
        [Self::Done, Self::Retry, Self::DeadLetter, Self::LeaseLost, Self::Cancelled, Self::Released];

    /// Value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retry => "retry",
            Self::DeadLetter => "dead_letter",
            Self::LeaseLost => "lease_lost",
            Self::Cancelled => "cancelled",
            Self::Released => "released",
        }
    }
}

/// The instruments of the bus; clones record into the same ones.
#[derive(Debug, Clone)]
pub struct BusMetrics {
    operation_duration: Histogram<f64>,
    process_duration: Histogram<f64>,
    wait_duration: Histogram<f64>,
    sent: Counter<u64>,
    consumed: Counter<u64>,
    lease_lost: Counter<u64>,
    retries: Counter<u64>,
    dead_letters: Counter<u64>,
    reclaimed: Counter<u64>,
    expired: Counter<u64>,
    /// Takes each duration by itself.
    statsd: Option<Statsd>,
}

impl BusMetrics {
    /// Builds the instruments.
    #[must_use]
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, description: &'static str, bounds: &[f64]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let count = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_unit("{message}").with_description(description).build()
        };
        Self {
            operation_duration: seconds(name::CLIENT_OPERATION_DURATION, "Duration of one call of the bus", &SECONDS),
            process_duration: seconds(name::PROCESS_DURATION, "Duration of one attempt at a message", &SECONDS),
            wait_duration: seconds(name::WAIT_DURATION, "Time from created to claimed", &WAIT_SECONDS),
            sent: count(name::SENT_MESSAGES, "Messages that the database accepted"),
            consumed: count(name::CONSUMED_MESSAGES, "Messages claimed"),
            lease_lost: count(name::LEASE_LOST, "Claims lost before they were finished"),
            retries: count(name::RETRIES, "Attempts that ended in another one"),
            dead_letters: count(name::DEAD_LETTERS, "Messages given up"),
            reclaimed: count(name::RECLAIMED, "Messages taken back from holders whose lease had passed"),
            expired: count(name::EXPIRED, "Messages whose time to live passed before they were started"),
            statsd: None,
        }
    }

    /// Sends each duration to this server as well.
    #[must_use]
    pub(crate) fn with_statsd(mut self, statsd: Option<Statsd>) -> Self {
        self.statsd = statsd;
        self
    }

    /// Instruments that nobody reads, for tests and tools.
    #[must_use]
    pub fn unread() -> Self {
        use opentelemetry::metrics::MeterProvider;
        Self::new(&opentelemetry_sdk::metrics::SdkMeterProvider::builder().build().meter("unread"))
    }

    /// `count` messages of a route were accepted within `took`.
    pub fn sent(&self, route: &Route, count: u64, took: Duration) {
        self.operations("send", route).record(took);
        self.sent.add(count, &operation("send", route));
    }

    /// The instruments for one route.
    #[must_use]
    pub fn of(&self, route: &Route) -> RouteMetrics {
        RouteMetrics {
            metrics: self.clone(),
            receive: self.operations("receive", route),
            settle: self.operations("settle", route),
            wait: self.timed(&self.wait_duration, name::WAIT_DURATION, queue(route).into()),
            process: Outcome::ALL
                .map(|outcome| self.timed(&self.process_duration, name::PROCESS_DURATION, ended(route, outcome))),
            received: operation("receive", route),
            queue: queue(route),
        }
    }

    /// Messages were taken back from holders whose lease had passed.
    pub fn reclaimed(&self, count: u64) {
        self.reclaimed.add(count, &[]);
    }

    /// Messages ended unstarted because their time had passed.
    pub fn expired(&self, count: u64) {
        self.expired.add(count, &[]);
    }

    fn operations(&self, what: &'static str, route: &Route) -> Durations {
        self.timed(&self.operation_duration, name::CLIENT_OPERATION_DURATION, operation(what, route).into())
    }

    fn timed(&self, histogram: &Histogram<f64>, name: &'static str, labels: Vec<KeyValue>) -> Durations {
        Durations { histogram: histogram.clone(), name, labels, bound: OnceLock::new(), statsd: self.statsd.clone() }
    }
}

/// Durations with labels that are looked up once.
#[derive(Debug, Clone)]
struct Durations {
    histogram: Histogram<f64>,
    name: &'static str,
    labels: Vec<KeyValue>,
    /// From the first one on: what was bound and never recorded would show as a series of none.
    bound: OnceLock<BoundHistogram<f64>>,
    statsd: Option<Statsd>,
}

impl Durations {
    fn record(&self, took: Duration) {
        self.bound.get_or_init(|| self.histogram.bind(&self.labels)).record(took.as_secs_f64());
        if let Some(statsd) = &self.statsd {
            statsd.timing(self.name, took, &self.labels);
        }
    }
}

/// The instruments of the bus for one route, whose labels are made once: making them costs more than recording.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    metrics: BusMetrics,
    receive: Durations,
    settle: Durations,
    wait: Durations,
    /// In the order of [`Outcome::ALL`].
    process: [Durations; 6],
    received: [KeyValue; 3],
    queue: [KeyValue; 2],
}

impl RouteMetrics {
    /// A claim took `took` and answered `count` messages.
    pub fn received(&self, count: u64, took: Duration) {
        self.receive.record(took);
        if count > 0 {
            self.metrics.consumed.add(count, &self.received);
        }
    }

    /// A message waited this long to be claimed.
    pub fn waited(&self, wait: Duration) {
        self.wait.record(wait);
    }

    /// An attempt ended after `worked` of work.
    pub fn processed(&self, outcome: Outcome, worked: Duration) {
        let metrics = &self.metrics;
        match outcome {
            Outcome::Done | Outcome::Released | Outcome::Cancelled => {}
            Outcome::LeaseLost => metrics.lease_lost.add(1, &self.queue),
            Outcome::Retry => metrics.retries.add(1, &self.queue),
            Outcome::DeadLetter => metrics.dead_letters.add(1, &self.queue),
        }
        self.process[outcome as usize].record(worked);
    }

    /// An answer to the bus (complete, fail, release), for one message or many, took this long.
    pub fn settled(&self, took: Duration) {
        self.settle.record(took);
    }
}

/// Labels of an attempt that ended so.
fn ended(route: &Route, outcome: Outcome) -> Vec<KeyValue> {
    let mut labels = vec![
        KeyValue::new(label::SYSTEM, "cogo"),
        KeyValue::new(label::DESTINATION, destination(route)),
        KeyValue::new(label::OUTCOME, outcome.as_str()),
    ];
    let error = match outcome {
        Outcome::Done | Outcome::Released => None,
        Outcome::Cancelled => Some("cancelled"),
        Outcome::LeaseLost => Some("lease_lost"),
        Outcome::Retry | Outcome::DeadLetter => Some("handler_error"),
    };
    labels.extend(error.map(|error| KeyValue::new(label::ERROR_TYPE, error)));
    labels
}

fn destination(route: &Route) -> String {
    format!("{}.{}", route.service(), route.role())
}

fn operation(name: &'static str, route: &Route) -> [KeyValue; 3] {
    [
        KeyValue::new(label::SYSTEM, "cogo"),
        KeyValue::new(label::OPERATION, name),
        KeyValue::new(label::DESTINATION, destination(route)),
    ]
}

fn queue(route: &Route) -> [KeyValue; 2] {
    [KeyValue::new(label::SERVICE, route.service().to_owned()), KeyValue::new(label::ROLE, route.role().to_owned())]
}
