//! The layout of the bus as a model: message rows, ready and delayed entries, one claims row per claim, a clock.
//!
//! A call may arrive at any time after the claim that it belongs to, any number of times, also when its worker is gone:
//! whatever a network, a pause or a crash does to a call is among the orders that are visited. A claim whose reply is lost is
//! a claim after which nobody calls. Claims, cancels and reclaims are indivisible, as their locks make them. Ends and
//! extensions are either indivisible as well, or two steps: first the row of the message is locked, then the claims row is
//! changed, and other calls of the same worker may come between.

mod steps;
mod world;

use crate::explore::Model;

use steps::End;
pub use world::World;
use world::{Entry, Status};

/// How large a world is visited.
#[derive(Debug, Clone, Copy)]
pub struct ClaimModel {
    /// Messages, all ready at the start.
    pub messages: u8,
    /// Workers; one of them may crash.
    pub workers: u8,
    /// Counted attempts that a message has.
    pub max_attempts: u8,
    /// Ticks of the clock that a claim lasts.
    pub lease: u8,
    /// Most messages of one claim.
    pub batch: usize,
    /// Whether ends and extensions are two steps.
    pub in_two_steps: bool,
    /// What is wrong with it.
    pub defect: Defect,
}

/// Mistakes that an implementation could make; the exploration must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// None.
    None,
    /// An end asks only whether the row is open, not in which attempt.
    EndIgnoresAttempt,
    /// An end is accepted after the lease, as long as nobody reclaimed.
    EndIgnoresLease,
    /// An end that was refused counts the claims row down as well, so that it goes while an id of it is unsettled.
    RefusalCountsDown,
    /// In two steps: the claims row that was read first is changed, even if the message stands in another one by then.
    ClaimIsRemembered,
    /// A claim leaves its entries ready.
    ClaimKeepsReady,
    /// Reclaiming opens the row again whatever became of it.
    ReclaimIgnoresRow,
    /// Reclaiming does not look at the lease.
    ReclaimIgnoresLease,
    /// Reclaiming removes the claims row and forgets its ids.
    ReclaimForgets,
    /// A failure that may be retried writes no delayed entry.
    FailureForgets,
    /// A cancel closes the row for claims only.
    CancelCanBeCompleted,
    /// What is delayed is never looked at again.
    DelayedIsForgotten,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A worker takes these entries (message, attempt), which nobody else has locked.
    Claim(u8, Vec<(u8, u8)>),
    /// A completion arrives: worker, message, attempt.
    Complete(u8, u8, u8),
    /// A retriable failure arrives.
    Fail(u8, u8, u8),
    /// A hand-back arrives.
    Release(u8, u8, u8),
    /// An extension arrives; what else was claimed at once keeps its lease, in a row of its own.
    Extend(u8, u8, u8),
    /// The second step of an end or extension of this message.
    Finish(u8),
    /// Somebody cancels a message.
    Cancel(u8),
    /// The reclaimer takes one claims row whose lease has passed.
    Reclaim(usize),
    /// A delayed message becomes due.
    Due(u8, u8),
    /// Time passes.
    Tick,
    /// A worker is gone; what it sent may still arrive.
    Crash(u8),
}

impl Model for ClaimModel {
    type State = World;
    type Action = Step;

    fn start(&self) -> World {
        World::new(self.messages)
    }

    fn actions(&self, world: &World) -> Vec<Step> {
        let mut steps = vec![Step::Tick];
        for worker in (0..self.workers).filter(|worker| world.crashed != Some(*worker)) {
            steps.extend(choices(&world.ready, self.batch).into_iter().map(|taken| Step::Claim(worker, taken)));
            if world.crashed.is_none() {
                steps.push(Step::Crash(worker));
            }
        }
        for message in 0..self.messages {
            if world.is_locked(message) {
                steps.push(Step::Finish(message));
                continue;
            }
            let given = world.given[usize::from(message)];
            for (attempt, worker) in (1..).zip(given).filter_map(|(attempt, worker)| Some((attempt, worker?))) {
                steps.push(Step::Complete(worker, message, attempt));
                steps.push(Step::Fail(worker, message, attempt));
                steps.push(Step::Release(worker, message, attempt));
                steps.push(Step::Extend(worker, message, attempt));
            }
            steps.push(Step::Cancel(message));
        }
        if self.defect != Defect::DelayedIsForgotten {
            steps.extend(world.delayed.iter().map(|(message, attempt)| Step::Due(*message, *attempt)));
        }
        let may_go = |batch: &usize| world.batches[*batch].lease == 0 || self.defect == Defect::ReclaimIgnoresLease;
        steps.extend((0..world.batches.len()).filter(may_go).map(Step::Reclaim));
        steps
    }

    fn next(&self, world: &World, step: &Step) -> World {
        let mut next = world.clone();
        match step {
            Step::Claim(worker, taken) => self.claim(&mut next, *worker, taken),
            Step::Complete(worker, message, attempt) => {
                self.begin(&mut next, *worker, (*message, *attempt), Some(End::Completion));
            }
            Step::Fail(worker, message, attempt) => {
                self.begin(&mut next, *worker, (*message, *attempt), Some(End::Failure));
            }
            Step::Release(worker, message, attempt) => {
                self.begin(&mut next, *worker, (*message, *attempt), Some(End::HandBack));
            }
            Step::Extend(worker, message, attempt) => self.begin(&mut next, *worker, (*message, *attempt), None),
            Step::Finish(message) => self.finish(&mut next, *message),
            Step::Cancel(message) => next.cancel(*message),
            Step::Reclaim(batch) => self.reclaim(&mut next, *batch),
            Step::Due(message, attempt) => {
                next.delayed.retain(|entry| entry != &(*message, *attempt));
                next.ready.push((*message, *attempt));
            }
            Step::Tick => next.tick(),
            Step::Crash(worker) => next.crashed = Some(*worker),
        }
        next.sort();
        next
    }

    fn broken(&self, world: &World) -> Option<&'static str> {
        world.broken()
    }

    fn has_ended(&self, world: &World) -> bool {
        world.rows.iter().all(|row| row.status != Status::Open)
    }

    fn is_reliable(&self, world: &World, step: &Step) -> bool {
        match step {
            Step::Tick | Step::Due(..) | Step::Reclaim(_) | Step::Claim(..) | Step::Finish(_) => true,
            Step::Complete(worker, ..) => world.crashed != Some(*worker),
            _ => false,
        }
    }
}

/// Every choice of 1 to `most` of the entries.
fn choices(entries: &[Entry], most: usize) -> Vec<Vec<Entry>> {
    let all = 1..1_usize << entries.len();
    let chosen = all.map(|bits| {
        let picked = entries.iter().enumerate().filter(|(position, _)| bits & (1 << position) != 0);
        picked.map(|(_, entry)| *entry).collect::<Vec<_>>()
    });
    chosen.filter(|chosen| chosen.len() <= most).collect()
}
