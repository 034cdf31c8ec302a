//! The dependencies of a process, by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use cogo_supervision::breaker::{Invalid, Phase};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};
use serde::Serialize;
use tokio::sync::Notify;

use super::{Dependency, DependencySettings, Inner, Reach};

/// Counter: calls to dependencies by `dependency` and `outcome` (`success`, `failure`, `refused`, `full`, `no_time`,
/// `timeout`).
const CALLS: &str = "cogo.dependency.calls";
/// Gauge by `dependency`: 0 while its circuit is closed, 1 while it is tried out, 2 while it is open.
const STATE: &str = "cogo.dependency.state";

/// Makes dependencies. Cheap to clone; clones know the same ones.
#[derive(Debug, Clone)]
pub struct Dependencies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// `<name>/<slot>` of the process.
    replica: String,
    known: Mutex<BTreeMap<String, Weak<Inner>>>,
    calls: Option<Counter<u64>>,
    news: Notify,
}

/// A dependency as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DependencyView {
    pub(crate) name: String,
    pub(crate) phase: Phase,
}

impl Dependencies {
    /// Those of a process `<name>/<slot>`, counted by this meter.
    #[must_use]
    pub fn new(replica: &str, meter: &Meter) -> Self {
        let calls = meter.u64_counter(CALLS).with_description("Calls to what the process depends on").build();
        let dependencies = Self::of(replica, Some(calls));
        let watched = Arc::downgrade(&dependencies.shared);
        meter
            .u64_observable_gauge(STATE)
            .with_description("Circuit of a dependency: 0 closed, 1 tried out, 2 open")
            .with_callback(move |observer| {
                let Some(shared) = watched.upgrade() else { return };
                for dependency in shared.living() {
                    let state = match dependency.phase() {
                        Phase::Closed => 0,
                        Phase::HalfOpen => 1,
                        Phase::Open => 2,
                    };
                    observer.observe(state, &[KeyValue::new("dependency", dependency.name().to_owned())]);
                }
            })
            .build();
        dependencies
    }

    /// Those of no process; for tests and tools.
    #[must_use]
    pub fn alone() -> Self {
        Self::of("nobody/0", None)
    }

    fn of(replica: &str, calls: Option<Counter<u64>>) -> Self {
        let shared = Shared { replica: replica.to_owned(), known: Mutex::default(), calls, news: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// The dependency of this name, new if nobody holds it yet; else the settings count for nothing. The name is seen by
    /// people and by other processes: it says what is called, and holds no secret.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn dependency(&self, name: &str, reach: Reach, settings: &DependencySettings) -> Result<Dependency, Invalid> {
        let name = match reach {
            Reach::Fleet | Reach::Run => name.to_owned(),
            Reach::Replica => format!("{name} of {}", self.shared.replica),
        };
        let mut known = self.shared.lock();
        if let Some(inner) = known.get(&name).and_then(Weak::upgrade) {
            return Ok(Dependency { inner });
        }
        let dependency = Dependency::new(name.clone(), reach, settings, Arc::clone(&self.shared))?;
        known.insert(name, Arc::downgrade(&dependency.inner));
        drop(known);
        // what the others know of it counts before the first call is made
        self.shared.wake();
        Ok(dependency)
    }

    /// Those that are held, by name.
    pub(crate) fn living(&self) -> Vec<Dependency> {
        self.shared.living()
    }

    /// Those that are held, as shown to people.
    pub(crate) fn views(&self) -> Vec<DependencyView> {
        let view =
            |dependency: &Dependency| DependencyView { name: dependency.name().to_owned(), phase: dependency.phase() };
        self.living().iter().map(view).collect()
    }

    /// Returns when there is news for the other processes.
    pub(super) async fn news(&self) {
        self.shared.news.notified().await;
    }
}

impl Shared {
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    pub(super) fn called(&self, dependency: &str, outcome: &'static str) {
        if let Some(calls) = &self.calls {
            let labels = [KeyValue::new("dependency", dependency.to_owned()), KeyValue::new("outcome", outcome)];
            calls.add(1, &labels);
        }
    }

    fn living(&self) -> Vec<Dependency> {
        let mut known = self.lock();
        known.retain(|_, inner| inner.strong_count() > 0);
        known.values().filter_map(Weak::upgrade).map(|inner| Dependency { inner }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Inner>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
