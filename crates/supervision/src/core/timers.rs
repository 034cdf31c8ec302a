//! Deadlines in the order in which they are due.

use std::{collections::BTreeMap, time::Duration};

use crate::core::shared::Owner;

/// Names one deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerKey {
    due: Duration,
    number: u64,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    pending: BTreeMap<TimerKey, Owner>,
    next_number: u64,
}

impl Timers {
    pub(super) fn add(&mut self, due: Duration, owner: Owner) -> TimerKey {
        self.next_number += 1;
        let key = TimerKey { due, number: self.next_number };
        self.pending.insert(key, owner);
        key
    }

    pub(super) fn cancel(&mut self, key: Option<TimerKey>) {
        if let Some(key) = key {
            self.pending.remove(&key);
        }
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.pending.keys().next().map(|key| key.due)
    }

    pub(super) fn pop_due(&mut self, now: Duration) -> Option<(TimerKey, Owner)> {
        if self.next()? > now {
            return None;
        }
        self.pending.pop_first()
    }
}
