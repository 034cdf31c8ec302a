//! What each call does to the tables.

use super::{
    ClaimModel, Defect,
    world::{Batch, Begun, Entry, Promise, Status, World},
};

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum End {
    Completion,
    Failure,
    HandBack,
}

impl ClaimModel {
    pub(super) fn claim(&self, world: &mut World, worker: u8, taken: &[Entry]) {
        if self.defect != Defect::ClaimKeepsReady {
            world.ready.retain(|entry| !taken.contains(entry));
        }
        // an entry of a message that was cancelled, or of an attempt that is over, is dropped on the way
        let entries: Vec<Entry> = taken.iter().copied().filter(|entry| world.is_current(*entry)).collect();
        if entries.is_empty() {
            return;
        }
        for (message, attempt) in &entries {
            world.given[usize::from(*message)][usize::from(*attempt) - 1] = Some(worker);
            world.promises.push(Promise { entry: (*message, *attempt), worker, lease: self.lease });
        }
        let left = u8::try_from(entries.len()).expect("a claim is small");
        let id = world.fresh_id();
        world.batches.push(Batch { worker, lease: self.lease, entries, left, id });
    }

    /// An end or an extension arrives: it finds its claims row, locks the row of its message and judges.
    pub(super) fn begin(&self, world: &mut World, worker: u8, entry: Entry, end: Option<End>) {
        let Some(position) = world.batch_of(worker, entry) else { return };
        let row = world.rows[usize::from(entry.0)];
        let is_in_time = world.batches[position].lease > 0
            || end == Some(End::HandBack)
            || (end.is_some() && self.defect == Defect::EndIgnoresLease);
        let is_open = row.status == Status::Open
            || (end.is_some() && self.defect == Defect::CancelCanBeCompleted && row.status == Status::Cancelled);
        let is_current = row.attempts + 1 == entry.1 || (end.is_some() && self.defect == Defect::EndIgnoresAttempt);
        if !(is_in_time && is_open && is_current) {
            if end.is_some() && self.defect == Defect::RefusalCountsDown {
                count_down(world, position);
            }
            return;
        }
        let was_promised = world.is_promised(worker, entry);
        world.begun.push(Begun { entry, worker, end, batch: Some(world.batches[position].id), was_promised });
        if !self.in_two_steps {
            self.finish(world, entry.0);
        }
    }

    /// The claims row is changed, and everything becomes visible.
    pub(super) fn finish(&self, world: &mut World, message: u8) {
        let Some(position) = world.begun.iter().position(|begun| begun.entry.0 == message) else { return };
        let begun = world.begun.remove(position);
        let batch = if self.defect == Defect::ClaimIsRemembered {
            begun.batch.and_then(|id| world.batches.iter().position(|batch| batch.id == id))
        } else {
            world.batch_of(begun.worker, begun.entry)
        };
        match begun.end {
            Some(end) => {
                // a hand-back after the lease takes nothing from anybody
                world.stale_was_accepted |= !begun.was_promised && end != End::HandBack;
                world.withdraw(begun.worker, begun.entry);
                self.settle(world, begun.entry, end);
                if let Some(batch) = batch {
                    count_down(world, batch);
                }
            }
            None => self.split(world, begun, batch),
        }
    }

    /// What is extended gets a row of its own; the rest keeps its lease.
    fn split(&self, world: &mut World, begun: Begun, batch: Option<usize>) {
        world.withdraw(begun.worker, begun.entry);
        world.promises.push(Promise { entry: begun.entry, worker: begun.worker, lease: self.lease });
        let Some(batch) = batch else { return };
        let others = std::mem::take(&mut world.batches[batch].entries);
        // a call that is under way is not seen, so its message counts as unfinished
        let rest: Vec<Entry> =
            others.into_iter().filter(|other| *other != begun.entry && world.is_current(*other)).collect();
        let (worker, lease) = (begun.worker, world.batches[batch].lease);
        if !rest.is_empty() {
            let left = u8::try_from(rest.len()).expect("a claim is small");
            let id = world.fresh_id();
            world.batches.push(Batch { worker, lease, entries: rest, left, id });
        }
        let kept = &mut world.batches[batch];
        (kept.entries, kept.lease, kept.left) = (vec![begun.entry], self.lease, 1);
    }

    /// The one rule for what the end of an attempt leads to.
    fn settle(&self, world: &mut World, (message, attempt): Entry, end: End) {
        let row = &mut world.rows[usize::from(message)];
        row.attempts = attempt;
        // one hand-back is free; reality allows 1000 before it gives up
        let is_free = end == End::HandBack && !row.released;
        row.released |= is_free;
        let counted = attempt - u8::from(row.released);
        if end == End::Completion {
            row.status = Status::Done;
            row.completions += 1;
        } else if is_free {
            world.ready.push((message, attempt + 1));
        } else if counted >= self.max_attempts {
            row.status = Status::Failed;
        } else if self.defect != Defect::FailureForgets {
            world.delayed.push((message, attempt + 1));
        }
    }

    /// Takes back what nobody has locked; the claims row goes once nothing is left of it.
    pub(super) fn reclaim(&self, world: &mut World, position: usize) {
        let entries = world.batches[position].entries.clone();
        let is_left = |world: &World, entry: &Entry| world.is_current(*entry) && world.is_locked(entry.0);
        for entry in &entries {
            if self.defect == Defect::ReclaimForgets || is_left(world, entry) {
                continue;
            }
            if self.defect == Defect::ReclaimIgnoresRow {
                let row = &mut world.rows[usize::from(entry.0)];
                (row.status, row.attempts) = (Status::Open, entry.1 - 1);
            }
            if world.is_current(*entry) {
                self.settle(world, *entry, End::Failure);
            }
        }
        if !entries.iter().any(|entry| is_left(world, entry)) || self.defect == Defect::ReclaimForgets {
            world.batches.remove(position);
        }
    }
}

fn count_down(world: &mut World, position: usize) {
    let batch = &mut world.batches[position];
    batch.left = batch.left.saturating_sub(1);
    if batch.left == 0 {
        world.batches.remove(position);
    }
}
