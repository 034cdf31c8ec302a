//! The rules of a circuit breaker without I/O: calls, outcomes and the time go in, verdicts and changes come out.

use std::{collections::VecDeque, time::Duration};

use crate::seeded::Seeded;

use super::{
    Cause, Change, Invalid, Outcome, Phase, Refused, Settings, Shared, SharedPhase,
    window::{Counts, Window},
};

/// Says under which state a call was let through; an outcome counts for that state only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
}

#[derive(Debug)]
enum State {
    Closed { since: Duration },
    Open { until: Duration },
    HalfOpen { since: Duration, out: u32, successes: u32 },
}

/// The rules of one breaker. Times are of one clock and must not go back.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    state: State,
    window: Window,
    failures_in_a_row: u32,
    /// Counts every change of state, so that late outcomes of an earlier one are told from those of this one.
    generation: u64,
    round: u64,
    /// Openings in a row, up to the last one.
    openings: u32,
    /// End of the present opening on the shared clock, fixed when it is first told, so that telling it again is the same.
    open_until_shared_ms: Option<u64>,
    chance: Seeded,
    changes: VecDeque<Change>,
}

impl Core {
    /// A closed breaker; the seed decides its jitter.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn new(settings: Settings, seed: u64) -> Result<Self, Invalid> {
        settings.validate()?;
        let window = Window::new(settings.window);
        Ok(Self {
            settings,
            state: State::Closed { since: Duration::ZERO },
            window,
            failures_in_a_row: 0,
            generation: 0,
            round: 0,
            openings: 0,
            open_until_shared_ms: None,
            chance: Seeded::new(seed),
            changes: VecDeque::new(),
        })
    }

    /// Where it stands. An opening whose time is over counts as open until somebody calls.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Calls that are trying it out at this moment.
    #[must_use]
    pub const fn trials(&self) -> u32 {
        match self.state {
            State::HalfOpen { out, .. } => out,
            _ => 0,
        }
    }

    /// Asks for one call. Whoever gets a ticket must hand it back through [`record`](Self::record) or
    /// [`give_back`](Self::give_back).
    ///
    /// # Errors
    /// When the call may not go through now.
    pub fn admit(&mut self, now: Duration) -> Result<Ticket, Refused> {
        match &mut self.state {
            State::Closed { .. } => return Ok(Ticket { generation: self.generation }),
            State::Open { until } if now < *until => return Err(Refused::Open { retry_after: *until - now }),
            State::Open { .. } => {
                self.enter(now, State::HalfOpen { since: now, out: 0, successes: 0 }, Cause::WaitOver);
            }
            State::HalfOpen { since, .. } if now.saturating_sub(*since) >= self.settings.half_open_for => {
                let retry_after = self.open(now, Cause::NoVerdict);
                return Err(Refused::Open { retry_after });
            }
            State::HalfOpen { .. } => {}
        }
        let State::HalfOpen { out, .. } = &mut self.state else { return Err(Refused::Trying) };
        if *out >= self.settings.half_open_permits {
            return Err(Refused::Trying);
        }
        *out += 1;
        Ok(Ticket { generation: self.generation })
    }

    /// Takes in what came of a call that took this long. A call of an earlier state counts for nothing.
    pub fn record(&mut self, now: Duration, ticket: Ticket, outcome: Outcome, took: Duration) {
        if ticket.generation != self.generation {
            return;
        }
        let failed = outcome == Outcome::Failure;
        let slow = took >= self.settings.slow_call;
        match &mut self.state {
            State::Closed { .. } => {
                self.failures_in_a_row = if failed { self.failures_in_a_row.saturating_add(1) } else { 0 };
                let counts = self.window.add(now, failed, slow);
                if let Some(cause) = self.verdict(counts) {
                    self.open(now, cause);
                }
            }
            State::HalfOpen { out, successes, .. } => {
                *out = out.saturating_sub(1);
                if failed || slow {
                    self.open(now, Cause::TrialFailed);
                    return;
                }
                *successes += 1;
                let successes = *successes;
                if successes >= self.settings.half_open_successes {
                    self.close(now, Cause::TrialsSucceeded { successes });
                }
            }
            State::Open { .. } => {}
        }
    }

    /// Takes back a ticket of a call of which nothing is known: it counts as nothing, and another may try.
    pub fn give_back(&mut self, ticket: Ticket) {
        if ticket.generation != self.generation {
            return;
        }
        if let State::HalfOpen { out, .. } = &mut self.state {
            *out = out.saturating_sub(1);
        }
    }

    /// Opens it for as long as its next opening would last.
    pub fn trip(&mut self, now: Duration, reason: &str) {
        self.open(now, Cause::Asked { reason: reason.to_owned() });
    }

    /// Closes it.
    pub fn reset(&mut self, now: Duration, reason: &str) {
        if self.phase() != Phase::Closed {
            self.close(now, Cause::Asked { reason: reason.to_owned() });
        }
    }

    /// The next change that nobody has been told of.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// What others should know; `shared_now_ms` is what the shared clock shows now.
    pub fn export(&mut self, now: Duration, shared_now_ms: u64) -> Shared {
        let (phase, open_until_ms) = match self.state {
            State::Closed { .. } => (SharedPhase::Closed, 0),
            State::Open { until } => {
                let end = shared_now_ms.saturating_add(millis(until.saturating_sub(now)));
                (SharedPhase::Open, *self.open_until_shared_ms.get_or_insert(end))
            }
            State::HalfOpen { .. } => (SharedPhase::Open, *self.open_until_shared_ms.get_or_insert(shared_now_ms)),
        };
        Shared { round: self.round, phase, open_until_ms, openings: self.openings }
    }

    /// Takes in what others know, by the rule of [`Shared::merge`]; whether it taught anything.
    pub fn merge(&mut self, now: Duration, shared_now_ms: u64, record: Shared) -> bool {
        if record <= self.export(now, shared_now_ms) {
            return false;
        }
        self.round = record.round;
        self.openings = record.openings;
        match record.phase {
            SharedPhase::Closed if self.phase() != Phase::Closed => self.close(now, Cause::Shared),
            SharedPhase::Closed => {}
            SharedPhase::Open => {
                let left = Duration::from_millis(record.open_until_ms.saturating_sub(shared_now_ms));
                // a clock that was set wrong elsewhere must not close this side for ever
                let longest = self.settings.longest_open.mul_f64(1.0 + self.settings.jitter);
                self.enter(now, State::Open { until: now.saturating_add(left.min(longest)) }, Cause::Shared);
                self.open_until_shared_ms = Some(record.open_until_ms);
            }
        }
        true
    }

    fn verdict(&self, counts: Counts) -> Option<Cause> {
        let settings = &self.settings;
        if settings.consecutive_failures > 0 && self.failures_in_a_row >= settings.consecutive_failures {
            return Some(Cause::ConsecutiveFailures { failures: self.failures_in_a_row });
        }
        let Counts { calls, failed, slow } = counts;
        if calls < settings.minimum_calls {
            return None;
        }
        let reaches = |part: u32, share: f64| f64::from(part) >= share * f64::from(calls);
        if reaches(failed, settings.failure_rate) {
            return Some(Cause::FailureRate { failed, calls });
        }
        reaches(slow, settings.slow_rate).then_some(Cause::SlowRate { slow, calls })
    }

    /// Begins a new round; answers how long it stays open.
    fn open(&mut self, now: Duration, cause: Cause) -> Duration {
        // after a quiet window the next opening is a new story
        let was_quiet =
            matches!(self.state, State::Closed { since } if now.saturating_sub(since) >= self.settings.window);
        self.openings = if was_quiet { 1 } else { self.openings.saturating_add(1) };
        self.round += 1;
        let open_time = self.settings.open_time(self.openings, self.chance.fraction());
        self.enter(now, State::Open { until: now.saturating_add(open_time) }, cause);
        self.open_until_shared_ms = None;
        open_time
    }

    fn close(&mut self, now: Duration, cause: Cause) {
        self.enter(now, State::Closed { since: now }, cause);
    }

    fn enter(&mut self, now: Duration, state: State, cause: Cause) {
        let from = self.phase();
        self.state = state;
        self.generation += 1;
        self.window.clear();
        self.failures_in_a_row = 0;
        self.changes.push_back(Change { at: now, from, to: self.phase(), cause, round: self.round });
    }

    /// Calls, failures and slow calls within the window.
    pub fn counts(&mut self, now: Duration) -> (u32, u32, u32) {
        let Counts { calls, failed, slow } = self.window.counts(now);
        (calls, failed, slow)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
