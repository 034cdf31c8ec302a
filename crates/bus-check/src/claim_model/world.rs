//! What the tables hold, what workers were promised, and what must hold of both.

use super::steps::End;

/// Most claims of one message; more are not visited.
pub(super) const MOST_ATTEMPTS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Open,
    Done,
    Failed,
    Cancelled,
}

/// The row of a message: the arbiter. `attempts` counts the attempts that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) status: Status,
    pub(super) attempts: u8,
    pub(super) released: bool,
    pub(super) completions: u8,
}

/// A message and the number of its attempt.
pub(super) type Entry = (u8, u8);

/// A claims row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Batch {
    pub(super) worker: u8,
    pub(super) lease: u8,
    pub(super) entries: Vec<Entry>,
    /// At least as many as are unsettled; the row goes at zero.
    pub(super) left: u8,
    /// Tells it from others; numbered anew in each state.
    pub(super) id: u8,
}

/// What a worker was promised by a claim or an extension and has not given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Promise {
    pub(super) entry: Entry,
    pub(super) worker: u8,
    pub(super) lease: u8,
}

/// A call that has locked the row of its message and has yet to change its claims row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Begun {
    pub(super) entry: Entry,
    pub(super) worker: u8,
    /// None: an extension.
    pub(super) end: Option<End>,
    /// The claims row that it read; none if that is gone by now.
    pub(super) batch: Option<u8>,
    /// Whether it was in time when it read.
    pub(super) was_promised: bool,
}

/// One state of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub(super) rows: Vec<Row>,
    pub(super) ready: Vec<Entry>,
    pub(super) delayed: Vec<Entry>,
    pub(super) batches: Vec<Batch>,
    /// Who was given each attempt of each message, from the first.
    pub(super) given: Vec<[Option<u8>; MOST_ATTEMPTS]>,
    pub(super) begun: Vec<Begun>,
    /// Kept apart from the tables, to judge them.
    pub(super) promises: Vec<Promise>,
    pub(super) crashed: Option<u8>,
    pub(super) stale_was_accepted: bool,
}

impl World {
    pub(super) fn new(messages: u8) -> Self {
        let row = Row { status: Status::Open, attempts: 0, released: false, completions: 0 };
        Self {
            rows: vec![row; usize::from(messages)],
            ready: (0..messages).map(|message| (message, 1)).collect(),
            delayed: Vec::new(),
            batches: Vec::new(),
            given: vec![[None; MOST_ATTEMPTS]; usize::from(messages)],
            begun: Vec::new(),
            promises: Vec::new(),
            crashed: None,
            stale_was_accepted: false,
        }
    }

    /// Whether a call has locked the row of this message.
    pub(super) fn is_locked(&self, message: u8) -> bool {
        self.begun.iter().any(|begun| begun.entry.0 == message)
    }

    /// Whether the message is in this attempt now.
    pub(super) fn is_current(&self, (message, attempt): Entry) -> bool {
        let row = self.rows[usize::from(message)];
        row.status == Status::Open && row.attempts + 1 == attempt
    }

    pub(super) fn is_promised(&self, worker: u8, entry: Entry) -> bool {
        self.promises.iter().any(|promise| promise.entry == entry && promise.worker == worker)
    }

    pub(super) fn withdraw(&mut self, worker: u8, entry: Entry) {
        self.promises.retain(|promise| !(promise.entry == entry && promise.worker == worker));
    }

    /// Which claims row holds this.
    pub(super) fn batch_of(&self, worker: u8, entry: Entry) -> Option<usize> {
        self.batches.iter().position(|batch| batch.worker == worker && batch.entries.contains(&entry))
    }

    pub(super) fn fresh_id(&self) -> u8 {
        self.batches.iter().map(|batch| batch.id + 1).max().unwrap_or(0)
    }

    /// Entries of the message stay where they are; whoever takes them drops them.
    pub(super) fn cancel(&mut self, message: u8) {
        let row = &mut self.rows[usize::from(message)];
        if row.status == Status::Open {
            row.status = Status::Cancelled;
            self.promises.retain(|promise| promise.entry.0 != message);
        }
    }

    pub(super) fn tick(&mut self) {
        for batch in &mut self.batches {
            batch.lease = batch.lease.saturating_sub(1);
        }
        for promise in &mut self.promises {
            promise.lease = promise.lease.saturating_sub(1);
        }
        self.promises.retain(|promise| promise.lease > 0);
    }

    /// Two worlds that differ only by the order of writing are one.
    pub(super) fn sort(&mut self) {
        self.ready.sort_unstable();
        self.delayed.sort_unstable();
        self.promises.sort_unstable();
        self.batches.sort_unstable();
        let ids: Vec<u8> = self.batches.iter().map(|batch| batch.id).collect();
        let number = |id: u8| (0..).zip(&ids).find(|(_, old)| **old == id).map(|(number, _)| number);
        for begun in &mut self.begun {
            begun.batch = begun.batch.and_then(number);
        }
        for (number, batch) in (0..).zip(&mut self.batches) {
            batch.id = number;
        }
        self.begun.sort_unstable();
    }

    pub(super) fn broken(&self) -> Option<&'static str> {
        if self.stale_was_accepted {
            return Some("the fence let a late one through");
        }
        if self.rows.iter().any(|row| row.completions > 1) {
            return Some("two completions of a message");
        }
        if self.rows.iter().any(|row| row.completions == 1 && row.status != Status::Done) {
            return Some("a completion is gone");
        }
        for (message, row) in (0..).zip(&self.rows) {
            if self.promises.iter().filter(|promise| promise.entry.0 == message).count() > 1 {
                return Some("two live owners of a message");
            }
            let here = |entries: &[Entry]| entries.iter().filter(|entry| entry.0 == message).count();
            // entries of attempts that have ended stand for nothing
            let current = (message, row.attempts + 1);
            let held = self.batches.iter().filter(|batch| batch.entries.contains(&current)).count();
            if row.status == Status::Open && here(&self.ready) + here(&self.delayed) + held != 1 {
                return Some("a message is not in exactly one of ready, delayed and held");
            }
        }
        None
    }
}
