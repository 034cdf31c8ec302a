//! One member of a pool as the rules see it.

use std::time::Duration;

/// Names a member; never used again after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub(super) u64);

impl std::fmt::Display for MemberId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Being made; gets no work yet.
    Warming,
    /// Works.
    Ready,
    /// Finishes what it has and gets nothing new.
    Draining,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) state: State,
    /// Leases at this moment.
    pub(super) load: usize,
    /// Since when it has nothing to do.
    pub(super) idle_since: Duration,
}

impl Member {
    pub(super) const fn new(now: Duration) -> Self {
        Self { state: State::Warming, load: 0, idle_since: now }
    }

    pub(super) fn is_staying(&self) -> bool {
        self.state != State::Draining
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Ready && self.load == 0
    }
}
