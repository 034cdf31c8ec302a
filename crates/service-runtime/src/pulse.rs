//! Signs of life of the loops of a process: a loop that has not turned for too long makes `/livez` fail, and one that turns
//! in vain is told of by `/readyz`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// No loop counts as stuck earlier than this.
const SHORTEST_LIMIT: Duration = Duration::from_secs(120);
/// A loop may miss this many of its longest waits.
const WAITS: u32 = 4;
/// Most characters of an error that are told.
const TOLD: usize = 300;
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
    vain: Mutex<Option<Vain>>,
}

/// Turns in a row that came to nothing.
struct Vain {
    since: Instant,
    until: Instant,
    /// What the last one came to.
    error: String,
}

impl Pulses {
    /// A loop that waits at most `wait` in one turn.
    pub(crate) fn add(&self, name: String, wait: Duration) -> Arc<Pulse> {
        self.add_with_limit(name, (wait * WAITS).max(SHORTEST_LIMIT))
    }

    pub(crate) fn add_with_limit(&self, name: String, limit: Duration) -> Arc<Pulse> {
        let pulse =
            Arc::new(Pulse { name, limit, origin: Instant::now(), last: AtomicU64::new(0), vain: Mutex::default() });
        self.lock().push(Arc::clone(&pulse));
        pulse
    }

    /// Names of the loops that do not turn.
    pub(crate) fn stuck(&self) -> Vec<String> {
        self.lock().iter().filter(|pulse| pulse.is_stuck()).map(|pulse| pulse.name.clone()).collect()
    }

    /// The loops whose turns have come to nothing for this long or longer, each with its last error.
    pub(crate) fn in_vain(&self, least: Duration) -> Vec<String> {
        self.lock().iter().filter_map(|pulse| pulse.in_vain(least)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Pulse>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.works();
    }

    /// What a turn began at `asked` came to nothing, as those before it perhaps.
    pub(crate) fn fails(&self, asked: Instant, error: &str) {
        let mut vain = self.lock();
        let since = vain.as_ref().map_or(asked, |vain| vain.since);
        *vain = Some(Vain { since, until: Instant::now(), error: error.chars().take(TOLD).collect() });
    }

    /// A turn came to something, or nothing is to be tried.
    pub(crate) fn works(&self) {
        *self.lock() = None;
    }

    fn in_vain(&self, least: Duration) -> Option<String> {
        let vain = self.lock();
        let Vain { since, until, error } = vain.as_ref()?;
        let lasted = until.duration_since(*since);
        (lasted >= least).then(|| format!("{} for {} s: {error}", self.name, lasted.as_secs()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vain>> {
        self.vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        last != RETIRED && Duration::from_millis(self.now().saturating_sub(last)) > self.limit
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(RETIRED - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_in_vain_show_once_they_have_lasted() {
        let pulses = Pulses::default();
        let pulse = pulses.add("worker".to_owned(), Duration::ZERO);
        let second = Duration::from_secs(1);
        let begin = Instant::now();
        pulse.fails(begin, "once");
        assert_eq!(pulses.in_vain(3600 * second), Vec::<String>::new());
        assert_eq!(pulses.in_vain(Duration::ZERO).len(), 1);
        pulse.works();
        assert_eq!(pulses.in_vain(Duration::ZERO), Vec::<String>::new());
        pulse.fails(begin.checked_sub(20 * second).unwrap(), "first");
        pulse.fails(begin, &"x".repeat(2 * TOLD));
        let told = pulses.in_vain(10 * second).remove(0);
        assert!(told.starts_with("worker for ") && told.ends_with(&format!(" s: {}", "x".repeat(TOLD))), "{told}");
        pulse.retire();
        assert_eq!(pulses.in_vain(Duration::ZERO), Vec::<String>::new());
    }
}
