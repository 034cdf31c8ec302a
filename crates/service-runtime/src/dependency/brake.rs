//! Keeps a worker from claiming what it could only hand back, as while the circuit of its dependency is open.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Pause after the first message that could not be tried; it doubles with each further one.
const FIRST_REST: Duration = Duration::from_millis(100);
/// Longest pause: somebody else may find the dependency well, and then this worker is idle for no longer.
const LONGEST_REST: Duration = Duration::from_secs(15);
/// Doublings after which every pause has reached its longest.
const DOUBLINGS: u32 = 16;

/// What a worker does about messages that could not be tried. While they come in a row it claims one at a time, with
/// growing pauses; the first message that is done lets it go on as before. So a route of whose messages only some need the
/// dependency is hardly slowed down, and one of which all do costs a claim in 15 s and no loop.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Messages that could not be tried, since one was done.
    in_a_row: u32,
    until: Option<Instant>,
}

impl Brake {
    /// A message could not be tried, and cannot be before `after` has passed.
    pub(crate) fn refused(&self, now: Instant, after: Duration) {
        let mut state = self.lock();
        let grown = FIRST_REST.saturating_mul(1 << state.in_a_row.min(DOUBLINGS));
        let until = now + grown.min(after).min(LONGEST_REST);
        state.in_a_row = state.in_a_row.saturating_add(1);
        // of several that were in hand at once, the longest pause counts
        state.until = state.until.max(Some(until));
    }

    /// A message was done.
    pub(crate) fn worked(&self) {
        *self.lock() = State::default();
    }

    /// How long nothing shall be claimed; none when it is time.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        let left = self.lock().until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How many messages may be in hand, of the `most` that are otherwise.
    pub(crate) fn most(&self, most: u16) -> u16 {
        if self.lock().in_a_row == 0 { most } else { most.min(1) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn pauses_double_while_nothing_is_done() {
        let brake = Brake::default();
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..10 {
            assert_eq!(brake.rest(now), None);
            brake.refused(now, HOUR);
            let rest = brake.rest(now).expect("a pause");
            rests.push(rest.as_millis());
            now += rest;
        }
        assert_eq!(rests, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 15_000, 15_000]);
        assert_eq!(brake.most(64), 1);
        brake.worked();
        assert_eq!((brake.rest(now), brake.most(64)), (None, 64));
        brake.refused(now, HOUR);
        assert_eq!(brake.rest(now), Some(FIRST_REST));
    }

    #[test]
    fn no_pause_is_longer_than_the_refusal() {
        let brake = Brake::default();
        let now = Instant::now();
        for _ in 0..20 {
            brake.refused(now, Duration::from_secs(1));
        }
        assert_eq!(brake.rest(now), Some(Duration::from_secs(1)));
        brake.refused(now, Duration::ZERO);
        assert_eq!(brake.rest(now), Some(Duration::from_secs(1)), "an earlier one still counts");
    }

    #[test]
    fn worker_without_hands_gets_none() {
        let brake = Brake::default();
        brake.refused(Instant::now(), HOUR);
        assert_eq!(brake.most(0), 0);
    }
}
