//! What the processes of one slot have done so far, as the operating system shows it.

use std::time::{Duration, Instant};

use super::verdict::{BEAT_AT_MOST, SETTLED_AFTER, Truth};

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Running,
    Stopped,
    Gone,
}

#[derive(Debug, Clone)]
struct Process {
    pid: u32,
    /// Whether it must have joined the registry by now.
    has_joined: bool,
    /// Whether it was told to end, and so may have left the registry.
    is_leaving: bool,
}

/// The processes of one slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotTruth {
    /// In the order of their start; those that are gone are forgotten.
    processes: Vec<Process>,
    /// The one that runs, the newest of several, and since when it does.
    runner: Option<(u32, Instant)>,
    /// When one last ran.
    last_running: Instant,
    /// When one had last run for so long that it must have beaten.
    last_settled: Option<Instant>,
}

impl SlotTruth {
    pub(crate) fn new(now: Instant) -> Self {
        Self { processes: Vec::new(), runner: None, last_running: now, last_settled: None }
    }

    /// A process of the slot was started; told twice it is one.
    pub(crate) fn spawned(&mut self, pid: u32) {
        if self.processes.iter().any(|process| process.pid == pid) {
            return;
        }
        self.processes.push(Process { pid, has_joined: false, is_leaving: false });
    }

    /// A process of the slot was told to end.
    pub(crate) fn told_to_end(&mut self, pid: u32) {
        self.processes.iter_mut().filter(|process| process.pid == pid).for_each(|process| process.is_leaving = true);
    }

    /// The process that runs, the newest of several.
    pub(crate) fn runner(&self) -> Option<u32> {
        self.runner.map(|(pid, _)| pid)
    }

    /// Looks at the processes; the database answers since `up_since`, or does not.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        up_since: Option<Instant>,
        state: impl Fn(u32) -> ProcessState,
    ) -> Truth {
        self.processes.retain(|process| state(process.pid) != ProcessState::Gone);
        let pids = self.processes.iter().map(|process| process.pid);
        let newest = pids.rev().find(|pid| state(*pid) == ProcessState::Running);
        self.runner = match (newest, self.runner) {
            (Some(pid), Some((before, since))) if pid == before => Some((pid, since)),
            (Some(pid), _) => Some((pid, now)),
            (None, _) => None,
        };
        let since = |from: Instant| now.saturating_duration_since(from);
        if self.runner.is_some() {
            self.last_running = now;
        }
        let database_up_for = up_since.map_or(Duration::ZERO, since);
        let runs_long = self.runner.is_some_and(|(_, began)| since(began) >= SETTLED_AFTER);
        let runner = self.runner();
        let process = self.processes.iter_mut().find(|process| Some(process.pid) == runner && !process.is_leaving);
        let is_settled = match process {
            Some(process) if runs_long && database_up_for >= SETTLED_AFTER => {
                process.has_joined = true;
                self.last_settled = Some(now);
                true
            }
            _ => false,
        };
        Truth {
            has_joined: self.processes.iter().any(|process| process.has_joined && !process.is_leaving),
            silent_for: since(self.last_running),
            beaten_within: self.last_settled.map(|settled| since(settled) + BEAT_AT_MOST),
            is_settled,
            database_up_for,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_begins_when_the_process_stops_and_ends_when_it_goes_on() {
        let begin = Instant::now();
        let mut slot = SlotTruth::new(begin);
        slot.spawned(1);
        let mut looked = None;
        for second in 0..=20 {
            looked = Some(slot.look(begin + seconds(second), Some(begin), |_| ProcessState::Running));
        }
        let truth = looked.expect("it was looked at");
        assert!(truth.is_settled && truth.has_joined);
        assert_eq!((truth.silent_for, truth.beaten_within), (Duration::ZERO, Some(BEAT_AT_MOST)));

        let truth = slot.look(begin + seconds(32), Some(begin), |_| ProcessState::Stopped);
        assert_eq!((truth.silent_for, truth.beaten_within), (seconds(12), Some(seconds(12) + BEAT_AT_MOST)));
        assert!(truth.has_joined && !truth.is_settled);

        let truth = slot.look(begin + seconds(33), Some(begin), |_| ProcessState::Running);
        // it need not have beaten yet
        assert_eq!((truth.silent_for, truth.beaten_within), (Duration::ZERO, Some(seconds(13) + BEAT_AT_MOST)));
        assert!(!truth.is_settled);
        assert!(slot.look(begin + seconds(41), Some(begin), |_| ProcessState::Running).is_settled);
    }

    #[test]
    fn the_newest_of_two_processes_counts() {
        let begin = Instant::now();
        let mut slot = SlotTruth::new(begin);
        slot.spawned(1);
        slot.look(begin, Some(begin), |_| ProcessState::Running);
        slot.spawned(2);
        slot.look(begin + seconds(9), Some(begin), |pid| {
            if pid == 1 { ProcessState::Stopped } else { ProcessState::Running }
        });
        slot.look(begin + seconds(10), Some(begin), |_| ProcessState::Running);
        assert_eq!(slot.runner, Some((2, begin + seconds(9))));
        slot.look(begin + seconds(11), Some(begin), |_| ProcessState::Gone);
        assert_eq!(slot.runner(), None);
    }

    #[test]
    fn a_successor_has_not_joined_because_the_one_before_had() {
        let begin = Instant::now();
        let mut slot = SlotTruth::new(begin);
        slot.spawned(1);
        slot.look(begin, Some(begin), |_| ProcessState::Running);
        assert!(slot.look(begin + seconds(9), Some(begin), |_| ProcessState::Running).has_joined);
        slot.spawned(2);
        let only_second = |pid| if pid == 2 { ProcessState::Running } else { ProcessState::Gone };
        assert!(!slot.look(begin + seconds(10), Some(begin), only_second).has_joined);
        assert!(slot.look(begin + seconds(19), Some(begin), only_second).has_joined);
    }

    #[test]
    fn one_that_was_told_to_end_may_have_left() {
        let begin = Instant::now();
        let mut slot = SlotTruth::new(begin);
        slot.spawned(1);
        slot.look(begin, Some(begin), |_| ProcessState::Running);
        assert!(slot.look(begin + seconds(9), Some(begin), |_| ProcessState::Running).has_joined);
        slot.told_to_end(1);
        let truth = slot.look(begin + seconds(10), Some(begin), |_| ProcessState::Running);
        assert!(!truth.has_joined && !truth.is_settled);
    }

    #[test]
    fn nobody_is_settled_before_the_database_has_answered_for_long_enough() {
        let begin = Instant::now();
        let mut slot = SlotTruth::new(begin);
        slot.spawned(1);
        slot.look(begin, Some(begin), |_| ProcessState::Running);
        let up_since = begin + seconds(30);
        assert!(!slot.look(begin + seconds(35), Some(up_since), |_| ProcessState::Running).is_settled);
        assert!(slot.look(begin + seconds(38), Some(up_since), |_| ProcessState::Running).is_settled);
    }
}
