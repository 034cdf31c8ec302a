//! Signs of life of the loops of a process: a loop that has not turned for too long makes `/livez` fail.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// No loop counts as stuck earlier than this.
const SHORTEST_LIMIT: Duration = Duration::from_secs(120);
/// A loop may miss this many of its longest waits.
const WAITS: u32 = 4;
/// Stands for a loop that has ended.
const RETIRED: u64 = u64::MAX;

/// The loops of a process.
#[derive(Clone, Default)]
pub(crate) struct Pulses(Arc<Mutex<Vec<Arc<Pulse>>>>);

/// The sign of life of one loop.
pub(crate) struct Pulse {
    name: String,
    limit: Duration,
    origin: Instant,
    /// Milliseconds from the origin to the last turn.
    last: AtomicU64,
}

impl Pulses {
    /// A loop that waits at most `wait` in one turn.
    pub(crate) fn add(&self, name: String, wait: Duration) -> Arc<Pulse> {
        self.add_with_limit(name, (wait * WAITS).max(SHORTEST_LIMIT))
    }

    pub(crate) fn add_with_limit(&self, name: String, limit: Duration) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse { name, limit, origin: Instant::now(), last: AtomicU64::new(0) });
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Arc::clone(&pulse));
        pulse
    }

    /// Names of the loops that do not turn.
    pub(crate) fn stuck(&self) -> Vec<String> {
        let pulses = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pulses.iter().filter(|pulse| pulse.is_stuck()).map(|pulse| pulse.name.clone()).collect()
    }
}

impl Pulse {
    /// The loop turns.
    pub(crate) fn beat(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// The loop has ended, as it should.
    pub(crate) fn retire(&self) {
        self.last.store(RETIRED, Ordering::Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last != RETIRED && Duration::from_millis(self.now().saturating_sub(last)) > self.limit
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(RETIRED - 1)
    }
}
